"""One battery over every exported estimator: what all of them owe.

And the selection with a gradient of its own, `sparsemixer`, by the rules of selections.
"""

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.testing import assert_close

from pointsman import learn, select
from pointsman.errors import RouteError
from pointsman.route import Route
from pointsman.select import guarantee_of

T, E = 7, 5


@dataclass(frozen=True)
class Case:
    """An estimator, with a fresh seed at each call where it draws.

    Args:
        declared: the exported function.
        run: (scores, route) to a route.
        taught: whether a gradient reaches the scores.
    """

    declared: Callable[..., Any]
    run: Callable[[Tensor, Route], Route]
    taught: bool = True


def seeded(function: Callable[..., Route], **options: Any) -> Callable[[Tensor, Route], Route]:
    def run(scores: Tensor, route: Route) -> Route:
        return function(scores, route, generator=torch.Generator().manual_seed(3), **options)

    return run


CASES = {
    "straight_through": Case(learn.straight_through, learn.straight_through),
    "straight_through cool": Case(
        learn.straight_through, partial(learn.straight_through, temperature=0.3)
    ),
    "rectified_straight_through": Case(
        learn.rectified_straight_through, learn.rectified_straight_through
    ),
    "gumbel_straight_through": Case(
        learn.gumbel_straight_through, seeded(learn.gumbel_straight_through)
    ),
    "gumbel_straight_through mean": Case(
        learn.gumbel_straight_through,
        seeded(learn.gumbel_straight_through, draws=3, temperature=0.5),
    ),
    # Constant weights are its point; `leave_one_out` is how the scores learn then.
    "equal_weights": Case(learn.equal_weights, learn.equal_weights, taught=False),
    "equal_weights given": Case(
        learn.equal_weights, partial(learn.equal_weights, weight=1.0), taught=False
    ),
}
ROUTES: dict[str, Callable[[Tensor], Route]] = {
    "top 1": partial(select.top_k, k=1),
    "top 2": partial(select.top_k, k=2),
    "drawn": lambda scores: select.categorical(
        scores, 2, generator=torch.Generator().manual_seed(1)
    ),
    "any number": partial(select.top_p, p=0.7),
    "some dropped": partial(select.with_capacity, k=2, capacity=2),
}
every = pytest.mark.parametrize("case", CASES.values(), ids=CASES.keys())
routed = pytest.mark.parametrize("choose", ROUTES.values(), ids=ROUTES.keys())


def scores_of(seed: int, rows: int = T, branches: int = E, dtype: Any = torch.float64) -> Tensor:
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(rows, branches, generator=generator, dtype=torch.float64).to(dtype)


def test_every_exported_estimator_is_in_the_battery() -> None:
    others = {"LeastSquaresGate", "PolyStep", "imitation", "k_means", "leave_one_out"}
    others |= {"log_prob_without_replacement", "polytope_step", "sparsemixer"}
    others |= {"clipped_surrogate", "direct_preference", "divergence"}  # losses
    others |= {"generalized_advantages", "group_advantages", "CascadeLosses", "focal"}
    others |= {"class_balanced", "neural_sort", "sandwich", "soft_sort", "top_q_probability"}
    covered = {case.declared.__name__ for case in CASES.values()}
    assert set(learn.__all__) - others == covered


@every
@routed
def test_the_pairs_are_those_of_the_route(case: Case, choose: Callable[[Tensor], Route]) -> None:
    scores = scores_of(0)
    kept, route = scores.clone(), choose(scores)
    found = case.run(scores, route).validate()
    assert torch.equal(found.inputs, route.inputs)
    assert torch.equal(found.branches, route.branches)
    assert (found.num_inputs, found.num_branches) == (T, E)
    assert (found.weights >= 0).all()
    assert_close(scores, kept, rtol=0, atol=0)


@every
@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float32, torch.float64])
def test_the_type_of_scores_is_the_type_of_weights(case: Case, dtype: torch.dtype) -> None:
    scores = scores_of(1, dtype=dtype)
    assert case.run(scores, select.top_k(scores, 2)).weights.dtype == dtype


@every
@routed
def test_a_gradient_reaches_the_scores(case: Case, choose: Callable[[Tensor], Route]) -> None:
    scores = scores_of(2).requires_grad_()
    found = case.run(scores, choose(scores.detach()))
    probe = torch.randn(len(found), generator=torch.Generator().manual_seed(0))
    if not case.taught:
        assert not found.weights.requires_grad
        return
    (grad,) = torch.autograd.grad((found.weights * probe).sum(), scores)
    assert grad.isfinite().all()
    touched = grad.abs().sum(1) > 1e-6
    assert torch.equal(touched, ~found.dropped())
    assert_close(grad.sum(1), torch.zeros(T, dtype=torch.float64))  # as of any softmax


@every
def test_with_one_branch_every_weight_is_one(case: Case) -> None:
    scores = scores_of(3, branches=1).requires_grad_()
    found = case.run(scores, select.top_k(scores.detach(), 1))
    assert_close(found.weights.detach(), torch.ones(T, dtype=torch.float64))
    if case.taught:
        (grad,) = torch.autograd.grad(found.weights.sum(), scores)
        assert_close(grad, torch.zeros_like(grad))


@every
def test_no_inputs_give_an_empty_route(case: Case) -> None:
    scores = scores_of(0, rows=0).requires_grad_()
    found = case.run(scores, select.top_k(scores, 2)).validate()
    assert (len(found), found.num_inputs) == (0, 0)


@every
def test_an_input_without_eligible_branch_leaves_gradients_finite(case: Case) -> None:
    scores = scores_of(4)
    scores[2] = -torch.inf
    scores[4, 1:] = -torch.inf
    scores.requires_grad_()
    found = case.run(scores, select.top_k(scores.detach(), 2)).validate()
    if case.taught:
        (grad,) = torch.autograd.grad(found.weights.square().sum(), scores)
        assert grad.isfinite().all()
        assert (grad[2] == 0).all()


@every
def test_scores_that_do_not_fit_and_nan_are_refused(case: Case) -> None:
    scores = scores_of(0)
    route = select.top_k(scores, 2)
    with pytest.raises(RouteError, match=r"\(7, 4\) do not fit a route of 7 inputs and 5 branches"):
        case.run(scores[:, :4], route)
    with pytest.raises(RouteError, match=r"\(6, 5\) do not fit"):
        case.run(scores[:6], route)
    scores[3, 1] = torch.nan
    with pytest.raises(RouteError, match="got nan at row 3, column 1"):
        case.run(scores, route)


# ---------------------------------------------------------------- the selection, sparsemixer


def mixed(scores: Tensor, k: int = 2, seed: int = 7, **options: Any) -> Route:
    return learn.sparsemixer(
        scores, k, generator=torch.Generator().manual_seed(seed), **{"eps": 0.4, **options}
    )


@pytest.mark.parametrize("k", [1, 2, 3])
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float32, torch.float64])
def test_sparsemixer_gives_valid_routes_of_the_type_of_scores(k: int, dtype: torch.dtype) -> None:
    route = mixed(scores_of(0, dtype=dtype), k).validate()
    assert route.weights.dtype == dtype
    assert (route.branches_per_input() == k).all()
    again = mixed(scores_of(0, dtype=dtype), k)
    assert torch.equal(again.branches, route.branches)
    assert torch.equal(again.weights, route.weights)
    assert len(mixed(scores_of(0, rows=0), k)) == 0


@pytest.mark.parametrize("sample", [True, False])
def test_sparsemixer_keeps_its_guarantee(sample: bool) -> None:
    declared = guarantee_of(learn.sparsemixer)
    assert (declared.batch_independent, declared.causal) == (True, True)
    scores = scores_of(5, rows=9)
    whole = mixed(scores, sample=sample).to_dense()
    for rows in range(1, 9):
        assert_close(mixed(scores[:rows], sample=sample).to_dense(), whole[:rows])
    other = scores.clone()
    other[0], other[8] = torch.tensor([9.0, -9.0, 3.0, 0.0, 0.0]), -2.0
    assert_close(mixed(other, sample=sample).to_dense()[1:8], whole[1:8])


def test_sparsemixer_never_takes_minus_infinity_and_stays_finite() -> None:
    scores = scores_of(6)
    scores[0], scores[1, 1:], scores[2, ::2] = -torch.inf, -torch.inf, -torch.inf
    scores[3], scores[4] = 0.0, -1e30
    scores.requires_grad_()
    for eps in (0.01, 0.4, torch.inf):
        route = mixed(scores, eps=eps).validate()
        assert not (route.mask() & (scores == -torch.inf)).any()
        assert route.branches_per_input().tolist() == [0, 1, 2, 2, 2, 2, 2]
        (grad,) = torch.autograd.grad(route.weights.square().sum(), scores)
        assert grad.isfinite().all()
        assert (grad[0] == 0).all()


def test_sparsemixer_in_evaluation_takes_the_best_with_its_probability_among_the_near() -> None:
    scores = torch.tensor([[2.0, 1.9, 0.0]], dtype=torch.float64)
    route = learn.sparsemixer(scores, 2, eps=0.05, sample=False)
    assert route.branches.tolist() == [0, 1]
    near = scores[:, :2].softmax(1)[0, 0]
    assert_close(route.weights, torch.stack([near, torch.ones_like(near)]))
    alone = learn.sparsemixer(scores, 1, eps=0.01, sample=False)
    assert alone.weights.tolist() == [1.0]


def test_sparsemixer_draws_the_near_ones_only() -> None:
    scores = torch.tensor([[2.0, 1.9, 0.0]], dtype=torch.float64).expand(500, 3)
    assert mixed(scores, 1, eps=0.05).load().min() == 0
    assert set(mixed(scores, 1, eps=0.05).branches.tolist()) == {0, 1}
    assert set(mixed(scores, 1, eps=0.01).branches.tolist()) == {0}
    assert set(mixed(scores, 1, eps=torch.inf).branches.tolist()) == {0, 1, 2}


@pytest.mark.parametrize("k", [0, E + 1, 1.0])
def test_sparsemixer_refuses_what_cannot_be(k: Any) -> None:
    with pytest.raises(RouteError, match=f"from 1 to the number of branches, {E}, got {k}"):
        mixed(scores_of(0), k)
    with pytest.raises(RouteError, match="eps must be a finite number above 0, got 0"):
        mixed(scores_of(0), eps=0)
    scores = scores_of(0)
    scores[1, 2] = torch.nan
    with pytest.raises(RouteError, match="got nan at row 1, column 2"):
        mixed(scores)
