"""The run: what is decided is what is evaluated, mixed and paid for."""

import math
from dataclasses import replace
from itertools import pairwise

import pytest
import torch
from mixture_runs import CONDITIONAL, MIXTURE, PAIR, SCHEDULE, run, start
from torch.testing import assert_close

from pointsman.cost import Cost
from pointsman.errors import InputError, RouteError, UnitError
from pointsman.route import Route
from pointsman.steps.policies.guidance import Guided
from pointsman.steps.policies.plain import Always, Plan, Skipping
from pointsman.steps.samplers import DDIM, DDPM, DPMSolver, Euler, clean
from pointsman.steps.sampling import Evaluation, Settled, sample
from pointsman.steps.schedules import cosine, straight

SAMPLERS = [DDIM, DDPM, DPMSolver, Euler]


class Spied:
    """An evaluation that writes down how many samples came."""

    def __init__(self, cost=1.0):
        self.rows = []
        self.evaluation = Evaluation("spied", self.run, Cost(cost, "calls"))

    def run(self, x, t, condition):
        self.rows.append(len(x))
        return torch.zeros_like(x)


class Chosen:
    """A policy of one fixed route a step, which reuses predictions."""

    def __init__(self, *routes):
        self.routes = routes

    def choose(self, now, memory):
        return self.routes[now.step]

    def settle(self, now, computed, memory):
        prediction = replace(computed, earlier=memory).prediction()
        return Settled(prediction, prediction)


def test_guided_ddim_is_the_plain_loop():
    x, y = start()
    predict = MIXTURE.noise(SCHEDULE)
    times, expected = SCHEDULE.times(12), x
    for t, s in pairwise(times):
        without = predict(expected, t, None)
        epsilon = without + 3.0 * (predict(expected, t, y) - without)
        x_0 = (expected - SCHEDULE.noise(t) * epsilon) / SCHEDULE.signal(t)
        expected = SCHEDULE.signal(s) * x_0 + SCHEDULE.noise(s) * epsilon
    found = run(Guided(3.0))
    assert_close(found.x, expected)
    assert found.evaluations.tolist() == [24] * 6
    assert found.cost.amount.tolist() == [48.0] * 6
    assert found.cost.unit == "MFLOPs"


def test_only_the_rows_that_were_chosen_are_evaluated():
    one, two = Spied(1.0), Spied(10.0)
    x = torch.randn(4, 3)
    routes = [
        Route.from_indices(torch.tensor([[0, -1], [0, 1], [1, -1], [0, -1]]), num_branches=2),
        Route.from_indices(torch.tensor([[-1], [-1], [-1], [1]]), num_branches=2),
        Route.from_indices(torch.full((4, 1), -1), num_branches=2),
    ]
    found = sample(
        [one.evaluation, two.evaluation], Chosen(*routes), DDIM(SCHEDULE), x, (0.9, 0.6, 0.3, 0.0)
    )
    assert one.rows == [3]
    assert two.rows == [2, 1]
    assert found.evaluations.tolist() == [1, 2, 1, 2]
    assert found.cost.amount.tolist() == [1.0, 11.0, 10.0, 11.0]
    whole = found.route.validate()
    assert whole.num_inputs == 12
    assert whole.branches_per_input().tolist() == [1, 0, 0, 2, 0, 0, 1, 0, 0, 1, 1, 0]


def test_a_batch_gives_what_its_samples_give_alone():
    x, y = start(5)
    together = run(Guided(2.0), n=5).x
    for row in range(5):
        alone = sample(
            PAIR,
            Guided(2.0),
            DDIM(SCHEDULE),
            x[row : row + 1],
            SCHEDULE.times(12),
            condition=y[row : row + 1],
        )
        assert_close(alone.x[0], together[row])


@pytest.mark.parametrize("make", SAMPLERS)
@pytest.mark.parametrize("policy", [Always(), Guided(2.0), Plan([0, -1, 1, 0])])
def test_an_empty_batch_comes_out_empty(make, policy):
    found = run(policy, 4, n=0, sampler=make(SCHEDULE))
    assert found.x.shape == (0, 2)
    assert found.evaluations.shape == (0,)


@pytest.mark.parametrize("make", SAMPLERS)
def test_every_sampler_draws_from_the_mixture(make):
    generator = torch.Generator().manual_seed(0)
    found = run(Always(1), 60, n=2000, sampler=make(SCHEDULE), generator=generator).x
    share = MIXTURE.weights / MIXTURE.weights.sum()
    nearest = torch.cdist(found, MIXTURE.means).argmin(dim=1)
    assert_close(
        torch.bincount(nearest, minlength=3) / 2000, share.to(torch.float32), rtol=0, atol=0.06
    )
    assert_close(found.mean(0), share @ MIXTURE.means, rtol=0, atol=0.15)


@pytest.mark.parametrize(("make", "order"), [(DDIM, 1), (Euler, 1), (DPMSolver, 2)])
def test_solvers_have_their_order(make, order):
    # One Gaussian at spread 0.5, away from both ends of time.
    def at(steps):
        x = torch.tensor([[1.0, -0.5]], dtype=torch.float64)
        times = [0.8 - 0.5 * k / steps for k in range(steps + 1)]

        def noise(x, t, condition):
            alpha, sigma = SCHEDULE.signal(t), SCHEDULE.noise(t)
            return sigma * x / (0.25 * alpha**2 + sigma**2)

        return sample(
            [Evaluation("exact", noise, Cost(1.0, "calls"))], Always(), make(SCHEDULE), x, times
        ).x

    exact = at(2000)
    coarse, fine = ((at(k) - exact).norm() for k in (20, 80))
    assert math.log(coarse / fine, 4) == pytest.approx(order, abs=0.3)


def test_on_a_straight_schedule_ddim_is_euler():
    schedule = straight()
    x = torch.randn(4, 2, dtype=torch.float64)
    evaluation = Evaluation("exact", MIXTURE.noise(schedule), Cost(1.0, "calls"))
    both = [
        sample([evaluation], Always(), make(schedule), x, schedule.times(9)).x
        for make in (DDIM, Euler)
    ]
    assert_close(*both)


def test_a_deterministic_step_back_to_the_clean_sample_is_exact():
    x, epsilon = torch.randn(2, 3), torch.randn(2, 3)
    schedule = cosine()
    noisy = schedule.signal(0.4) * x + schedule.noise(0.4) * epsilon
    assert_close(clean(noisy, epsilon, 0.4, schedule), x)


def test_skipping_nothing_is_the_inner_policy_and_skipping_reuses():
    never = torch.zeros(12, dtype=torch.bool)
    assert torch.equal(run(Skipping(Guided(2.0), never)).x, run(Guided(2.0)).x)
    some = torch.zeros(6, 12, dtype=torch.bool)
    some[0, 3], some[2, 5:8] = True, True
    found = run(Skipping(Guided(2.0), some))
    assert found.evaluations.tolist() == [22, 24, 18, 24, 24, 24]
    others = [1, 3, 4, 5]
    assert_close(found.x[others], run(Guided(2.0)).x[others])
    everybody = torch.zeros(12, dtype=torch.bool)
    everybody[4] = True
    plan = Plan([0] * 4 + [-1] + [0] * 7)
    assert torch.equal(run(Skipping(Always(), everybody)).x, run(plan).x)


def test_the_path_is_kept_on_demand():
    x, _ = start()
    path = run(Always(), 5, keep_path=True).path
    assert len(path) == 6
    assert torch.equal(path[0], x)
    assert run(Always(), 5).path == ()


def test_bad_input_is_refused():
    x, _ = start()
    sampler, calls = DDIM(SCHEDULE), Spied().evaluation
    with pytest.raises(InputError, match="at least one evaluation"):
        sample([], Always(), sampler, x, (1, 0))
    with pytest.raises(InputError, match="at least two and fall"):
        sample([calls], Always(), sampler, x, (0.5, 0.5))
    with pytest.raises(InputError, match="got 3 for 6 samples"):
        sample([calls], Always(), sampler, x, (0.5, 0), condition=torch.zeros(3))
    with pytest.raises(UnitError, match="one unit"):
        sample([calls, CONDITIONAL], Always(), sampler, x, (0.5, 0))
    with pytest.raises(RouteError, match="sample 0 left out"):
        sample([calls], Plan([-1]), sampler, x, (0.5, 0))
    with pytest.raises(InputError, match="one entry per step, got 2 for 1"):
        sample([calls], Plan([0, 0]), sampler, x, (0.5, 0))
    with pytest.raises(InputError, match="got 1 at step 0"):
        sample([calls], Plan([1]), sampler, x, (0.5, 0))
    with pytest.raises(InputError, match="a mask of steps"):
        sample([calls], Skipping(Always(), torch.zeros(3)), sampler, x, (0.5, 0))
    wrong = Evaluation("wrong", lambda x, t, c: x[:1], Cost(1.0, "calls"))
    with pytest.raises(InputError, match="'wrong' predicts one row per sample"):
        sample([wrong], Always(), sampler, x, (0.5, 0))
    with pytest.raises(RouteError, match="6 samples over 1 evaluations, got 2 and 1"):
        bad = Route.from_indices(torch.zeros(2, 1, dtype=torch.int64), num_branches=1)
        sample([calls], Chosen(bad), sampler, x, (0.5, 0))
