"""Worlds with a known truth: logs agree with it, and the best policy is the best."""

from typing import get_args

import numpy as np
import pytest

from pointsman.errors import InputError
from pointsman.pool.synthetic import Kind, world

KINDS = get_args(Kind)


@pytest.mark.parametrize("kind", KINDS)
def test_what_a_log_shows_agrees_with_the_truth_on_average(kind):
    w = world(kind, models=5)
    log = w.log(6000, seed=3)
    truth = w.truth(log)
    # Each of four quarters by the truth: it is right for queries of every sort, not only overall.
    for model in range(5):
        rows = np.array_split(np.argsort(truth.quality[:, model], kind="stable"), 4)
        for some in rows:
            seen, told = log.quality[some, model].mean(), truth.quality[some, model].mean()
            assert abs(seen - told) < 0.05, (model, seen, told)
    np.testing.assert_allclose(log.cost.mean(axis=0), truth.cost.mean(axis=0), rtol=0.05)
    assert (np.diff(truth.cost, axis=1) > 0).all()


@pytest.mark.parametrize("kind", KINDS)
def test_no_choice_beats_the_best_policy_and_none_beats_itself(kind):
    w = world(kind)
    log = w.log(500)
    rng = np.random.default_rng(0)
    for price in w.prices(log):
        best = w.best(log, price)
        single = np.full(len(log), w.best_single(log, price))
        assert w.regret(log, best, price) == pytest.approx(0.0, abs=1e-12)
        assert w.regret(log, single, price) >= -1e-12
        assert w.regret(log, rng.integers(10, size=len(log)), price) > w.regret(log, best, price)
        mixed = np.full((len(log), 10), 0.1)
        assert w.utility(log, mixed, price) <= w.utility(log, best, price) + 1e-12


@pytest.mark.parametrize("kind", [kind for kind in KINDS if kind != "unlearnable"])
def test_a_learnable_world_has_a_gap_to_close(kind):
    w = world(kind)
    log = w.log(1000)
    price = w.prices(log)[3]
    single = np.full(len(log), w.best_single(log, price))
    assert w.regret(log, single, price) > 0.02
    assert w.found(log, single, price) == pytest.approx(0.0)
    assert w.found(log, w.best(log, price), price) == pytest.approx(1.0)


def test_in_an_unlearnable_world_one_model_is_best_although_an_oracle_gains():
    w = world("unlearnable")
    log = w.log(1000)
    for price in w.prices(log):
        assert len(set(w.best(log, price))) == 1
        assert np.isnan(w.found(log, w.best(log, price), price))
    assert log.quality.max(axis=1).mean() > log.mean_quality().max() + 0.1


def test_equal_seeds_draw_equal_logs_and_other_seeds_others():
    first, again = world("linear").log(50, seed=4), world("linear").log(50, seed=4)
    assert (first.queries == again.queries).all()
    np.testing.assert_array_equal(first.quality, again.quality)
    np.testing.assert_array_equal(first.cost, again.cost)
    assert (first.queries != world("linear").log(50, seed=5).queries).any()
    assert world("linear", seed=1).words != world("linear").words


def test_missing_cells_are_missing_everywhere_and_copies_repeat_their_text():
    log = world("signals", models=3).log(800, missing=0.3, repeated=0.2)
    gone = np.isnan(log.quality)
    assert gone.mean() == pytest.approx(0.3, abs=0.04)
    for cells in (log.cost, log.latency, *log.signals.values()):
        np.testing.assert_array_equal(np.isnan(cells), gone)
    assert len(set(log.identity())) == pytest.approx(640, abs=40)
    tasks = world("tasks", models=3).log(300, repeated=0.5)
    pairs = set(zip(tasks.queries, tasks.groups["task"], strict=True))
    assert len(pairs) == len(set(tasks.queries))


@pytest.mark.parametrize("signal", ["confidence", "verifier"])
def test_the_posterior_is_calibrated_and_tells_more_than_the_query(signal):
    w = world("signals", models=4)
    log = w.log(6000)
    after, before = w.posterior(log, signal), w.truth(log).quality
    for some in np.array_split(np.argsort(after, axis=None), 5):
        seen, told = log.quality.ravel()[some].mean(), after.ravel()[some].mean()
        assert abs(seen - told) < 0.03, (seen, told)
    error_after = ((after - log.quality) ** 2).mean()
    assert error_after < 0.85 * ((before - log.quality) ** 2).mean()
    assert set(log.signal_cost) == {"verifier"}


def test_the_number_of_models_is_free():
    log = world("clusters", models=2).log(30)
    assert log.models == ("model-0", "model-1")
    assert world("clusters", models=12).log(30).models[11] == "model-11"


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: world("moons"), "a world is one of clusters, linear"),
        (lambda: world("linear", models=1), "at least 2 models, got 1"),
        (lambda: world("linear").log(0), "n of at least 1"),
        (lambda: world("linear").log(5, missing=1.0), r"\[0, 1\)"),
        (lambda: world("linear").posterior(world("linear").log(5), "confidence"), "kind 'signals'"),
        (lambda: world("linear").regret(world("linear").log(5), np.zeros(4, int)), "a choice is"),
        (lambda: world("linear").regret(world("linear").log(5), np.full(5, 10)), "a choice is"),
    ],
)
def test_what_breaks_a_rule_is_refused_in_words(make, message):
    with pytest.raises(InputError, match=message):
        make()
