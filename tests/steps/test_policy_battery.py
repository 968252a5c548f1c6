"""What every policy keeps, whatever it decides."""

import math

import pytest
import torch
from mixture_runs import PAIR, SCHEDULE, start
from torch.testing import assert_close

from pointsman.steps.policies.caching import WhenChanged
from pointsman.steps.policies.guidance import AdaptiveGuidance, Guided
from pointsman.steps.policies.linear_guidance import LinearGuidance
from pointsman.steps.policies.plain import Always, Plan, Skipping
from pointsman.steps.policies.stability import StabilityGuided
from pointsman.steps.samplers import DDIM, DPMSolver
from pointsman.steps.sampling import Evaluation, sample

STEPS = 16
SOME = torch.arange(STEPS) % 3 == 2


def linear():
    x, y = start(8, seed=9)
    policy = LinearGuidance(2.0)
    return policy.fit(PAIR, DDIM(SCHEDULE), x, SCHEDULE.times(STEPS), condition=y)


POLICIES = {
    "always": Always(),
    "plan": Plan([0, -1, 1, 1] * 4),
    "guided": Guided(2.0, ~SOME),
    "adaptive guidance": AdaptiveGuidance(2.0, 0.999),
    "linear guidance": linear(),
    "skipping": Skipping(AdaptiveGuidance(2.0, 0.999), SOME),
    "stability": StabilityGuided(SCHEDULE, first=4),
    "stability of guided": StabilityGuided(
        SCHEDULE, AdaptiveGuidance(2.0, 0.99), first=4, late=11, interval=2
    ),
    "when changed": WhenChanged(),
}


def run(name, x, y, solver=DDIM, evaluations=PAIR):
    times = SCHEDULE.times(STEPS)
    return sample(evaluations, POLICIES[name], solver(SCHEDULE), x, times, condition=y)


@pytest.mark.parametrize("name", POLICIES)
def test_samples_do_not_touch_one_another(name):
    x, y = start(7)
    whole, order = run(name, x, y), torch.tensor([3, 0, 6, 2, 1, 5, 4])
    moved = run(name, x[order], y[order])
    assert_close(moved.x, whole.x[order])
    assert moved.evaluations.tolist() == whole.evaluations[order].tolist()
    alone = run(name, x[2:3], y[2:3])
    assert_close(alone.x[0], whole.x[2])
    assert alone.evaluations.tolist() == whole.evaluations[2:3].tolist()


@pytest.mark.parametrize("name", POLICIES)
def test_a_policy_holds_nothing_about_a_run(name):
    x, y = start(5)
    first = run(name, x, y)
    run(name, *start(3, seed=4))
    again = run(name, x, y)
    assert torch.equal(first.x, again.x)
    assert torch.equal(first.evaluations, again.evaluations)


@pytest.mark.parametrize("name", POLICIES)
def test_an_empty_batch_comes_out_empty(name):
    found = run(name, *start(0))
    assert found.x.shape == (0, 2)
    assert found.cost.amount.shape == (0,)


@pytest.mark.parametrize("name", POLICIES)
def test_the_type_of_the_samples_is_kept(name):
    def single(evaluation):
        def narrow(x, t, y):
            return evaluation.run(x.double(), t, y).float()

        return Evaluation(evaluation.name, narrow, evaluation.cost)

    x, y = start(4)
    found = run(name, x.float(), y, evaluations=[single(e) for e in PAIR])
    assert found.x.dtype == torch.float32
    assert bool(found.x.isfinite().all())


@pytest.mark.parametrize("name", POLICIES)
def test_what_ran_is_what_is_paid(name):
    calls = []

    def counted(evaluation):
        def counting(x, t, y):
            calls.append(len(x))
            return evaluation.run(x, t, y)

        return Evaluation(evaluation.name, counting, evaluation.cost)

    x, y = start(6)
    found = run(name, x, y, DPMSolver, [counted(e) for e in PAIR])
    assert sum(calls) == int(found.evaluations.sum())
    assert math.isclose(float(found.cost.sum()), 2.0 * sum(calls))
    found.route.validate()
