"""Soft sorting and the losses of ranking cascades: limits, bounds, gradients, refusals."""

import pytest
import torch
from torch.nn.functional import one_hot
from torch.testing import assert_close

from pointsman.errors import InputError
from pointsman.learn.ranking import CascadeLosses, neural_sort, soft_sort, top_q_probability

SORTS = [neural_sort, soft_sort]


def scores(queries=3, count=6, seed=0):
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(queries, count, generator=generator).double()


@pytest.mark.parametrize("sort", SORTS)
def test_rows_sum_to_one_and_cold_ones_are_the_sorted_order(sort):
    s = scores()
    assert_close(sort(s, temperature=0.7).sum(dim=2), torch.ones(3, 6).double())
    order = s.argsort(dim=1, descending=True)
    assert_close(sort(s, temperature=1e-4), one_hot(order, 6).double())


@pytest.mark.parametrize("sort", SORTS)
def test_candidates_can_be_listed_in_any_order(sort):
    s, order = scores(), torch.tensor([3, 1, 5, 0, 4, 2])
    assert_close(sort(s[:, order]), sort(s)[:, :, order])


@pytest.mark.parametrize("sort", SORTS)
def test_the_most_likely_candidate_of_each_place_is_the_sorted_one(sort):
    s = scores(20)
    found = sort(s, temperature=0.5).argmax(dim=2)
    assert torch.equal(found, s.argsort(dim=1, descending=True))


@pytest.mark.parametrize("sort", SORTS)
def test_top_q_probability_lies_in_zero_to_one_and_grows_with_q(sort):
    soft = sort(scores(), temperature=2.0)
    each = torch.stack([top_q_probability(soft, q) for q in range(1, 7)])
    assert (each >= 0).all()
    assert (each.diff(dim=0) >= 0).all()
    assert_close(each[-1], torch.ones(3, 6).double())


def test_cold_top_q_probability_is_who_is_among_the_q_best():
    s = scores()
    found = top_q_probability(neural_sort(s, temperature=1e-4), 2)
    wanted = torch.zeros_like(s).scatter(1, s.topk(2, dim=1).indices, 1.0)
    assert_close(found, wanted)


@pytest.mark.parametrize("sort", SORTS)
def test_gradients_are_right(sort):
    s = scores(2, 4).requires_grad_()
    assert torch.autograd.gradcheck(lambda x: sort(x, temperature=0.8), s)


def test_the_stages_losses_are_minus_log_top_q_of_the_relevant():
    losses = CascadeLosses([3, 1], temperature=(1.0, 2.0))
    one, two = scores(seed=1), scores(seed=2)
    relevant = scores(seed=3) > 0
    whole, first, second = losses.parts([one, two], relevant)
    p = top_q_probability(neural_sort(one, temperature=1.0), 3)
    q = top_q_probability(neural_sort(two, temperature=2.0), 1)
    assert_close(first, -p.log()[relevant].mean())
    assert_close(second, -q.log()[relevant].mean())
    both = torch.nn.functional.binary_cross_entropy(p * q, relevant.double())
    assert_close(whole, both)
    assert_close(losses([one, two], relevant), (whole + first + second) / 2)


def test_end_to_end_alone_is_one_part():
    losses = CascadeLosses([3, 1], alone=False)
    parts = losses.parts([scores(), scores(seed=1)], scores(seed=2) > 0)
    assert parts.shape == (1,)
    assert losses.log_scale.shape == (1,)


def test_scales_learn_and_at_their_best_a_part_weighs_by_its_inverse():
    losses = CascadeLosses([2]).double()
    s, relevant = scores(), scores(seed=1) > 0
    parts = losses.parts([s], relevant)
    with torch.no_grad():
        losses.log_scale.copy_(parts.log() / 2)  # where the derivative by s_k is zero
    losses([s], relevant).backward()
    assert_close(losses.log_scale.grad, torch.zeros(2).double(), atol=1e-9, rtol=0)


def test_losses_stay_finite_with_hopeless_and_certain_stages():
    sure = 1e4 * torch.arange(6.0).double().expand(3, 6)
    relevant = torch.zeros(3, 6, dtype=torch.bool)
    relevant[:, 0] = True  # the last of all
    for wrong in (relevant, ~relevant, torch.zeros_like(relevant)):
        s = sure.clone().requires_grad_()
        loss = CascadeLosses([2, 2])([s, s], wrong)
        loss.backward()
        assert loss.isfinite()
        assert s.grad.isfinite().all()


def test_training_both_stages_finds_what_is_relevant():
    target = torch.arange(6).expand(3, 6) < 2
    stages = [torch.nn.Parameter(scores(seed=at)) for at in range(2)]
    losses = CascadeLosses([4, 2]).double()
    optimiser = torch.optim.Adam([*stages, *losses.parameters()], 0.1)
    for _ in range(60):
        optimiser.zero_grad()
        losses(stages, target).backward()
        optimiser.step()
    for stage, q in zip(stages, (4, 2), strict=True):
        kept = stage.topk(q, dim=1).indices
        assert ((kept == 0).any(dim=1) & (kept == 1).any(dim=1)).all()


def test_what_does_not_fit_is_refused():
    s, relevant = scores(), scores() > 0
    for bad in (torch.zeros(3), torch.zeros(2, 0), torch.zeros(2, 3, dtype=torch.int64)):
        with pytest.raises(InputError, match="with at least one candidate"):
            neural_sort(bad)
    with pytest.raises(InputError, match="temperature is above 0"):
        soft_sort(s, temperature=0.0)
    with pytest.raises(InputError, match="keeps 1 to all 6"):
        top_q_probability(neural_sort(s), 7)
    for keep in ([], [2, 3], [0]):
        with pytest.raises(InputError, match="fewer and fewer"):
            CascadeLosses(keep)
    with pytest.raises(InputError, match="a temperature each"):
        CascadeLosses([2, 1], temperature=(1.0,))
    losses = CascadeLosses([3, 1])
    with pytest.raises(InputError, match="2 stages score, got 1"):
        losses([s], relevant)
    with pytest.raises(InputError, match="one shape"):
        losses([s, s], relevant[:2])
    with pytest.raises(InputError, match="bool table"):
        losses([s, s], relevant.double())
