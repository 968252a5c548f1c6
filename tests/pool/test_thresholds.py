"""On a log with confidences, the published rules choose as they do on the classifiers."""

import numpy as np
import pytest
import torch

from pointsman.cost import Cost
from pointsman.errors import InputError
from pointsman.pool import Cascade
from pointsman.pool.deferral import window_bounds
from pointsman.pool.features import Features
from pointsman.pool.log import Log
from pointsman.pool.strategies import Chain
from pointsman.pool.strategies.strategy import outcomes
from pointsman.pool.thresholds import EPSILONS, allowed_loss, around_decision
from pointsman.select import window

COSTS = (1.0, 4.0, 20.0)


def tables(n, seed):
    """Probabilities (3, n, 4) of three classifiers, better and better, and labels."""
    rng = np.random.default_rng(seed)
    labels = rng.integers(4, size=n)
    logits = rng.normal(size=(3, n, 4)) * 1.2
    logits += np.array([1.0, 1.8, 3.0])[:, None, None] * np.eye(4)[labels]
    proba = np.exp(logits)
    return proba / proba.sum(axis=2, keepdims=True), labels


def as_log(proba, labels):
    """What an evaluation of these classifiers would have written down."""
    n = len(labels)
    return Log(
        queries=np.array([f"query {i}" for i in range(n)], dtype=object),
        models=("small", "medium", "large"),
        quality=(proba.argmax(axis=2) == labels).T.astype(float),
        cost=np.tile(COSTS, (n, 1)),
        signals={"confidence": proba.max(axis=2).T},
    )


def features(n):
    return Features(np.zeros((n, 1), dtype=np.float32), None, np.ones(n, dtype=np.float32))


def fitted(log, signal="confidence"):
    chain = Chain(signal).fit(log, features(len(log)))
    return chain, chain.predict(features(len(log)))


@pytest.fixture(scope="module")
def held_out():
    return tables(600, 0)


@pytest.mark.parametrize("epsilon", [0.0, 0.01, 0.05, 0.3, 1.0])
def test_the_rule_of_allowed_loss_does_what_the_cascade_of_classifiers_does(held_out, epsilon):
    proba, labels = held_out
    new, truth = tables(500, 1)
    members = [
        lambda rows, m=m: np.concatenate([proba[m], new[m]])[rows[:, 0].astype(int)]
        for m in range(3)
    ]
    cascade = Cascade(members, costs=Cost(np.array(COSTS), "US$"), min_count=20)
    cascade.fit(np.arange(600.0)[:, None], labels)
    wanted = cascade.at(f"epsilon={epsilon}").answer(np.arange(600.0, 1100.0)[:, None]).route
    (setting,) = allowed_loss(as_log(proba, labels), "confidence", epsilons=[epsilon])
    log = as_log(new, truth)
    chain, prediction = fitted(log)
    found = chain.take(log, prediction, setting).route
    assert torch.equal(found.inputs, wanted.inputs)
    assert torch.equal(found.branches, wanted.branches)
    assert torch.equal(found.answered_by(), wanted.answered_by())


def test_quality_and_cost_fall_from_the_last_model_to_the_first(held_out):
    log = as_log(*held_out)
    chain, prediction = fitted(log)
    settings = allowed_loss(log, "confidence")
    assert [setting.knob for setting in settings][:2] == ["epsilon=0", "epsilon=0.001"]
    assert len(settings) == len(EPSILONS)
    found = outcomes(log, chain, prediction, settings, reference=2)
    cost = found.cost.mean(axis=1)
    assert (np.diff(cost) <= 0).all()
    assert cost[-1] == COSTS[0]
    np.testing.assert_array_equal(found.quality[-1], log.quality[:, 0])


@pytest.mark.parametrize("width", [0.0, 0.1, 0.3, 1.0])
def test_the_window_passes_on_what_lies_around_the_decision(held_out, width):
    log = as_log(*held_out)
    scores = log.signals["confidence"][:, 0]
    (setting,) = around_decision(log, "confidence", coverage=0.8, models=[0, 2], widths=[width])
    chain, prediction = fitted(log)
    new = as_log(*tables(500, 1))
    route = chain.take(new, prediction, setting).route
    passed = route.answered_by() == 2
    low, high = setting.parameters["low"][0], setting.parameters["high"][0]
    if width == 0:
        assert not passed.any()
    elif width == 1:
        assert passed.all()
    else:
        inside = window(
            torch.tensor(new.signals["confidence"][:, 0]),
            float(np.quantile(scores, 0.2 - width)) if width < 0.2 else -np.inf,
            float(np.quantile(scores, 0.2 + width)),
        )
        assert torch.equal(passed, inside)
        assert (low is None) == (width >= 0.2)
        assert float(passed.double().mean()) == pytest.approx(min(0.2, width) + width, abs=0.06)
        assert high < 1


def test_the_bounds_of_a_window_belong_to_it(held_out):
    log = as_log(*held_out)
    (setting,) = around_decision(log, "confidence", coverage=0.8, models=[0, 1], widths=[0.1])
    low, high = window_bounds(log.signals["confidence"][:, 0], 1 - 0.8, 0.1)
    edge = as_log(*tables(4, 0))
    cells = np.tile(np.array([low, high, np.nextafter(low, 0), np.nextafter(high, 1)]), (3, 1)).T
    edge = Log(edge.queries, edge.models, edge.quality, edge.cost, signals={"confidence": cells})
    chain, prediction = fitted(edge)
    answered = chain.take(edge, prediction, setting).route.answered_by()
    assert answered.tolist() == [1, 1, 0, 0]


def test_missing_cells_are_left_out_and_an_answer_without_signal_is_unsure(held_out):
    log = as_log(*held_out)
    quality, cells = log.quality.copy(), log.signals["confidence"].copy()
    quality[:50, 0], cells[50:80, 0] = np.nan, np.nan
    holes = Log(log.queries, log.models, quality, log.cost, signals={"confidence": cells})
    assert allowed_loss(holes, "confidence") != allowed_loss(log, "confidence")
    kept = log.take(np.arange(600) >= 80)
    for found, wanted in zip(
        allowed_loss(holes, "confidence", models=[0, 2]),
        allowed_loss(kept, "confidence", models=[0, 2]),
        strict=True,
    ):
        assert found == wanted
    chain, prediction = fitted(holes)
    setting = allowed_loss(holes, "confidence", models=[0, 2], epsilons=[0.05])[0]
    answered = chain.take(holes, prediction, setting).route.answered_by()
    assert (answered[50:80] == 2).all()


def test_with_too_few_answers_the_last_model_is_asked(held_out):
    few = as_log(*held_out).take(np.arange(10))
    safe, last = allowed_loss(few, "confidence", epsilons=[0.1, 1.0])
    assert safe.parameters["high"] == [None, None]
    chain, prediction = fitted(few)
    assert (chain.take(few, prediction, safe).route.answered_by() == 2).all()
    assert (chain.take(few, prediction, last).route.answered_by() == 0).all()


def test_fractional_qualities_count_by_their_mean():
    sure = np.linspace(0, 1, 101)
    log = Log(
        queries=np.array([str(i) for i in range(101)], dtype=object),
        models=("a", "b"),
        quality=np.stack([sure, np.ones(101)], axis=1),
        cost=np.tile([1.0, 2.0], (101, 1)),
        signals={"confidence": np.stack([sure, np.ones(101)], axis=1)},
    )
    (setting,) = allowed_loss(log, "confidence", epsilons=[0.2], min_count=1)
    # mean quality from t upwards is (1 + t) / 2, and 0.8 is allowed
    assert setting.parameters["high"][0] == pytest.approx(0.6, abs=0.011)


def test_what_does_not_fit_is_refused(held_out):
    log = as_log(*held_out)
    with pytest.raises(InputError, match="no signal 'margin'"):
        allowed_loss(log, "margin")
    with pytest.raises(InputError, match="0 to 2, got \\[0, 3\\]"):
        allowed_loss(log, "confidence", models=[0, 3])
    with pytest.raises(InputError, match="coverage lies in"):
        around_decision(log, "confidence", coverage=1.0)
    with pytest.raises(InputError, match="widths in"):
        around_decision(log, "confidence", coverage=0.5, widths=[2.0])
