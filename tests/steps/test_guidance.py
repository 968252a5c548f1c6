"""Guidance that ends, and guidance that is estimated."""

import pytest
import torch
from mixture_runs import PAIR, SCHEDULE, run, start
from torch.testing import assert_close

from pointsman.errors import InputError
from pointsman.steps.policies.guidance import AdaptiveGuidance, Guided, disagreement
from pointsman.steps.policies.linear_guidance import LinearGuidance
from pointsman.steps.policies.plain import Always, Skipping
from pointsman.steps.samplers import DDIM
from pointsman.steps.sampling import Evaluation, sample


def test_a_threshold_above_one_never_ends_guidance():
    assert torch.equal(run(AdaptiveGuidance(3.0, 1.1)).x, run(Guided(3.0)).x)


def test_guidance_ends_sample_by_sample_where_the_cosine_is_reached():
    found = run(AdaptiveGuidance(3.0, 0.99, first=3), 20)
    counts = found.evaluations
    assert len(set(counts.tolist())) > 1
    full = run(Guided(3.0), 20, keep_path=True)
    y = start()[1]
    for row, spent in enumerate(counts.tolist()):
        before = None
        for step, x in enumerate(full.path[:-1]):
            t = SCHEDULE.times(20)[step]
            with_, without = (e.run(x[row : row + 1], t, y[row : row + 1]) for e in PAIR)
            gap = float(disagreement(with_, without))
            if step >= 3 and gap < 1 - 0.99 and gap < before:
                break
            before = gap
        assert spent == 20 + min(step + 1, 20)


def test_the_first_crossing_at_high_noise_does_not_count_unless_asked():
    assert int(run(AdaptiveGuidance(3.0, 0.99, rising=False), 20).evaluations.max()) <= 22
    assert int(run(AdaptiveGuidance(3.0, 0.99), 20).evaluations.min()) > 22
    early = run(AdaptiveGuidance(3.0, -1.1, first=4, rising=False), 20)
    assert early.evaluations.tolist() == [25] * 6


def test_guidance_at_some_steps_only():
    first = torch.arange(12) < 5
    assert run(Guided(2.0, first)).evaluations.tolist() == [17] * 6
    assert torch.equal(run(Guided(2.0, ~first & first)).x, run(Always(0)).x)
    assert_close(run(Guided(0.0)).x, run(Always(1)).x)


def test_adaptive_guidance_may_be_skipped_too():
    mask = torch.zeros(12, dtype=torch.bool)
    mask[6] = True
    found = run(Skipping(AdaptiveGuidance(3.0, 1.1), mask))
    assert found.evaluations.tolist() == [22] * 6


def test_disagreement_keeps_its_digits_where_the_cosine_is_one():
    a = torch.randn(3, 50)
    b = a + 1e-5 * torch.randn(3, 50)
    exact = 1 - torch.nn.functional.cosine_similarity(a.double(), b.double(), dim=1)
    assert_close(disagreement(a, b).double(), exact, rtol=0.05, atol=0)
    assert_close(disagreement(a, -a), torch.full((3,), 2.0))


def test_a_linear_unconditional_prediction_is_found_exactly():
    """eps_0 is a fixed mixture of this step's and the last step's conditional prediction."""

    class Remembering:
        def __init__(self):
            self.before = None

        def having(self, x, t, condition):
            self.now = torch.sin(3 * t + x)
            return self.now

        def without(self, x, t, condition):
            found = self.now * 0.7 + (0 if self.before is None else 0.2 * self.before)
            self.before = self.now
            return found

    def evaluations():
        net, cost = Remembering(), PAIR[0].cost
        return [Evaluation("c", net.having, cost), Evaluation("u", net.without, cost)]

    x, _ = start()
    times, sampler = SCHEDULE.times(6), DDIM(SCHEDULE)
    policy = LinearGuidance(2.0, estimated=(2, 4), last=6).fit(evaluations(), sampler, x, times)
    assert max(policy.residual_) < 1e-20

    def guided():
        watching = evaluations()
        watching[1] = Evaluation("u", _always_both(watching), watching[1].cost)
        return watching

    def _always_both(pair):
        return pair[1].run

    full = sample(guided(), Guided(2.0), sampler, x, times)
    # An estimated step leaves `before` of the toy behind by one: only its first use is exact.
    once = LinearGuidance(2.0, estimated=(5,), last=6).fit(evaluations(), sampler, x, times)
    found = sample(evaluations(), once, sampler, x, times)
    assert found.evaluations.tolist() == [11] * 6
    assert_close(found.x, full.x)


def test_linear_guidance_that_estimates_nothing_is_guidance():
    x, y = start()
    policy = LinearGuidance(2.0, (), 12)
    policy.fit(PAIR, DDIM(SCHEDULE), x, SCHEDULE.times(12), condition=y)
    assert_close(run(policy).x, run(Guided(2.0)).x, rtol=0, atol=0)
    default = LinearGuidance(2.0).fit(PAIR, DDIM(SCHEDULE), x, SCHEDULE.times(12), condition=y)
    assert run(default).evaluations.tolist() == [15] * 6


def test_bad_input_is_refused():
    with pytest.raises(InputError, match="a cosine and a step"):
        AdaptiveGuidance(2.0, float("nan"))
    with pytest.raises(InputError, match="two different evaluations"):
        run(Guided(2.0, conditional=1))
    with pytest.raises(InputError, match="a mask of steps"):
        run(Guided(2.0, torch.ones(3, dtype=torch.bool)))
    with pytest.raises(InputError, match="call fit first"):
        run(LinearGuidance(2.0))
    x, y = start()
    fitted = LinearGuidance(2.0).fit(PAIR, DDIM(SCHEDULE), x, SCHEDULE.times(5), condition=y)
    with pytest.raises(InputError, match="fitted for 5 steps, got a run of 12"):
        run(fitted)
    with pytest.raises(InputError, match="replaces the conditions"):
        sample(PAIR, Always(1), DDIM(SCHEDULE), x, (0.5, 0))
