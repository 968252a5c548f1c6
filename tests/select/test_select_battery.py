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
        gradient: gradients flow from the weights to the scores.
        scored: takes scores (T, E) as they are.
    """

    declared: Callable[..., Any]
    run: Callable[[torch.Tensor], Route]
    equivariant: bool = True
    masks: bool = True
    gradient: bool = True
    scored: bool = True


def drawn(function, **options):
    return lambda scores: function(scores, generator=torch.Generator().manual_seed(7), **options)


def plain(function, **options):
    bound = partial(function, **options)
    return {"declared": bound, "run": bound}


CASES = {
    "top_k": Case(**plain(select.top_k, k=2)),
    "top_k sigmoid": Case(**plain(select.top_k, k=2, weigh=torch.sigmoid, renormalize=False)),
    "top_k bias": Case(**plain(select.top_k, k=1, bias=torch.arange(4.0), renormalize=False)),
    "top_k noise": Case(select.top_k, drawn(select.top_k, k=2, noise=1.0), equivariant=False),
    "threshold": Case(**plain(select.threshold, minimum=0.1)),
    "top_p": Case(**plain(select.top_p, p=0.7)),
    "relu": Case(**plain(select.relu)),
    "expert_choice": Case(**plain(select.expert_choice, capacity=3)),
    **{
        f"with_capacity {overflow} {order}": Case(
            **plain(select.with_capacity, k=2, capacity=3, overflow=overflow, order=order),
            equivariant=order == "score",
        )
        for overflow in ("drop", "reroute")
        for order in ("position", "score")
    },
    "balanced": Case(**plain(select.balanced)),
    "sinkhorn": Case(**plain(select.sinkhorn, k=2)),
    "categorical": Case(select.categorical, drawn(select.categorical, k=2), equivariant=False),
    "gumbel": Case(select.gumbel, drawn(select.gumbel, k=2), equivariant=False, gradient=False),
    "gumbel soft": Case(select.gumbel, drawn(select.gumbel, k=2, hard=False), equivariant=False),
    "first_confident": Case(
        **plain(select.first_confident, thresholds_S=[0.5] * E), masks=False, gradient=False
    ),
    "hashed": Case(
        select.hashed,
        lambda scores: select.hashed((scores[:, 0] * 1000).long(), E, k=2),
        masks=False,
        gradient=False,
        scored=False,
    ),
    "window": Case(
        select.window,
        lambda scores: Route.from_dense(select.window(scores[:, 0], -1, 1)[:, None].double()),
        masks=False,
        gradient=False,
        scored=False,
    ),
}

every = pytest.mark.parametrize("case", CASES.values(), ids=CASES.keys())
scored = pytest.mark.parametrize(
    "case", [c for c in CASES.values() if c.scored], ids=[n for n, c in CASES.items() if c.scored]
)
masking = pytest.mark.parametrize(
    "case", [c for c in CASES.values() if c.masks], ids=[n for n, c in CASES.items() if c.masks]
)


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
    covered = {
        c.declared.func if isinstance(c.declared, partial) else c.declared for c in CASES.values()
    }
    assert {getattr(select, name) for name in declared} == covered
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


@every
def test_a_causal_route_does_not_hang_on_how_many_inputs_follow(case):
    if not select.guarantee_of(case.declared).causal:
        pytest.skip("not causal, and says so")
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


@every
@pytest.mark.parametrize("seed", range(5))
def test_permuting_inputs_permutes_routes(case, seed):
    if not case.equivariant:
        pytest.skip("the position of an input matters here")
    scores = scores_of(seed)
    order = torch.randperm(T, generator=torch.Generator().manual_seed(seed))
    straight, permuted = case.run(scores), case.run(scores[order])
    assert_close(permuted.to_dense(), straight.to_dense()[order])
    assert_close(permuted.mask(), straight.mask()[order])


@every
@pytest.mark.parametrize("bad", [torch.nan, torch.inf])
def test_nan_and_plus_infinity_are_refused_with_their_place(case, bad):
    if case.declared is select.hashed:
        pytest.skip("takes ids")
    scores = scores_of(0)
    scores[5, 0] = bad
    with pytest.raises(RouteError, match=f"got {bad} at (row 5, column 0|position 5)"):
        case.run(scores)


@scored
def test_wrong_shapes_and_types_are_refused(case):
    with pytest.raises(RouteError, match=r"shape \(inputs, (branches|stages)\), got \(2, 8, 4\)"):
        case.run(torch.randn(2, T, E))
    with pytest.raises(RouteError, match="must be floating point, got torch.int64"):
        case.run(torch.ones(T, E, dtype=torch.int64))


@masking
@pytest.mark.parametrize("seed", range(20))
def test_minus_infinity_is_never_chosen(case, seed):
    scores = scores_of(seed)
    holes = torch.rand(T, E, generator=torch.Generator().manual_seed(seed)) < 0.4
    holes[0] = True
    if case.declared.func is select.balanced if isinstance(case.declared, partial) else False:
        holes[1:] = False  # holes may leave no balanced route: see its own tests
    scores[holes] = -torch.inf
    route = case.run(scores).validate()
    assert not (route.mask() & holes).any()
    assert route.dropped()[0]


@masking
def test_an_input_without_eligible_branch_leaves_gradients_finite(case):
    if not case.gradient:
        pytest.skip("weights are constants")
    scores = scores_of(0)
    scores[2] = -torch.inf
    scores.requires_grad_()
    (case.run(scores).to_dense() ** 2).sum().backward()
    assert scores.grad.isfinite().all()
    assert (scores.grad[2] == 0).all()
    assert (scores.grad != 0).any()


@scored
def test_gradcheck_through_the_weights(case):
    if not case.gradient:
        pytest.skip("weights are constants, or stand in for a gradient that they do not have")
    scores = scores_of(4).requires_grad_()
    mix = torch.linspace(0.5, 2.0, T * E, dtype=torch.float64).reshape(T, E)
    assert torch.autograd.gradcheck(lambda s: case.run(s).to_dense() * mix, (scores,))


@pytest.mark.parametrize(
    "run",
    [
        select.top_k,
        partial(select.with_capacity, capacity=2),
        select.sinkhorn,
        select.categorical,
        select.gumbel,
        lambda scores, k: select.hashed(torch.arange(len(scores)), scores.shape[1], k=k),
    ],
    ids=["top_k", "with_capacity", "sinkhorn", "categorical", "gumbel", "hashed"],
)
@pytest.mark.parametrize("k", [0, -1, E + 1, 1.0, True])
def test_k_must_be_a_number_of_branches(run, k):
    with pytest.raises(RouteError, match=f"from 1 to the number of branches, {E}, got {k}"):
        run(scores_of(0), k=k)


@pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device here")
@scored
def test_selections_work_on_cuda_as_on_cpu(case):
    if "drawn" in case.run.__qualname__ if hasattr(case.run, "__qualname__") else False:
        pytest.skip("draws of another device")
    if isinstance(case.run, partial) and "bias" in case.run.keywords:
        pytest.skip("the bias of this case lies on the CPU")
    here, there = case.run(scores_of(0)), case.run(scores_of(0).cuda())
    assert there.weights.is_cuda
    assert_close(there.to_dense().cpu(), here.to_dense())
