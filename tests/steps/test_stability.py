"""Skipping by stability: limits, counts, and the two extrapolations."""

import math

import pytest
import torch
from mixture_runs import MIXTURE, PAIR, SCHEDULE, run
from torch.testing import assert_close

from pointsman.cost import Cost
from pointsman.errors import InputError
from pointsman.steps.policies.guidance import Guided
from pointsman.steps.policies.plain import Always
from pointsman.steps.policies.stability import (
    ADAMS_BASHFORTH,
    PUBLISHED,
    StabilityGuided,
    lagrange,
)
from pointsman.steps.samplers import DDIM, DPMSolver
from pointsman.steps.sampling import Evaluation, sample


def skipped(found):
    return torch.stack([route.dropped() for route in found.routes], dim=1)


@pytest.mark.parametrize("make", [DDIM, DPMSolver])
def test_never_stable_is_the_base_sampler_bit_for_bit(make):
    sampler = make(SCHEDULE)
    policy = StabilityGuided(SCHEDULE, Guided(2.0), limit=-math.inf)
    assert torch.equal(run(policy, 20, sampler=sampler).x, run(Guided(2.0), 20, sampler=sampler).x)


def test_always_stable_leaves_out_all_it_may():
    found = run(StabilityGuided(SCHEDULE, first=5, last=17, most=3, limit=1.0), 20)
    rows = skipped(found).int().tolist()
    expected = [0] * 5 + [1, 1, 1, 0] * 3 + [0] * 3
    assert rows == [expected] * 6
    assert found.evaluations.tolist() == [20 - sum(expected)] * 6
    assert found.cost.amount.tolist() == [2.0 * (20 - sum(expected))] * 6
    guided = run(StabilityGuided(SCHEDULE, Guided(2.0), first=5, last=17, most=3, limit=1.0), 20)
    assert guided.evaluations.tolist() == [2 * (20 - sum(expected))] * 6


def test_samples_decide_one_by_one():
    found = run(StabilityGuided(SCHEDULE), 50, n=20)
    assert len(set(found.evaluations.tolist())) > 1
    assert int(skipped(found)[:, :10].sum()) == 0
    alone = sample(
        PAIR,
        StabilityGuided(SCHEDULE),
        DDIM(SCHEDULE),
        torch.randn(20, 2, generator=torch.Generator().manual_seed(0), dtype=torch.float64)[3:4],
        SCHEDULE.times(50),
        condition=torch.tensor([1]),
    )
    assert_close(alone.x[0], found.x[3])


def test_a_skipped_step_uses_the_last_noise_at_the_extrapolated_state():
    times = SCHEDULE.times(8)
    found = run(StabilityGuided(SCHEDULE, first=4, last=5, limit=1.0), 8, keep_path=True)
    plain = run(Always(), 8, keep_path=True)
    assert_close(found.path[4], plain.path[4])
    y = torch.arange(6) % 2
    noise = [PAIR[0].run(plain.path[k], times[k], y) for k in range(4)]
    slopes = []
    for k in (3, 2, 1):
        t, x, epsilon = times[k], plain.path[k], noise[k]
        x_0 = (x - SCHEDULE.noise(t) * epsilon) / SCHEDULE.signal(t)
        slopes.append(SCHEDULE.signal_slope(t) * x_0 + SCHEDULE.noise_slope(t) * epsilon)
    moved = sum(w * f for w, f in zip(PUBLISHED, slopes, strict=True))
    expected = plain.path[3] - (times[3] - times[4]) * moved
    x_0 = (expected - SCHEDULE.noise(times[4]) * noise[3]) / SCHEDULE.signal(times[4])
    after = SCHEDULE.signal(times[5]) * x_0 + SCHEDULE.noise(times[5]) * noise[3]
    assert_close(found.path[5], after)


def test_the_orders_of_the_extrapolations():
    """Moments of the weights at 0, 1 and 2 steps back: 1, 1/2, 1/3 with alternating sign."""

    def moments(weights):
        return [sum(w * (-j) ** k for j, w in enumerate(weights)) for k in range(3)]

    assert moments(PUBLISHED)[0] == pytest.approx(1)
    assert moments(PUBLISHED)[1] == pytest.approx(0)  # first order only, as published
    assert moments(ADAMS_BASHFORTH) == pytest.approx([1, 1 / 2, 1 / 3])


def test_the_polynomial_is_exact_for_cubics_of_each_sample():
    generator = torch.Generator().manual_seed(0)
    times = torch.rand(4, 3, generator=generator, dtype=torch.float64)
    factors = torch.randn(4, 3, 2, generator=generator, dtype=torch.float64)

    def cubic(t):
        return sum(factors[k] * t[..., None] ** k for k in range(4))

    values = torch.stack([cubic(row) for row in times])
    assert_close(lagrange(values, times, 1.3), cubic(torch.full((3,), 1.3, dtype=torch.float64)))


def test_the_late_phase_is_exact_where_the_clean_sample_is_a_cubic_in_time():
    def clean(t):
        return torch.tensor([[1.0 + 2 * t - t**2, t**3 - 0.5]], dtype=torch.float64)

    def noise(x, t, condition):
        return (x - SCHEDULE.signal(t) * clean(t)) / SCHEDULE.noise(t)

    evaluation = Evaluation("cubic", noise, Cost(1.0, "calls"))
    x, times = torch.randn(5, 2, dtype=torch.float64), SCHEDULE.times(30)
    policy = StabilityGuided(SCHEDULE, first=5, late=10, limit=-math.inf)
    found = sample([evaluation], policy, DDIM(SCHEDULE), x, times)
    assert_close(found.x, sample([evaluation], Always(), DDIM(SCHEDULE), x, times).x)
    due = [step for step in range(30) if step < 10 or (step - 10) % 4 == 0 or step == 29]
    assert found.evaluations.tolist() == [len(due)] * 5


def test_skipping_little_stays_near_the_base_sampler():
    base = run(Always(), 50, n=30)
    found = run(StabilityGuided(SCHEDULE, weights=ADAMS_BASHFORTH, most=1), 50, n=30)
    assert int(found.evaluations.min()) < 50
    assert float((found.x - base.x).norm(dim=1).median()) < 0.1
    assert bool(torch.isfinite(MIXTURE.log_density(found.x)).all())


def test_bad_input_is_refused():
    with pytest.raises(InputError, match="at least 1, got 0, 4 and 4"):
        StabilityGuided(SCHEDULE, interval=0)
    with pytest.raises(InputError, match="leave x as it is"):
        run(StabilityGuided(SCHEDULE, StabilityGuided(SCHEDULE)), 5)
