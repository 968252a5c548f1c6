"""Cascades over a log: the search, the rules, the steps."""

from dataclasses import replace
from itertools import combinations
from typing import Any

import numpy as np
import pytest

from pointsman.errors import InputError
from pointsman.frontier import Frontier
from pointsman.pool.deferral import Gain, Window
from pointsman.pool.log import Log
from pointsman.pool.strategies import Chain
from pointsman.pool.strategies.chain_search import search
from pointsman.pool.strategies.crossfit import fold_of, unseen
from pointsman.pool.strategies.strategy import Setting, outcomes


def test_the_search_finds_the_best_pair_of_thresholds_there_is(make_log: Any, told: Any) -> None:
    log, features = make_log(300, 2, 1)
    chain = Chain("sure").fit(log, features)
    prediction = chain.predict(features)
    found = outcomes(log, chain, prediction, chain.settings(log, prediction), 1)
    hull = Frontier.from_outcomes("search", found)
    by_hand = [
        Setting(str(high), {"models": [0, 1], "low": [None], "high": [high]})
        for high in np.nanquantile(log.signals["sure"][:, 0], np.linspace(0.02, 0.98, 60)).tolist()
    ]
    every = outcomes(log, chain, prediction, by_hand, 1)
    reached = [hull.quality_at(cost) for cost in every.cost.mean(axis=1)]
    assert (np.array(reached) >= every.quality.mean(axis=1) - 0.006).all()


def test_lists_of_three_and_more_are_found_where_they_help(make_log: Any) -> None:
    log, features = make_log(1500, 4, 1, missing=0)
    longest = {}
    for most in (2, 4):
        chain = Chain("sure", most=most).fit(log, features)
        prediction = chain.predict(features)
        settings = chain.settings(log, prediction)
        longest[most] = max(len(s.parameters["models"]) for s in settings)
    assert longest == {2: 2, 4: 4}


def test_costs_ascend_along_every_list(make_log: Any) -> None:
    log, features = make_log(300, 5, 1)
    log = replace(log, cost=log.cost[:, ::-1])
    chain = Chain("sure").fit(log, features)
    for cascade in search(log, chain.predict(features), chain.rule_, 4):
        mean = log.mean_cost()[list(cascade.models)]
        assert (np.diff(mean) >= 0).all()


def test_the_cost_of_the_judge_is_paid_for_all_but_the_last(make_log: Any) -> None:
    log, features = make_log(200, 2, 1)
    chain = Chain("judge").fit(log, features)
    always = Setting("", {"models": [0, 1], "low": [None], "high": [None]})
    found = outcomes(log, chain, chain.predict(features), [always], 1)
    assert found.cost[0] == pytest.approx(log.cost.sum(axis=1) + 0.5)


def specialist(n: int, seed: int) -> Log:
    """The second model knows only what the first is half sure about."""
    rng = np.random.default_rng(seed)
    sure = rng.random(n)
    first = (rng.random(n) < sure).astype(float)
    second = ((sure > 0.3) & (sure < 0.7) & (rng.random(n) < 0.95)).astype(float)
    return Log(
        queries=np.array([f"{seed} {at}" for at in range(n)], dtype=object),
        models=("first", "second"),
        quality=np.stack([first, second], axis=1),
        cost=np.tile([1.0, 3.0], (n, 1)),
        signals={"sure": np.stack([sure, np.ones(n)], axis=1)},
    )


@pytest.mark.parametrize("rule", [Window("sure"), Gain("sure")], ids=["window", "learned"])
def test_windows_and_learned_deferral_beat_confidence_with_a_specialist(
    rule: Any, make_log: Any
) -> None:
    train, held, test = specialist(1500, 1), specialist(1000, 2), specialist(2000, 3)
    _, features = make_log(2000, 2, 1)

    def reached(chain: Chain) -> float:
        chain.fit(train, features.take(np.arange(1500)))
        settings = chain.settings(held, chain.predict(features.take(np.arange(1000))))
        found = outcomes(test, chain, chain.predict(features), settings, 1)
        return Frontier.from_outcomes("", found).quality_at(2.2)

    assert reached(Chain(rule)) > reached(Chain("sure")) + 0.05


def test_a_signal_that_could_not_be_read_goes_on(make_log: Any) -> None:
    log, features = make_log(100, 2, 1)
    chain = Chain("sure").fit(log, features)
    setting = Setting("", {"models": [0, 1], "low": [None], "high": [-1e9]})
    prediction = chain.predict(features.take([0]))
    assert chain.step(prediction, setting, [(0, -5.0)]).ask is False
    step = chain.step(prediction, setting, [(0, None)])
    assert (step.model, step.ask, step.final) == (1, True, True)
    assert "not known" in step.why


def test_the_answer_of_a_model_outside_the_list_is_kept(make_log: Any) -> None:
    log, features = make_log(100, 3, 1)
    chain = Chain("sure").fit(log, features)
    setting = Setting("", {"models": [0, 2], "low": [None], "high": [9.0]})
    step = chain.step(chain.predict(features.take([0])), setting, [(1, -5.0)])
    assert (step.model, step.ask) == (1, False)


def test_bounds_that_are_too_few_are_refused(make_log: Any) -> None:
    log, features = make_log(50, 3, 1)
    chain = Chain("sure").fit(log, features)
    setting = Setting("bad", {"models": [0, 1, 2], "low": [None], "high": [0.5]})
    with pytest.raises(InputError, match="needs bounds for each model but the last"):
        chain.take(log, chain.predict(features), setting)


def test_a_log_without_a_complete_row_is_refused(make_log: Any) -> None:
    log, features = make_log(50, 2, 1)
    quality = log.quality.copy()
    quality[::2, 0], quality[1::2, 1] = np.nan, np.nan
    chain = Chain("sure").fit(log, features)
    with pytest.raises(InputError, match="no cascade can be tried on it"):
        chain.settings(replace(log, quality=quality), chain.predict(features))


def test_equal_queries_share_a_fold_and_the_order_changes_nothing(make_log: Any) -> None:
    log, _ = make_log(90, 2, 1)
    log = replace(log, queries=np.array([f"Query {at % 40}" for at in range(90)], dtype=object))
    fold = fold_of(log, 4)
    assert all(fold[a] == fold[b] for a, b in combinations(range(90), 2) if (a - b) % 40 == 0)
    order = np.random.default_rng(0).permutation(90)
    assert (fold_of(log.take(order), 4) == fold[order]).all()
    assert len(set(fold.tolist())) == 4


def test_no_prediction_comes_from_a_router_that_saw_its_query(make_log: Any) -> None:
    class Memory:
        def fit(self, features: Any, quality: Any, cost: Any) -> Any:
            self.seen = {float(x) for x in features.length}
            return self

        def predict(self, features: Any) -> Any:
            from pointsman.pool.routers.router import Prediction

            assert not self.seen & {float(x) for x in features.length}
            return Prediction(np.zeros((len(features), 2)), np.ones((len(features), 2)))

    log, features = make_log(80, 2, 1)
    features = replace(features, length=np.arange(80, dtype=np.float32))
    assert unseen(Memory(), log, features).cost.all()
