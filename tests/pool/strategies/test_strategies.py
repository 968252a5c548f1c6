"""What every strategy keeps to, on logs with missing signals and ties."""

import json
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import numpy as np
import pytest

from pointsman.errors import InputError
from pointsman.pool.deferral import Confidence, Gain, Window
from pointsman.pool.strategies import BeforeCall, Chain, RoutedCascade, Single
from pointsman.pool.strategies.strategy import Setting, outcomes

STRATEGIES: dict[str, Callable[[Any], Any]] = {
    "single": lambda told: Single(),
    "before the call": BeforeCall,
    "confidence": lambda told: Chain("sure"),
    "window": lambda told: Chain(Window("sure")),
    "learned": lambda told: Chain(Gain("judge"), told),
    "short": lambda told: Chain(Confidence("judge", thresholds=6), most=3),
    "routed": lambda told: RoutedCascade(told, "sure"),
    "routed, judged": lambda told: RoutedCascade(told, "judge", most=4),
    "routed, blind": lambda told: RoutedCascade(told, None),
}
each_strategy = pytest.mark.parametrize("made", STRATEGIES.values(), ids=STRATEGIES.keys())


@each_strategy
@pytest.mark.parametrize("ties", [False, True], ids=["no ties", "ties"])
@pytest.mark.parametrize("models", [1, 2, 10])
def test_step_by_step_and_all_at_once_agree_on_every_query(
    made: Any, models: int, ties: bool, make_log: Any, told: Any, replayed: Any
) -> None:
    log, features = make_log(160, models, 1, ties=ties)
    strategy = made(told).fit(log, features)
    held, seen = make_log(90, models, 2, ties=ties)
    prediction = strategy.predict(seen)
    settings = strategy.settings(held, prediction)
    assert 1 <= len(settings) <= 60
    assert len({setting.knob for setting in settings}) == len(settings)
    test, seen = make_log(20, models, 3, ties=ties)
    prediction = strategy.predict(seen)
    for setting in settings[:: 1 + len(settings) // 25]:
        # what a policy's file keeps
        setting = Setting(setting.knob, json.loads(json.dumps(setting.parameters)))
        taken = strategy.take(test, prediction, setting)
        taken.route.validate()
        answered = taken.route.answered_by().tolist()
        for row in range(len(test)):
            mine = taken.route.branches[taken.route.inputs == row].tolist()
            judged = np.flatnonzero(taken.judged[row]).tolist()
            stepped = replayed(strategy, test, prediction, setting, row)
            assert (mine, judged, answered[row]) == (
                stepped[0],
                sorted(stepped[1]),
                stepped[2],
            ), (setting, row)
            assert set(judged) <= set(mine)


@each_strategy
def test_decisions_do_not_hang_on_the_other_queries(made: Any, make_log: Any, told: Any) -> None:
    log, features = make_log(160, 4, 1)
    strategy = made(told).fit(log, features)
    test, seen = make_log(60, 4, 3, ties=True)
    order = np.random.default_rng(0).permutation(60)[:40]
    whole = strategy.predict(seen)
    for setting in strategy.settings(test, whole):
        all_ = strategy.take(test, whole, setting)
        part = strategy.take(test.take(order), strategy.predict(seen.take(order)), setting)
        assert all_.route.answered_by()[order].tolist() == part.route.answered_by().tolist()
        assert (all_.judged[order] == part.judged).all()


@each_strategy
def test_settings_go_from_the_dearest_to_the_cheapest_model(
    made: Any, make_log: Any, told: Any
) -> None:
    log, features = make_log(400, 3, 1)
    strategy = made(told).fit(log, features)
    held, seen = make_log(400, 3, 2)
    prediction = strategy.predict(seen)
    settings = strategy.settings(held, prediction)
    found = outcomes(held, strategy, prediction, settings, reference=2)
    cost = found.cost.mean(axis=1)
    assert cost[-1] == pytest.approx(held.cost[:, 0].mean())
    if "blind" not in strategy.name and not isinstance(strategy, RoutedCascade):
        assert cost[0] >= held.cost[:, 2].mean() - 1e-9
    assert cost[0] == cost.max()
    assert (np.diff(cost) <= 0.02 * cost[0]).all()


@each_strategy
def test_no_signal_of_a_model_that_was_not_asked_is_read(
    made: Any, make_log: Any, told: Any
) -> None:
    log, features = make_log(160, 3, 1, missing=0)
    strategy = made(told).fit(log, features)
    prediction = strategy.predict(features)
    for setting in strategy.settings(log, prediction)[::5]:
        taken = strategy.take(log, prediction, setting)
        hidden = {n: np.where(taken.judged, s, np.nan) for n, s in log.signals.items()}
        again = strategy.take(replace(log, signals=hidden), prediction, setting)
        assert again.route.branches.tolist() == taken.route.branches.tolist()
        assert (again.judged == taken.judged).all()


@each_strategy
def test_a_strategy_kept_and_brought_back_does_the_same(
    made: Any, make_log: Any, told: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    from pointsman.pool import routers

    class Kept(type(told)):  # type: ignore[misc]
        def to_state(self) -> Any:
            return {}, {}

        @classmethod
        def from_state(cls, plain: Any, arrays: Any) -> Any:
            return cls()

    monkeypatch.setattr(routers, "Kept", Kept, raising=False)
    monkeypatch.setattr(routers, "__all__", [*routers.__all__, "Kept"])
    log, features = make_log(160, 3, 1)
    strategy = made(Kept()).fit(log, features)
    plain, arrays = strategy.to_state()
    assert all(array.dtype.kind in "biuf" for array in arrays.values())
    again = type(strategy).from_state(json.loads(json.dumps(plain)), arrays)
    assert (again.name, again.title, again.signal) == (
        strategy.name,
        strategy.title,
        strategy.signal,
    )
    prediction = strategy.predict(features)
    assert (again.predict(features).quality == prediction.quality).all()
    for setting in strategy.settings(log, prediction)[::4]:
        first = strategy.take(log, prediction, setting).route
        second = again.take(log, prediction, setting).route
        assert first.branches.tolist() == second.branches.tolist()
        assert first.weights.tolist() == second.weights.tolist()


@each_strategy
def test_a_setting_of_another_strategy_is_refused(made: Any, make_log: Any, told: Any) -> None:
    log, features = make_log(100, 2, 1)
    strategy = made(told).fit(log, features)
    with pytest.raises(InputError, match="is not one of"):
        strategy.take(log, strategy.predict(features), Setting("other", {"other": 1}))


@pytest.mark.parametrize("made", [Chain, lambda s: RoutedCascade(None, s)], ids=["chain", "routed"])
def test_a_signal_that_the_log_lacks_is_refused(made: Any, make_log: Any, told: Any) -> None:
    strategy = made("sure") if made is Chain else RoutedCascade(told, "sure")
    log, features = make_log(60, 2, 1)
    with pytest.raises(InputError, match="no signal 'sure': its signals are none"):
        strategy.fit(replace(log, signals={}), features)
