import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch.testing import assert_close

from pointsman.learn import equal_weights, rectified_straight_through, straight_through
from pointsman.select import rectified, top_k

fast = settings(max_examples=25, deadline=None)


def drawn(seed: int, inputs: int = 6, branches: int = 5) -> torch.Tensor:
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(inputs, branches, generator=generator, dtype=torch.float64)


@fast
@given(st.integers(0, 2**31), st.integers(1, 5), st.booleans())
def test_the_rectified_rule_is_a_softmax_over_all_by_a_constant(
    seed: int, k: int, renormalize: bool
) -> None:
    scores = drawn(seed).requires_grad_()
    route = top_k(scores, k, renormalize=renormalize)
    found = rectified_straight_through(scores, route).weights
    probability = scores.softmax(1)[route.inputs, route.branches]
    total = probability.detach().reshape(6, k).sum(1, keepdim=True)
    by_hand = (probability.reshape(6, k) / total).reshape(-1)
    assert_close(found, by_hand)
    probe = drawn(seed + 1, 1, len(found))[0]
    (a,) = torch.autograd.grad((found * probe).sum(), scores, retain_graph=True)
    (b,) = torch.autograd.grad((by_hand * probe).sum(), scores)
    assert_close(a, b)
    assert (a != 0).all()  # branches that were not taken learn too


def test_the_rectified_rule_keeps_weights_that_count_a_branch_twice() -> None:
    scores = drawn(0, 12, 4)
    route = rectified(scores, 2, 2, devices=2)
    assert_close(rectified_straight_through(scores, route).weights, route.weights)


def test_the_rectified_rule_stays_finite_where_probabilities_vanish() -> None:
    scores = torch.tensor([[0.0, -2000.0]], dtype=torch.float64, requires_grad=True)
    route = top_k(scores.detach(), 2)
    weights = rectified_straight_through(scores, route).weights
    assert_close(weights.detach(), torch.tensor([1.0, 0.0], dtype=torch.float64))
    weights.sum().backward()
    assert scores.grad is not None
    assert scores.grad.isfinite().all()


def test_straight_through_has_the_gradient_of_the_probability() -> None:
    scores = drawn(3).requires_grad_()
    route = top_k(scores.detach(), 2)
    weights = straight_through(scores, route, temperature=0.5).weights
    assert_close(weights.detach(), torch.ones(12, dtype=torch.float64))
    probe = drawn(4, 1, 12)[0]
    (found,) = torch.autograd.grad((weights * probe).sum(), scores)
    probability = (scores / 0.5).softmax(1)[route.inputs, route.branches]
    (wanted,) = torch.autograd.grad((probability * probe).sum(), scores)
    assert_close(found, wanted)


def test_equal_weights_share_one_among_the_branches_of_an_input() -> None:
    scores = drawn(0, 3, 4)
    scores[1, 1:] = -torch.inf
    route = equal_weights(scores, top_k(scores, 2))
    assert route.weights.tolist() == [0.5, 0.5, 1.0, 0.5, 0.5]
    assert equal_weights(scores, top_k(scores, 2), weight=2.0).weights.tolist() == [2.0] * 5
