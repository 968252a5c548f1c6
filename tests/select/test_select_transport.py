import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.optimize import linear_sum_assignment
from select_strategies import make_scores
from torch.testing import assert_close

from pointsman.errors import RouteError
from pointsman.select import sparse_transport
from pointsman.select.transport import _columns

fast = settings(max_examples=25, deadline=None)


@fast
@given(
    st.integers(0, 2**31),
    st.integers(0, 9),
    st.integers(1, 5),
    st.integers(0, 3),
    st.sampled_from([0.01, 0.1, 1.0, 5.0]),
    st.sampled_from([0.0, 0.3]),
)
def test_the_limit_and_the_columns_are_exact(seed, inputs, branches, slack, gamma, holes):
    scores = make_scores(seed, inputs, branches, holes=holes)
    capacity = -(-inputs // branches) + slack
    route = sparse_transport(scores, max(capacity, 1), gamma).validate()
    assert (route.load() <= max(capacity, 1)).all()
    open_ = scores > -torch.inf
    mass = open_.any(1).sum() / branches
    assert_close(route.to_dense().sum(0), open_.any(0) * mass.double())
    assert (route.weights > 0).all()
    assert not (route.mask() & ~open_).any()


def test_without_a_limit_the_plan_is_quadratically_regularised_transport():
    scores, gamma = make_scores(0, 6, 3), 5.0
    plan = sparse_transport(scores, 6, gamma).to_dense()
    assert_close(plan.sum(1), torch.ones(6, dtype=torch.float64), atol=1e-3, rtol=0)
    # Optimality: where the plan is positive, scores - gamma * plan = row price + column price.
    slope = scores - gamma * plan
    inside = plan > 1e-6
    rows, columns = inside.nonzero().unbind(1)
    design = torch.zeros(len(rows), 9, dtype=torch.float64)
    design[torch.arange(len(rows)), rows] = 1
    design[torch.arange(len(rows)), 6 + columns] = 1
    prices = torch.linalg.lstsq(design, slope[inside].unsqueeze(1), driver="gelsd").solution
    assert_close(design @ prices, slope[inside].unsqueeze(1), atol=2e-3, rtol=0)
    everywhere = prices[:6] + prices[6:].T
    assert (slope[~inside] <= everywhere[~inside] + 2e-3).all()


def test_a_small_gamma_and_no_spare_room_give_the_best_assignment():
    scores = make_scores(3, 12, 4)
    route = sparse_transport(scores, 3, 0.01)
    assert route.load().tolist() == [3] * 4
    places = scores.repeat_interleave(3, dim=1)
    _, columns = linear_sum_assignment(places.numpy(), maximize=True)
    assert route.branches.tolist() == [int(c) // 3 for c in columns]
    assert_close(route.weights, torch.ones(12, dtype=torch.float64), atol=1e-3, rtol=0)


def test_permuting_inputs_permutes_the_plan_as_far_as_it_is_solved():
    scores = make_scores(5, 10, 3)
    order = torch.randperm(10, generator=torch.Generator().manual_seed(0))
    straight, permuted = sparse_transport(scores, 10), sparse_transport(scores[order], 10)
    assert_close(permuted.to_dense(), straight.to_dense()[order], atol=2e-3, rtol=0)


def test_the_gradient_is_exact_at_fixed_prices_and_leaves_column_sums_alone():
    raised = make_scores(1, 7, 3).requires_grad_()
    assert torch.autograd.gradcheck(lambda s: _columns(s, 4, 0.5), (raised,))
    scores = make_scores(2, 7, 3).requires_grad_()
    sparse_transport(scores, 4).to_dense().sum().backward()
    assert_close(scores.grad, torch.zeros_like(scores))


def test_one_branch_takes_everybody_with_weight_one():
    route = sparse_transport(make_scores(0, 5, 1), 5)
    assert_close(route.weights, torch.ones(5, dtype=torch.float64), atol=1e-6, rtol=0)


def test_what_cannot_be_solved_is_refused():
    scores = torch.randn(7, 3)
    with pytest.raises(RouteError, match="7 inputs and 3 branches need a capacity of at least 3"):
        sparse_transport(scores, 2)
    with pytest.raises(RouteError, match="capacity must be .* at least 1, got 0"):
        sparse_transport(scores, 0)
    with pytest.raises(RouteError, match="gamma must be a finite number above 0, got 0"):
        sparse_transport(scores, 3, 0)
