"""Alarms: seldom wrong at any time, soon right, and in words."""

import math
from types import SimpleNamespace

import numpy as np
import pytest
from online_worlds import saved_and_loaded

from pointsman.errors import InputError
from pointsman.pool.online.alarm import DriftAlarm, lowest_mean
from pointsman.pool.online.shift import ShiftWarning
from pointsman.pool.online.wealth import Wealth, evidence


def promise(drop=0.02, inputs=4000):
    return SimpleNamespace(promised_drop=drop, inputs=inputs)


def delays(level, fallen, *, quiet, error, seed, streams=60, after=3000):
    """Values after the change until the proof, infinite where there is none."""
    rng = np.random.default_rng(seed)
    chance = np.concatenate([np.full(quiet, level), np.full(after, fallen)])
    values = (rng.random((streams, quiet + after)) < chance).astype(float)
    proof = evidence(values, level) >= 1 / error
    return np.where(proof.any(axis=1), proof.argmax(axis=1) + 1.0 - quiet, np.inf)


@pytest.mark.parametrize("level", [0.3, 0.8, 0.97])
@pytest.mark.parametrize("error", [0.1, 0.02])
def test_false_alarms_over_a_whole_stream_stay_below_the_nominal_rate(level, error):
    values = (np.random.default_rng(7).random((1000, 2000)) < level).astype(float)
    assert (evidence(values, level).max(axis=1) >= 1 / error).mean() <= error


def test_false_alarms_stay_rare_where_values_depend_on_the_past():
    """Streaks: the chance given the past is never below the level, and often above."""
    rng, level = np.random.default_rng(8), 0.7
    values = np.zeros((800, 1500))
    before = np.ones(800)
    for t in range(1500):
        values[:, t] = before = (rng.random(800) < np.where(before > 0, level, 0.9)).astype(float)
    assert (evidence(values, level).max(axis=1) >= 20).mean() <= 0.05


def test_evidence_is_one_at_most_in_the_mean_under_the_promise():
    values = np.random.default_rng(9).beta(8, 2, size=(4000, 150))
    assert evidence(values, 0.8)[:, -1].mean() <= 1.02


@pytest.mark.parametrize("quiet", [0, 2000])
def test_a_fall_is_found_soon_even_after_long_quiet(quiet):
    big = delays(0.8, 0.6, quiet=quiet, error=0.01, seed=1)
    small = delays(0.8, 0.7, quiet=quiet, error=0.01, seed=2)
    assert np.isfinite(big).all()
    assert np.isfinite(small).all()
    assert np.median(big) < 150
    assert np.median(small) < 450


def test_one_value_at_a_time_is_the_same_as_all_at_once():
    values = np.random.default_rng(3).random(300) * 0.9
    wealth = Wealth(0.55, 1e-9)
    found = []
    for value in values:
        wealth.observe(float(value))
        found.append(wealth.evidence)
    np.testing.assert_allclose(found, evidence(values[None], 0.55)[0], rtol=1e-12)


def test_evidence_stays_finite_for_ever():
    assert np.isfinite(evidence(np.zeros((1, 5000)), 0.9)).all()


def test_the_alarm_keeps_its_rate_with_a_calibration_of_its_own():
    """The reference's quality is itself a mean of few inputs: that is part of the error."""
    rng, wrong, inputs = np.random.default_rng(4), 0, 100
    for _ in range(100):
        measured = float((rng.random(inputs) < 0.8).mean())
        alarm = DriftAlarm(promise(0.02, inputs), measured, error=0.05)
        wrong += any(alarm.observe(float(v)) for v in rng.random(600) < 0.78)
    assert wrong / 100 <= 0.05


def test_the_alarm_is_raised_after_a_fall_and_says_what_to_do():
    rng = np.random.default_rng(5)
    alarm = DriftAlarm(promise(), 0.85, reference="large")
    for value in rng.random(500) < 0.84:
        assert not alarm.observe(float(value))
    assert "No alarm after 500 feedbacks" in alarm.words()
    needed = 0
    while not alarm.observe(float(rng.random() < 0.6)):
        needed += 1
        assert needed < 400
    words = alarm.words()
    for said in ("Drift", "Send requests to large", "pointsman compare", "0.850", "at most 1%"):
        assert said in words
    assert alarm.evidence == 1.0
    alarm.observe(1.0)
    assert alarm.alarmed  # until it is reset
    alarm.reset()
    assert not alarm.alarmed
    assert "No feedback yet" in alarm.words()


def test_sparse_feedback_counts_as_it_comes():
    rng = np.random.default_rng(6)
    alarm = DriftAlarm(promise(), 0.85)
    for _ in range(20_000):
        alarm.observe(float(rng.random() < 0.55) if rng.random() < 0.02 else math.nan)
    assert alarm.alarmed
    assert alarm.feedbacks < 200


def test_shadow_answers_of_the_reference_show_a_drop_that_quality_alone_hides():
    """Queries have become easier and the policy lost against the reference all the same."""
    rng = np.random.default_rng(7)
    alone, paired = DriftAlarm(promise(), 0.7), DriftAlarm(promise(), 0.7)
    for _ in range(1500):
        ours, theirs = float(rng.random() < 0.8), float(rng.random() < 0.97)
        alone.observe(ours)
        paired.observe(ours, theirs)
    assert not alone.alarmed
    assert paired.alarmed
    assert "against the reference on the same queries" in paired.words()


def test_the_lowest_mean_is_missed_as_rarely_as_said():
    rng, n, error = np.random.default_rng(10), 300, 0.1
    means = (rng.random((2000, n)) < 0.8).mean(axis=1)
    assert np.mean([lowest_mean(float(m), n, error) > 0.8 for m in means]) <= error
    assert lowest_mean(1.0, n, error) < 1.0
    assert lowest_mean(0.0, n, error) == 0.0


@pytest.mark.parametrize("quality", [-0.1, 1.1, math.inf])
def test_a_quality_outside_its_range_is_refused(quality):
    alarm = DriftAlarm(promise(), 0.85)
    with pytest.raises(InputError, match="quality"):
        alarm.observe(quality)
    with pytest.raises(InputError, match="quality"):
        alarm.observe(0.5, quality)
    assert alarm.feedbacks == 0


def test_alarms_kept_midway_go_on_as_the_others_do():
    rng = np.random.default_rng(11)
    alarm = DriftAlarm(promise(), 0.85)
    warning = ShiftWarning({"predicted quality": 0.8, "confidence": 0.6}, inputs=1000)
    for value in rng.random(300):
        alarm.observe(float(value), 0.5)
        warning.observe({"confidence": float(value)})
        if value > 0.5:
            alarm, warning = saved_and_loaded(alarm), saved_and_loaded(warning)
    again, other = DriftAlarm(promise(), 0.85), ShiftWarning(warning.stored, inputs=1000)
    for value in np.random.default_rng(11).random(300):
        again.observe(float(value), 0.5)
        other.observe({"confidence": float(value)})
    assert (alarm.evidence, alarm.words()) == (again.evidence, again.words())
    assert warning.words() == other.words()


def test_a_warning_is_seldom_given_without_a_shift_and_calls_itself_weak():
    rng, wrong = np.random.default_rng(12), 0
    for _ in range(40):
        warning = ShiftWarning({"predicted quality": 0.8}, tolerance=0.02, error=0.05)
        for value in rng.beta(7.8, 2.2, size=400):  # of mean 0.78
            warning.observe({"predicted quality": float(value)})
        wrong += warning.shifted
    assert wrong <= 2
    warning = ShiftWarning({"predicted quality": 0.8, "confidence": 0.6})
    for value in rng.beta(6, 4, size=600):
        warning.observe({"predicted quality": float(value)})
        warning.observe({"confidence": float(rng.beta(6, 4))})
    assert warning.shifted
    assert "Weaker sign" in warning.words()
    assert "predicted quality was 0.800" in warning.words()
    assert "confidence was" not in warning.words()
    warning.reset()
    assert "only feedback" in warning.words()


def test_a_warning_sees_a_rise_as_well():
    warning = ShiftWarning({"predicted quality": 0.6})
    for value in np.random.default_rng(13).beta(8, 2, size=300):
        warning.observe({"predicted quality": 1.2 if value > 0.95 else float(value)})
    assert warning.shifted


def test_figures_that_are_not_watched_are_refused():
    with pytest.raises(InputError, match="not watched"):
        ShiftWarning({"a": 0.5}).observe({"b": 0.5})
    with pytest.raises(InputError, match="at least one"):
        ShiftWarning({})


def test_figures_are_watched_alone_and_together_alike():
    rng = np.random.default_rng(14)
    both = ShiftWarning({"a": 0.4, "b": 0.7})
    alone = {name: Wealth(mean - 0.02, 0.01 / 4) for name, mean in both.stored.items()}
    for _ in range(200):
        values = {"a": float(rng.random()), "b": math.nan if rng.random() < 0.3 else 0.5}
        both.observe(values)
        for name, value in values.items():
            if not math.isnan(value):
                alone[name].observe(value)
        assert both.shifted == any(one.reached for one in alone.values())
    assert both.shifted


def test_a_policy_without_figures_is_not_watched():
    assert ShiftWarning.of_policy(SimpleNamespace(expected={})) is None
    figures = {"small": {"predicted_quality": 0.6}, "large": {"predicted_quality": 1.01}}
    found = ShiftWarning.of_policy(SimpleNamespace(expected={"queries": 900, "models": figures}))
    assert found is not None
    assert found.stored == {"small": 0.6, "large": 1.0}
    assert found.inputs == 900
