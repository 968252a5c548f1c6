"""Stochastic estimators against the true gradient of an expectation, on a toy that is enumerable.

One input has E branches, and a choice of branches costs what a table says.
"""

from itertools import permutations

import pytest
import torch
from torch import Tensor
from torch.testing import assert_close

from pointsman.errors import InputError
from pointsman.learn import (
    gumbel_straight_through,
    leave_one_out,
    log_prob_without_replacement,
    sparsemixer,
)
from pointsman.route import Route
from pointsman.select import categorical, gumbel

E = 4
SCORES = torch.tensor([0.9, -0.3, 0.4, -1.1], dtype=torch.float64)


def ordered_draws(scores: Tensor, k: int) -> tuple[Route, Tensor]:
    """Every ordered draw of k branches, one a row, and its probability by hand."""
    draws = list(permutations(range(E), k))
    probability = scores.softmax(0)
    chances = []
    for draw in draws:
        chance, left = torch.ones((), dtype=scores.dtype), torch.ones((), dtype=scores.dtype)
        for branch in draw:
            chance, left = chance * probability[branch] / left, left - probability[branch]
        chances.append(chance)
    return Route.from_indices(torch.tensor(draws), num_branches=E), torch.stack(chances)


@pytest.mark.parametrize("k", [1, 2, 3, 4])
def test_probabilities_of_ordered_draws_are_exact_and_sum_to_one(k: int) -> None:
    route, chances = ordered_draws(SCORES, k)
    rows = SCORES.expand(route.num_inputs, E)
    assert_close(log_prob_without_replacement(rows, route).exp(), chances)
    assert_close(chances.sum(), torch.ones((), dtype=torch.float64))


def test_probabilities_of_draws_pass_gradcheck_and_know_gaps() -> None:
    generator = torch.Generator().manual_seed(0)
    scores = torch.randn(4, E, generator=generator, dtype=torch.float64)
    scores[1, 2:] = -torch.inf
    scores[2] = -torch.inf
    route = categorical(scores, 3, generator=generator)
    assert route.branches_per_input().tolist() == [3, 2, 0, 3]
    scores.requires_grad_()
    log = log_prob_without_replacement(scores, route)
    assert log[2] == 0
    log.sum().backward()
    assert scores.grad is not None
    assert scores.grad.isfinite().all()
    inner = scores.detach()[[0, 3]].requires_grad_()
    part = Route.from_indices(torch.tensor([[2, 0, 1], [3, 1, -1]]), num_branches=E)
    assert torch.autograd.gradcheck(lambda s: log_prob_without_replacement(s, part), (inner,))


def test_leave_one_out_has_the_true_gradient_as_its_expectation() -> None:
    scores = SCORES.clone().requires_grad_()
    route, chances = ordered_draws(scores, 2)
    costs = torch.randn(len(chances), generator=torch.Generator().manual_seed(5)).double()
    (true,) = torch.autograd.grad((chances * costs).sum(), scores)
    log = log_prob_without_replacement(scores.expand(len(chances), E), route)
    for together in (2, 3):
        drawn = torch.cartesian_prod(*[torch.arange(len(chances))] * together)
        chance = chances.detach()[drawn].prod(1)
        advantage = costs[drawn] - costs[drawn].mean(1, keepdim=True)
        surrogate = (chance[:, None] * advantage * log[drawn]).sum() / (together - 1)
        (expected,) = torch.autograd.grad(surrogate, scores, retain_graph=True)
        assert_close(expected, true)
        one = leave_one_out(costs[drawn[7]], log[drawn[7]])  # as the function has it
        assert_close(one, (advantage[7] * log[drawn[7]]).sum() / (together - 1))


def test_leave_one_out_sums_over_decisions_and_stops_gradients_into_losses() -> None:
    generator = torch.Generator().manual_seed(0)
    losses = torch.randn(3, 5, generator=generator).requires_grad_()
    log = torch.randn(3, 5, generator=generator).requires_grad_()
    value = leave_one_out(losses, log)
    assert_close(value, sum(leave_one_out(losses[:, t], log[:, t]) for t in range(5)))
    value.backward()
    assert losses.grad is None
    assert log.grad is not None
    assert_close(log.grad.sum(0), torch.zeros(5))
    assert_close(leave_one_out(losses + 9.0, log), value)
    with pytest.raises(InputError, match=r"two draws at least, got \(1,\)"):
        leave_one_out(torch.ones(1), torch.ones(1))
    with pytest.raises(InputError, match=r"got \(3,\) and \(2,\)"):
        leave_one_out(torch.ones(3), torch.ones(2))


@pytest.mark.parametrize(("degree", "exact"), [(1, True), (2, True), (3, True), (5, False)])
def test_sparsemixer_expects_the_sampling_gradient_up_to_cubics(degree: int, exact: bool) -> None:
    """Outcomes come from draws; their chances are put in exactly, and their counts checked."""
    rows = 40_000
    scores = SCORES.expand(rows, E).clone().requires_grad_()
    generator = torch.Generator().manual_seed(1)
    route = sparsemixer(scores, 1, eps=torch.inf, spare_best=False, generator=generator)
    strength = torch.tensor([1.3, -0.7, 0.4, 2.0], dtype=torch.float64)[route.branches]
    loss = (strength * route.weights) ** degree + strength * route.weights
    (grad,) = torch.autograd.grad(loss.sum(), scores)
    probability = SCORES.softmax(0)
    whole = route.weights.detach() > 0.5 * probability[route.branches]
    expected = torch.zeros(E, dtype=torch.float64)
    for branch in range(E):
        for is_whole, share in ((True, 0.25), (False, 0.75)):
            same = (route.branches == branch) & (whole == is_whole)
            chance = float(probability[branch]) * share
            assert abs(int(same.sum()) - rows * chance) < 4 * (rows * chance) ** 0.5
            assert_close(grad[same], grad[same][:1].expand(int(same.sum()), E))
            expected += chance * grad[same][0]
    theta = SCORES.clone().requires_grad_()
    sampled = theta.softmax(0)
    strengths = torch.tensor([1.3, -0.7, 0.4, 2.0], dtype=torch.float64) * probability
    (true,) = torch.autograd.grad((sampled * (strengths**degree + strengths)).sum(), theta)
    assert torch.allclose(expected, true, rtol=0, atol=1e-12) == exact


def test_gumbel_straight_through_expects_what_a_gumbel_draw_gives() -> None:
    rows = 60_000
    value = torch.tensor([1.0, -2.0, 0.5, 3.0], dtype=torch.float64)
    means = []
    for k in (1, 2):
        scores = SCORES.expand(rows, E).clone().requires_grad_()
        generator = torch.Generator().manual_seed(0)
        straight = gumbel(scores, k, temperature=0.7, generator=generator)
        route = categorical(scores.detach(), k, generator=generator)
        later = gumbel_straight_through(scores, route, temperature=0.7, generator=generator)
        for found in (straight, later):
            (grad,) = torch.autograd.grad((found.weights * value[found.branches]).sum(), scores)
            means.append((grad.mean(0), grad.std(0) / rows**0.5))
    for (a, error), (b, _) in (means[:2], means[2:]):
        assert ((a - b).abs() < 4 * 2**0.5 * error + 1e-6).all()


def test_more_draws_of_gumbel_noise_leave_the_mean_and_lower_the_variance() -> None:
    rows = 20_000
    scores = SCORES.expand(rows, E).clone().requires_grad_()
    route = categorical(scores.detach(), 1, generator=torch.Generator().manual_seed(2))
    found = []
    for draws in (1, 8):
        generator = torch.Generator().manual_seed(3)
        later = gumbel_straight_through(scores, route, draws=draws, generator=generator)
        value = torch.arange(4.0, dtype=torch.float64)[route.branches]
        (grad,) = torch.autograd.grad((later.weights * value).sum(), scores)
        found.append((grad.mean(0), grad.var(0)))
    assert ((found[0][0] - found[1][0]).abs() < 4 * (2 * found[0][1] / rows).sqrt()).all()
    assert (found[1][1] < 0.95 * found[0][1]).all()
