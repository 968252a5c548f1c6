"""Routing before the call: prices, ties and the ends."""

from typing import Any

import numpy as np

from pointsman.pool.routers.router import Prediction
from pointsman.pool.strategies import BeforeCall
from pointsman.pool.strategies.prices import chosen_at, prices
from pointsman.pool.strategies.strategy import Setting


def test_the_model_of_best_quality_less_price_times_cost_is_asked() -> None:
    prediction = Prediction(np.array([[0.5, 0.8, 0.9]]), np.array([[1.0, 2.0, 9.0]]))
    assert [int(chosen_at(prediction, p)[0]) for p in (-9, 0, 0.1, 0.29, 0.31)] == [2, 2, 1, 1, 0]


def test_of_equal_values_the_cheaper_is_asked_and_of_equal_costs_the_first() -> None:
    prediction = Prediction(np.array([[0.5, 0.5, 0.5]]), np.array([[3.0, 1.0, 1.0]]))
    assert int(chosen_at(prediction, 0.0)[0]) == 1


def test_prices_reach_every_choice_that_any_price_makes() -> None:
    rng = np.random.default_rng(0)
    prediction = Prediction(rng.random((12, 4)), rng.random((12, 4)))
    grid = prices(prediction, most=10**6)
    found = {tuple(chosen_at(prediction, price)) for price in grid}
    everywhere = np.concatenate([-np.geomspace(1e-4, 1e4, 4000), np.geomspace(1e-4, 1e4, 4000)])
    assert {tuple(chosen_at(prediction, price)) for price in everywhere} <= found


def test_thinned_prices_keep_both_ends_and_the_order() -> None:
    rng = np.random.default_rng(1)
    prediction = Prediction(rng.random((900, 5)), rng.random((900, 5)) * 1e-4)
    grid = prices(prediction)
    assert 40 <= len(grid) <= 60
    assert grid == sorted(grid)
    assert (chosen_at(prediction, grid[0]) == prediction.cost.argmax(axis=1)).all()
    assert (chosen_at(prediction, grid[-1]) == prediction.cost.argmin(axis=1)).all()


def test_models_of_one_cost_and_free_models_are_no_trouble() -> None:
    for cost in (np.zeros((5, 3)), np.ones((5, 3))):
        grid = prices(Prediction(np.tile([0.1, 0.9, 0.4], (5, 1)), cost))
        assert grid == [0.0]
        assert (chosen_at(Prediction(np.tile([0.1, 0.9, 0.4], (5, 1)), cost), 0.0) == 1).all()


def test_after_the_one_call_its_answer_is_given(told: Any) -> None:
    prediction = Prediction(np.array([[0.5, 0.8]]), np.array([[1.0, 2.0]]))
    step = BeforeCall(told).step(prediction, Setting("", {"price": 0.0}), [(0, None)])
    assert (step.model, step.ask, step.final) == (0, False, False)


def test_the_router_given_stays_as_it_is(make_log: Any) -> None:
    class Router:
        name, title = "r", "R"

        def fit(self, features: Any, quality: Any, cost: Any) -> Any:
            self.fitted = True
            return self

    router = Router()
    strategy = BeforeCall(router).fit(*make_log(20, 2))
    assert strategy.router_.fitted
    assert not hasattr(router, "fitted")
