"""Routing and deferral in one: what it reduces to, and what it can find."""

from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch

from pointsman.errors import InputError
from pointsman.frontier import Frontier
from pointsman.pool.features.features import Features
from pointsman.pool.log import Log
from pointsman.pool.routers.router import Prediction
from pointsman.pool.strategies import BeforeCall, Chain, RoutedCascade, crossfit
from pointsman.pool.strategies.strategy import Setting, outcomes


def flat(log: Log) -> Features:
    """Predictions that know nothing of the query: each model's means."""
    cells = np.concatenate([log.mean_quality(), log.mean_cost()])
    dense = np.tile(cells, (len(log), 1)).astype(np.float32)
    return Features(dense, None, np.full(len(log), 5.0, dtype=np.float32))


@pytest.mark.parametrize("signal", [None, "noise"])
def test_without_news_it_is_the_router_alone(signal: str | None, make_log: Any, told: Any) -> None:
    log, features = make_log(300, 4, 1, ties=True)
    # a signal that never varies tells nothing
    log = replace(log, signals={"noise": np.ones(log.quality.shape)})
    both, router = RoutedCascade(told, signal).fit(log, features), BeforeCall(told)
    router.fit(log, features)
    test, seen = make_log(200, 4, 2, ties=True)
    test = replace(test, signals={"noise": np.ones(test.quality.shape)})
    prediction = router.predict(seen)
    for price in (0.0, 0.003, 0.02, 0.1, 1.0, 50.0):
        setting = Setting("", {"price": price})
        joint, alone = both.take(test, prediction, setting), router.take(test, prediction, setting)
        assert joint.route.branches.tolist() == alone.route.branches.tolist()
        assert joint.route.inputs.tolist() == alone.route.inputs.tolist()
        assert not joint.judged.any()


def test_at_a_price_at_which_nothing_is_asked_twice_it_is_the_router_alone(
    make_log: Any, told: Any
) -> None:
    log, features = make_log(400, 3, 1)
    log = replace(log, signal_cost={"judge": np.full(log.quality.shape, 1e6)})
    both = RoutedCascade(told, "judge").fit(log, features)
    router = BeforeCall(told).fit(log, features)
    prediction = router.predict(features)
    for price in (0.001, 0.03, 1.0):
        setting = Setting("", {"price": price})
        joint = both.take(log, prediction, setting)
        alone = router.take(log, prediction, setting)
        assert joint.route.branches.tolist() == alone.route.branches.tolist()
        assert not joint.judged.any()


def test_with_a_router_that_knows_nothing_two_models_are_a_cascade_with_one_threshold(
    make_log: Any, told: Any
) -> None:
    log, _ = make_log(3000, 2, 1, missing=0)
    both = RoutedCascade(told, "sure").fit(log, flat(log))
    test, _ = make_log(500, 2, 2, missing=0)
    prediction = both.predict(flat(log).take(np.arange(500)))
    chain, found = Chain("sure").fit(log, flat(log)), 0
    for price in np.geomspace(0.001, 0.1, 15):
        taken = both.take(test, prediction, Setting("", {"price": float(price)}))
        on = taken.route.branches_per_input().numpy() == 2
        if not 0 < on.sum() < 500 or taken.judged[0, 1]:
            continue  # one model for all, or the dear one first, which a cascade does not know
        found += 1
        signal = test.signals["sure"][:, 0]
        assert signal[on].max() < signal[~on].min()
        threshold = (signal[on].max() + signal[~on].min()) / 2
        setting = Setting("", {"models": [0, 1], "low": [None], "high": [float(threshold)]})
        asked = chain.take(test, prediction, setting).route
        assert asked.branches.tolist() == taken.route.branches.tolist()
    assert found >= 3


def test_the_answer_of_best_posterior_is_given_also_when_it_came_first() -> None:
    # m1 is dear and often right; where its own signal is bad, the first answer is given after all
    rng = np.random.default_rng(0)
    quality = (rng.random((4000, 2)) < [0.5, 0.7]).astype(float)
    signal = quality + 0.2 * rng.normal(size=quality.shape)
    log = Log(
        queries=np.array([f"q{at}" for at in range(4000)], dtype=object),
        models=("m0", "m1"),
        quality=quality,
        cost=np.tile([1.0, 2.0], (4000, 1)),
        signals={"sure": signal},
    )
    features = flat(log)

    class Router:
        name, title = "r", "R"

        def fit(self, *_: Any) -> Any:
            return self

        def predict(self, features: Features) -> Prediction:
            dense = features.dense.astype(float)
            return Prediction(dense[:, :2], dense[:, 2:])

    strategy = RoutedCascade(Router(), "sure").fit(log, features)
    taken = strategy.take(log, strategy.predict(features), Setting("", {"price": 1e-3}))
    asked, answered = taken.route.branches_per_input(), taken.route.answered_by()
    assert int((asked == 2).sum()) > 1000
    judged = taken.judged.all(axis=1)
    clear = judged & (np.abs(signal[:, 0] - signal[:, 1]) > 0.5)
    assert clear.sum() > 200
    given = signal[np.arange(4000), answered.numpy()]
    assert (given[clear] == signal[clear].max(axis=1)).mean() > 0.99
    first = taken.route.branches[taken.route.inputs.diff(prepend=-torch.ones(1)) > 0]
    assert ((asked == 2) & (answered == first)).any()


def test_both_together_beat_the_router_and_the_cascade_alone(make_log: Any, told: Any) -> None:
    log, features = make_log(2000, 3, 1, missing=0)
    held, seen = make_log(2500, 3, 2, missing=0)

    def reached(strategy: Any) -> float:
        prediction = strategy.fit(log, features).predict(seen)
        settings = strategy.settings(held, prediction)[::2]
        found = outcomes(held, strategy, prediction, settings, 2)
        return Frontier.from_outcomes("", found).quality_at(6.0)

    both = reached(RoutedCascade(told, "sure"))
    assert both > reached(BeforeCall(told)) + 0.005
    assert both > reached(Chain("sure")) + 0.001


def test_of_a_long_log_one_fold_is_enough(
    make_log: Any, told: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    log, features = make_log(1600, 3, 1)
    every = RoutedCascade(told, "sure").fit(log, features)
    monkeypatch.setattr(crossfit, "ALL_FOLDS", 100)
    some = RoutedCascade(told, "sure").fit(log, features)
    assert np.isfinite(some.beliefs_.shared_).all()
    assert some.beliefs_.shared_ == pytest.approx(every.beliefs_.shared_, abs=0.03)


def test_judging_is_paid_for_so_a_dear_judge_is_asked_less(make_log: Any, told: Any) -> None:
    log, features = make_log(1000, 3, 1, missing=0)
    shares = []
    for cost in (0.0, 1.0, 4.0):
        paid = replace(log, signal_cost={"judge": np.full(log.quality.shape, cost)})
        strategy = RoutedCascade(told, "judge").fit(paid, features)
        setting = Setting("", {"price": 0.02})
        shares.append(strategy.take(paid, strategy.predict(features), setting).judged.mean())
    assert shares[0] > shares[1] > shares[2]


def test_an_answer_that_stood_in_or_was_asked_twice_is_no_trouble(make_log: Any, told: Any) -> None:
    log, features = make_log(300, 3, 1)
    strategy = RoutedCascade(told, "sure").fit(log, features)
    prediction = strategy.predict(features.take([0]))
    for asked in ([(2, None)], [(0, 0.1), (0, 0.9)], [(0, 0.1), (1, 0.2), (2, None)]):
        step = strategy.step(prediction, Setting("", {"price": 0.01}), asked)
        assert step.ask == (step.model not in {m for m, _ in asked})


def test_at_least_one_model_is_asked(told: Any) -> None:
    with pytest.raises(InputError, match="at least one model is asked, got most=0"):
        RoutedCascade(told, "sure", most=0)
