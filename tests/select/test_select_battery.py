"""One battery over every exported selection: what all of them owe, and whether each keeps the
guarantee it declares. A declaration must be neither too weak nor too strong."""

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from typing import Any

import pytest
import torch
from torch.testing import assert_close

from pointsman import select
from pointsman.errors import RouteError
from pointsman.route import Route

T, E = 8, 4


@dataclass(frozen=True)
class Case:
    """A selection as a function of scores alone, and which of the common rules apply to it.

    Args:
        declared: carries the guarantee.
        run: scores (T, E) to route, with a fresh seed at each call where it draws.
        equivariant: permuting the inputs permutes the routes (not where position matters).
        masks: -inf marks a branch as not eligible.
        holes: any pattern of -inf can be routed.
        gradient: gradients flow from the weights to the scores.
        scored: takes scores (T, E) as they are.
        draws: is random.
        exact: gradients are those of the weights as they come out, in full (not where they take
            what a solver found for constant).
    """

    declared: Callable[..., Any]
    run: Callable[[torch.Tensor], Route]
    equivariant: bool = True
    masks: bool = True
    holes: bool = True
    gradient: bool = True
    scored: bool = True
    draws: bool = False
    exact: bool = True


def drawn(function, gradient=True, **options):
    def run(scores):
        return function(scores, generator=torch.Generator().manual_seed(7), **options)

    return Case(partial(function, **options), run, False, gradient=gradient, draws=True)


def plain(function, rules=None, **options):
    bound = partial(function, **options)
    return Case(bound, bound, **(rules or {}))


CONSTANT = {"masks": False, "gradient": False}

CASES = {
    "top_k": plain(select.top_k, k=2),
    "top_k sigmoid": plain(select.top_k, k=2, weigh=torch.sigmoid, renormalize=False),
    "top_k other softmax": plain(select.top_k, k=2, weigh=partial(torch.softmax, dim=1)),
    "top_k bias": plain(select.top_k, k=1, bias=torch.arange(4.0), renormalize=False),
    "top_k noise": drawn(select.top_k, k=2, noise=1.0),
    "threshold": plain(select.threshold, minimum=0.1),
    "top_p": plain(select.top_p, p=0.7),
    "relu": plain(select.relu),
    "expert_choice": plain(select.expert_choice, capacity=3),
    **{
        f"with_capacity {overflow} {order}": plain(
            select.with_capacity,
            # By rank too, position decides among equal ranks.
            {"equivariant": order == "score"},
            k=2,
            capacity=3,
            overflow=overflow,
            order=order,
        )
        for overflow in ("drop", "reroute")
        for order in ("position", "score", "rank")
    },
    "balanced": plain(select.balanced, {"holes": False}),
    "sinkhorn": plain(select.sinkhorn, k=2),
    "group_limited": plain(select.group_limited, k=2, groups=2, groups_kept=1),
    "group_limited bias": plain(
        select.group_limited,
        k=1,
        groups=2,
        groups_kept=2,
        group_score="best",
        weigh=torch.sigmoid,
        bias=torch.arange(4.0),
        renormalize=False,
    ),
    "prototypes": plain(select.prototypes, groups=2),
    "prototypes capacity": plain(select.prototypes, {"equivariant": False}, groups=2, capacity=3),
    "within_best_group": plain(select.within_best_group, groups=2, k=2),
    "rectified": plain(select.rectified, {"equivariant": False}, k=2, capacity=3, devices=2),
    # Permuted inputs give the same plan only as nearly as the solver finds it.
    "sparse_transport": plain(
        select.sparse_transport, {"equivariant": False, "exact": False}, capacity=3
    ),
    "categorical": drawn(select.categorical, k=2),
    "gumbel": drawn(select.gumbel, gradient=False, k=2),
    "gumbel soft": drawn(select.gumbel, k=2, hard=False),
    "first_confident": plain(select.first_confident, CONSTANT, thresholds_S=[0.5] * E),
    "hashed": Case(
        partial(select.hashed),
        lambda scores: select.hashed((scores[:, 0] * 1000).long(), E, k=2),
        scored=False,
        **CONSTANT,
    ),
    "window": Case(
        partial(select.window),
        lambda scores: Route.from_dense(select.window(scores[:, 0], -1, 1)[:, None].double()),
        scored=False,
        **CONSTANT,
    ),
}


def over(keep=lambda case: True):
    """Runs a test over the cases that a rule applies to."""
    kept = {name: case for name, case in CASES.items() if keep(case)}
    return pytest.mark.parametrize("case", kept.values(), ids=kept.keys())


every = over()
scored = over(lambda case: case.scored)


def scores_of(seed, rows=T, dtype=torch.float64):
    generator = torch.Generator().manual_seed(seed)
    return 2 * torch.randn(rows, E, generator=generator, dtype=torch.float64).to(dtype)


def row(route, t):
    """What an input got: branches in order, and weights."""
    own = route.inputs == t
    return route.branches[own].tolist(), route.weights[own]


def same_row(a, b, t):
    (branches_a, weights_a), (branches_b, weights_b) = row(a, t), row(b, t)
    return branches_a == branches_b and torch.allclose(weights_a, weights_b, rtol=0, atol=1e-12)


def test_every_exported_selection_is_in_the_battery():
    declared = {name for name in select.__all__ if hasattr(getattr(select, name), "guarantee")}
    assert {getattr(select, name) for name in declared} == {c.declared.func for c in CASES.values()}
    measures = {"max_probability", "margin", "negative_entropy"}
    assert set(select.__all__) - declared - measures == {"Guarantee", "guarantees", "guarantee_of"}


# ---------------------------------------------------------------- declared guarantees


def disturbed(scores, rows, kind, seed):
    """Scores with other values in some rows: new draws, large, masked out, or all equal."""
    other = scores.clone()
    fresh = scores_of(seed + 1000)[rows]
    other[rows] = {
        "new": fresh,
        "large": 50 * fresh,
        "masked": torch.full_like(fresh, -torch.inf),
        "equal": torch.ones_like(fresh),
    }[kind]
    return other


def leaks(case, rows_of):
    """Whether some input's route changed when the rows `rows_of(t)` were given other scores."""
    for seed in range(6):
        scores = scores_of(seed)
        before = case.run(scores)
        for t in range(T):
            rows = rows_of(t)
            for kind in ("new", "large", "masked", "equal") if case.masks else ("new", "large"):
                if len(rows) and not same_row(
                    before, case.run(disturbed(scores, rows, kind, seed)), t
                ):
                    return True
    return False


@every
def test_batch_independence_is_exactly_as_declared(case):
    leaked = leaks(case, lambda t: [other for other in range(T) if other != t])
    assert leaked != select.guarantee_of(case.declared).batch_independent


@every
def test_causality_is_exactly_as_declared(case):
    leaked = leaks(case, lambda t: list(range(t + 1, T)))
    assert leaked != select.guarantee_of(case.declared).causal


@over(lambda case: select.guarantee_of(case.declared).causal)
def test_a_causal_route_does_not_hang_on_how_many_inputs_follow(case):
    scores = scores_of(3, rows=20)
    whole = case.run(scores)
    for rows in range(1, 20):
        part = case.run(scores[:rows])
        assert all(same_row(whole, part, t) for t in range(rows))


# ---------------------------------------------------------------- common rules


@every
def test_routes_are_valid_and_pure(case):
    scores = scores_of(0)
    kept = scores.clone()
    a, b = case.run(scores).validate(), case.run(scores)
    assert_close(scores, kept, rtol=0, atol=0)
    assert a.num_inputs == T
    assert all(same_row(a, b, t) for t in range(T))


@every
def test_no_inputs_give_an_empty_route(case):
    route = case.run(scores_of(0, rows=0)).validate()
    assert (len(route), route.num_inputs) == (0, 0)


@scored
@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float32, torch.float64])
def test_the_type_of_scores_is_the_type_of_weights(case, dtype):
    route = case.run(scores_of(1, dtype=dtype)).validate()
    assert route.weights.dtype == dtype
    x = torch.ones(T, 3, dtype=dtype)
    assert route.combine(route.dispatch(x)).dtype == dtype


@over(lambda case: case.equivariant)
@pytest.mark.parametrize("seed", range(5))
def test_permuting_inputs_permutes_routes(case, seed):
    scores = scores_of(seed)
    order = torch.randperm(T, generator=torch.Generator().manual_seed(seed))
    straight, permuted = case.run(scores), case.run(scores[order])
    assert_close(permuted.to_dense(), straight.to_dense()[order])
    assert_close(permuted.mask(), straight.mask()[order])


@over(lambda case: case.declared.func is not select.hashed)
@pytest.mark.parametrize("bad", [torch.nan, torch.inf])
def test_nan_and_plus_infinity_are_refused_with_their_place(case, bad):
    scores = scores_of(0)
    scores[5, 0] = bad
    with pytest.raises(RouteError, match=f"got {bad} at (row 5, column 0|position 5)"):
        case.run(scores)


@scored
def test_wrong_shapes_and_types_are_refused(case):
    with pytest.raises(RouteError, match=r"shape \(inputs, (branches|stages)\), got \(2, 8, 4\)"):
        case.run(torch.randn(2, T, E))
    with pytest.raises(RouteError, match=r"must be floating point, got torch\.int64"):
        case.run(torch.ones(T, E, dtype=torch.int64))


@over(lambda case: case.masks)
@pytest.mark.parametrize("seed", range(20))
def test_minus_infinity_is_never_chosen(case, seed):
    scores = scores_of(seed)
    holes = torch.rand(T, E, generator=torch.Generator().manual_seed(seed)) < 0.4 * case.holes
    holes[0] = True
    scores[holes] = -torch.inf
    route = case.run(scores).validate()
    assert not (route.mask() & holes).any()
    assert route.dropped()[0]


@over(lambda case: case.gradient)
def test_an_input_without_eligible_branch_leaves_gradients_finite(case):
    scores = scores_of(0)
    scores[2] = -torch.inf
    scores.requires_grad_()
    (case.run(scores).to_dense() ** 2).sum().backward()
    assert scores.grad.isfinite().all()
    assert (scores.grad[2] == 0).all()
    assert (scores.grad != 0).any()


@over(lambda case: case.gradient and case.exact)
def test_gradcheck_through_the_weights(case):
    scores = scores_of(4).requires_grad_()
    mix = torch.linspace(0.5, 2.0, T * E, dtype=torch.float64).reshape(T, E)
    assert torch.autograd.gradcheck(lambda s: case.run(s).to_dense() * mix, (scores,))


@pytest.mark.parametrize(
    "run",
    [
        select.top_k,
        partial(select.with_capacity, capacity=2),
        partial(select.rectified, capacity=2),
        partial(select.group_limited, groups=2, groups_kept=2),
        partial(select.within_best_group, groups=1),
        select.sinkhorn,
        select.categorical,
        select.gumbel,
        lambda scores, k: select.hashed(torch.arange(len(scores)), scores.shape[1], k=k),
    ],
    ids=[
        "top_k",
        "with_capacity",
        "rectified",
        "group_limited",
        "within_best_group",
        "sinkhorn",
        "categorical",
        "gumbel",
        "hashed",
    ],
)
@pytest.mark.parametrize("k", [0, -1, E + 1, 1.0, True])
def test_k_must_be_a_number_of_branches(run, k):
    with pytest.raises(RouteError, match=f"from 1 to the number of branches, {E}, got {k}"):
        run(scores_of(0), k=k)


@pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device here")
@over(lambda case: case.scored and not case.draws and "bias" not in case.declared.keywords)
def test_selections_work_on_cuda_as_on_cpu(case):
    here, there = case.run(scores_of(0)), case.run(scores_of(0).cuda())
    assert there.weights.is_cuda
    assert_close(there.to_dense().cpu(), here.to_dense())
