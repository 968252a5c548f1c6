import math

import pytest
import torch
from torch.testing import assert_close

from pointsman.errors import InputError
from pointsman.steps.schedules import cosine, linear, straight

SCHEDULES = {"linear": linear(), "cosine": cosine(), "straight": straight()}


@pytest.mark.parametrize("name", SCHEDULES)
def test_slopes_are_those_of_signal_and_noise(name):
    schedule, h = SCHEDULES[name], 1e-5
    for t in (0.05, 0.4, 0.9):
        for value, slope in (
            (schedule.signal, schedule.signal_slope),
            (schedule.noise, schedule.noise_slope),
        ):
            numeric = (value(t + h) - value(t - h)) / (2 * h)
            assert math.isclose(slope(t), numeric, rel_tol=1e-5)


@pytest.mark.parametrize("name", SCHEDULES)
def test_signal_falls_from_one_and_noise_rises_from_zero(name):
    schedule = SCHEDULES[name]
    times = schedule.times(20)
    assert len(times) == 21
    assert times[-1] == 0
    assert schedule.signal(0.0) == 1
    assert schedule.noise(0.0) == 0
    assert schedule.log_snr(0.0) == math.inf
    ratios = [schedule.log_snr(t) for t in times[:-1]]
    assert ratios == sorted(ratios)
    assert 0 < schedule.signal(times[0]) < 0.02


@pytest.mark.parametrize("name", ["linear", "cosine"])
def test_variance_is_preserved(name):
    schedule = SCHEDULES[name]
    for t in (0.0, 0.1, 0.7, 0.99):
        assert math.isclose(schedule.signal(t) ** 2 + schedule.noise(t) ** 2, 1)


def test_many_times_at_once_are_the_same_as_one_by_one():
    t = torch.tensor([0.1, 0.6])
    signal, noise = linear().signal_and_noise(t, torch.zeros(2, 3, 4))
    assert signal.shape == noise.shape == (2, 1, 1)
    assert_close(signal[:, 0, 0], torch.tensor([linear().signal(at) for at in (0.1, 0.6)]).float())


def test_the_linear_schedule_is_the_limit_of_a_thousand_small_steps():
    rates = torch.linspace(1e-4, 0.02, 1000, dtype=torch.float64)
    kept = (1 - rates).log().cumsum(0).exp().sqrt()
    for step in (99, 499, 999):
        assert math.isclose(linear().signal((step + 1) / 1000), float(kept[step]), rel_tol=0.05)


def test_bad_input_is_refused():
    with pytest.raises(InputError, match="0 < low <= high, got 2 and 1"):
        linear(2, 1)
    with pytest.raises(InputError, match="at least 0, got -1"):
        cosine(-1)
    with pytest.raises(InputError, match="at least one step, got 0"):
        linear().times(0)
