import math

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch.testing import assert_close

from pointsman.cost import Cost
from pointsman.errors import RouteError, UnitError
from pointsman.route import Route

RAGGED = {  # input 2 is dropped, branch 3 is empty, inputs out of order
    "inputs": torch.tensor([4, 0, 1, 0, 3, 0, 4]),
    "branches": torch.tensor([2, 4, 0, 1, 1, 0, 0]),
}


def ragged(weights=None, **counts):
    counts = {"num_inputs": 5, "num_branches": 5, **counts}
    return Route.from_triples(RAGGED["inputs"], RAGGED["branches"], weights, **counts)


def random_route(seed, num_inputs, num_branches, density=0.4, dtype=torch.float64):
    generator = torch.Generator().manual_seed(seed)
    table = torch.rand(num_inputs, num_branches, generator=generator, dtype=dtype) + 0.1
    mask = torch.rand(num_inputs, num_branches, generator=generator) < density
    return Route.from_dense(table, mask)


def branch(number, x):
    """A branch whose answer tells which one gave it."""
    return (number + 1) * x.sin() + number


def run_through(route, x, *, weighted=True):
    """Dispatch, run each branch on its own rows, combine."""
    rows, offsets = route.dispatch(x), route.by_branch().offsets.tolist()
    pieces = [branch(e, rows[offsets[e] : offsets[e + 1]]) for e in range(route.num_branches)]
    return route.combine(torch.cat(pieces) if pieces else rows, weighted=weighted)


def reference(route, x, *, weighted=True):
    """The same by index_add: ten lines to read beside the fast path."""
    out = torch.zeros_like(x)
    for e in range(route.num_branches):
        for pair in (route.branches == e).nonzero().squeeze(1):
            answer = branch(e, x[route.inputs[pair]])
            weight = route.weights[pair] if weighted else 1.0
            out = out.index_add(0, route.inputs[pair, None], (weight * answer)[None])
    return out


routes = st.builds(
    random_route,
    seed=st.integers(0, 2**31),
    num_inputs=st.sampled_from(range(10)),
    num_branches=st.sampled_from(range(1, 7)),
    density=st.sampled_from([0.0, 0.2, 0.6, 1.0]),
)


# ---------------------------------------------------------------- moving rows


@settings(max_examples=60, deadline=None)
@given(routes, st.sampled_from([(), (3,), (2, 3), (0,)]), st.booleans())
def test_dispatch_and_combine_equal_the_reference(route, shape, weighted):
    x = torch.randn(route.num_inputs, *shape, dtype=torch.float64)
    got = run_through(route, x, weighted=weighted)
    assert got.shape == x.shape
    assert_close(got, reference(route, x, weighted=weighted))


@settings(max_examples=30, deadline=None)
@given(routes)
def test_gradients_equal_the_reference(route):
    x = torch.randn(route.num_inputs, 3, dtype=torch.float64, requires_grad=True)
    weights = route.weights.clone().requires_grad_()
    fresh = Route(route.inputs, route.branches, weights, route.num_inputs, route.num_branches)
    seed = torch.randn(route.num_inputs, 3, dtype=torch.float64)
    got = torch.autograd.grad(run_through(fresh, x), (x, weights), seed, allow_unused=True)
    expected = torch.autograd.grad(
        reference(fresh, x) + 0 * x, (x, weights), seed, allow_unused=True
    )
    for mine, theirs in zip(got, expected, strict=True):
        assert_close(mine, torch.zeros_like(mine) if theirs is None else theirs)


@pytest.mark.parametrize(
    ("num_inputs", "num_branches", "density"),
    [(5, 4, 0.5), (5, 1, 1.0), (4, 3, 1.0), (3, 2, 0.0), (0, 3, 1.0), (6, 300, 0.02)],
)
def test_gradcheck_of_first_and_second_order(num_inputs, num_branches, density):
    route = random_route(0, num_inputs, num_branches, density)
    x = torch.randn(num_inputs, 2, dtype=torch.float64, requires_grad=True)
    weights = route.weights.clone().requires_grad_()

    def run(x, weights):
        fresh = Route(route.inputs, route.branches, weights, num_inputs, num_branches)
        order = fresh.by_branch()
        rows = branch(route.branches[order.order][:, None].double(), fresh.dispatch(x))
        return fresh.combine(rows * order.weights[:, None]) + fresh.combine(rows, weighted=False)

    assert torch.autograd.gradcheck(run, (x, weights))
    assert torch.autograd.gradgradcheck(run, (x, weights))


def test_gradcheck_of_a_ragged_route_with_a_dropped_input_and_an_empty_branch():
    weights = torch.rand(7, dtype=torch.float64, requires_grad=True)
    x = torch.randn(5, 2, dtype=torch.float64, requires_grad=True)
    route = ragged(weights)
    assert route.dropped().tolist() == [False, False, True, False, False]
    assert route.load().tolist() == [3, 2, 1, 0, 1]
    assert torch.autograd.gradcheck(lambda x, w: run_through(ragged(w), x), (x, weights))
    assert_close(run_through(route, x)[2], torch.zeros(2, dtype=torch.float64))


def test_a_gradient_of_stride_zero_goes_through():
    weights = torch.rand(7, dtype=torch.float64, requires_grad=True)
    x = torch.randn(5, 3, dtype=torch.float64, requires_grad=True)
    run_through(ragged(weights), x).sum().backward()
    by_sum = x.grad.clone(), weights.grad.clone()
    x.grad = weights.grad = None
    run_through(ragged(weights), x).backward(torch.ones(5, 3, dtype=torch.float64))
    assert_close(by_sum, (x.grad, weights.grad))


def test_rows_that_are_not_contiguous_are_moved_right():
    route = random_route(3, 6, 4)
    x = torch.randn(3, 6, dtype=torch.float64).T
    assert_close(run_through(route, x), reference(route, x))


def test_frozen_inputs_get_no_gradient_and_weights_still_do():
    weights = torch.rand(7, requires_grad=True)
    out = ragged(weights).combine(torch.randn(7, 3))
    out.sum().backward()
    assert weights.grad is not None
    assert not ragged(weights.detach()).combine(torch.randn(7, 3)).requires_grad


def test_dispatch_keeps_whole_numbers():
    assert ragged().dispatch(torch.arange(5)).tolist() == [0, 1, 4, 0, 3, 4, 0]


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float32, torch.float64])
def test_the_type_of_rows_is_kept(dtype):
    weights = torch.rand(7).to(dtype)
    route = ragged(weights)
    x = torch.randn(5, 4).to(dtype).requires_grad_()
    out = run_through(route, x)
    assert out.dtype == route.dispatch(x).dtype == dtype
    out.sum().backward()
    assert x.grad.dtype == dtype
    exact = run_through(ragged(weights.double()), x.detach().double())
    assert_close(out.double(), exact, rtol=2e-2, atol=5e-2)


def test_combine_never_casts():
    with pytest.raises(RouteError, match=r"float64 rows and torch.float32 weights"):
        ragged(torch.rand(7)).combine(torch.randn(7, 2, dtype=torch.float64))
    with pytest.raises(RouteError, match="floating point"):
        ragged().combine(torch.ones(7, 2, dtype=torch.int64), weighted=False)
    unweighted = ragged(torch.rand(7)).combine(torch.ones(7, 2).double(), weighted=False)
    assert unweighted.dtype == torch.float64


@pytest.mark.parametrize("verb", ["dispatch", "combine"])
def test_another_number_of_rows_is_refused(verb):
    with pytest.raises(RouteError, match=rf"{verb} needs one row for each .* got shape \(6, 2\)"):
        getattr(ragged(), verb)(torch.randn(6, 2))
    with pytest.raises(RouteError, match=rf"{verb} needs one row"):
        getattr(ragged(), verb)(torch.tensor(1.0))


# ---------------------------------------------------------------- the sort


@pytest.mark.parametrize("num_branches", [1, 2, 256, 257, 300, 32768, 32769, 70000])
def test_branch_order_is_stable_and_right_for_every_width_of_integer(num_branches):
    generator = torch.Generator().manual_seed(num_branches)
    branches = torch.randint(0, num_branches, (500, 1), generator=generator)
    branches[:2, 0] = torch.tensor([num_branches - 1, 0])
    route = Route.from_indices(branches, num_branches=num_branches).validate()
    order = route.by_branch()
    expected = np.argsort(branches[:, 0].numpy(), kind="stable")
    np.testing.assert_array_equal(order.order, expected)
    np.testing.assert_array_equal(order.inputs, expected)
    np.testing.assert_array_equal(
        order.offsets[1:] - order.offsets[:-1],
        np.bincount(branches[:, 0].numpy(), minlength=num_branches),
    )


def test_branch_order_slices_each_branch():
    route = ragged(torch.arange(1.0, 8.0))
    order = route.by_branch()
    for e in range(5):
        own = slice(int(order.offsets[e]), int(order.offsets[e + 1]))
        assert (route.branches[order.order[own]] == e).all()
        assert_close(order.weights[own], route.weights[route.branches == e])
        assert_close(order.inputs[own], route.inputs[route.branches == e])


def test_a_sort_cached_without_gradients_does_not_swallow_them_later():
    weights = torch.rand(7, requires_grad=True)
    route = ragged(weights)
    with torch.no_grad():
        assert not route.by_branch().weights.requires_grad
    assert route.by_branch().weights.requires_grad
    assert route.by_branch().order is route.by_branch().order


# ---------------------------------------------------------------- constructors


@settings(max_examples=50, deadline=None)
@given(routes, st.randoms(use_true_random=False))
def test_all_constructors_agree(route, random):
    dense = route.to_dense()
    shuffled = list(range(len(route)))
    random.shuffle(shuffled)
    triples = Route.from_triples(
        route.inputs[shuffled],
        route.branches[shuffled],
        route.weights[shuffled],
        num_inputs=route.num_inputs,
        num_branches=route.num_branches,
    )
    slots = torch.where(route.mask(), torch.arange(route.num_branches), -1)
    indices = Route.from_indices(slots, dense, num_branches=route.num_branches)
    for other in (triples, indices, Route.from_dense(dense), Route.from_dense(dense, route.mask())):
        other.validate()
        assert len(other) == len(route)
        assert_close(other.to_dense(), dense)
        assert_close(other.mask(), route.mask())
        assert_close(other.by_branch().offsets, route.by_branch().offsets)


def test_pairs_of_an_input_keep_their_order():
    triples = ragged(torch.arange(7.0))
    assert triples.inputs.tolist() == [0, 0, 0, 1, 3, 4, 4]
    assert triples.branches.tolist() == [4, 1, 0, 0, 1, 2, 0]
    assert triples.weights.tolist() == [1, 3, 5, 2, 4, 0, 6]
    slots = Route.from_indices(torch.tensor([[3, -1, 1], [-1, -1, -1], [-1, 0, 2]]), num_branches=4)
    assert slots.inputs.tolist() == [0, 0, 2, 2]
    assert slots.branches.tolist() == [3, 1, 0, 2]


def test_weights_are_ones_unless_given_and_gradients_flow_through_every_constructor():
    assert ragged().weights.tolist() == [1.0] * 7
    assert ragged().weights.dtype == torch.get_default_dtype()
    w = torch.rand(2, 2, dtype=torch.float64, requires_grad=True)
    for build in (
        lambda w: Route.from_indices(torch.tensor([[1, -1], [0, 2]]), w, num_branches=3),
        lambda w: Route.from_dense(w, torch.tensor([[True, False], [True, True]])),
        lambda w: Route.from_triples(
            torch.tensor([1, 0]), torch.tensor([1, 1]), w[0], num_inputs=2, num_branches=2
        ),
    ):
        assert torch.autograd.gradcheck(lambda w, build=build: build(w).weights ** 2, (w,))
        assert torch.autograd.gradcheck(lambda w, build=build: build(w).to_dense() ** 2, (w,))


def test_from_dense_without_a_mask_takes_nonzero_weights():
    route = Route.from_dense(torch.tensor([[0.0, -2.0], [0.0, 0.0], [3.0, 1.0]]))
    assert route.inputs.tolist() == [0, 2, 2]
    assert route.branches.tolist() == [1, 0, 1]
    kept = Route.from_dense(torch.zeros(1, 2), torch.tensor([[True, False]]))
    assert kept.weights.tolist() == [0.0]
    assert kept.mask().tolist() == [[True, False]]


@pytest.mark.parametrize("slots", [0, 2])
def test_no_inputs_no_slots_and_no_pairs_are_routes_too(slots):
    for num_inputs in (0, 3):
        empty = torch.full((num_inputs, slots), -1)
        route = Route.from_indices(empty, num_branches=4).validate()
        assert len(route) == 0
        assert route.load().tolist() == [0] * 4
        assert route.answered_by().tolist() == [-1] * num_inputs
        assert route.entropy().tolist() == [0.0] * num_inputs
        assert float(route.load_entropy()) == 0.0
        assert route.dispatch(torch.ones(num_inputs, 2)).shape == (0, 2)
        assert_close(route.combine(torch.ones(0, 2)), torch.zeros(num_inputs, 2))
        amounts = Cost(np.ones(4), "ms")
        np.testing.assert_array_equal(route.cost(amounts).amount, np.zeros(num_inputs))


IDS = torch.zeros(3, dtype=torch.int64)


@pytest.mark.parametrize(
    ("build", "message"),
    [
        (lambda: Route(IDS, IDS, torch.ones(2), 1, 1), r"one shape \(N,\), got \(3,\), \(3,\)"),
        (lambda: Route(IDS[None], IDS[None], torch.ones(1, 3), 1, 1), r"one shape \(N,\)"),
        (lambda: Route(IDS.int(), IDS, torch.ones(3), 1, 1), "inputs of a route must be int64"),
        (lambda: Route(IDS, IDS.int(), torch.ones(3), 1, 1), "branches of a route must be int64"),
        (lambda: Route(IDS, IDS, IDS, 1, 1), "weights of a route must be floating point"),
        (lambda: Route(IDS, IDS, torch.ones(3), -1, 1), "num_inputs must be .* got -1"),
        (lambda: Route(IDS, IDS, torch.ones(3), 1, 2.0), "num_branches must be .* got 2.0"),
        (lambda: Route(IDS, IDS, torch.ones(3, device="meta"), 1, 1), "one device"),
        (lambda: Route.from_indices(IDS, num_branches=2), r"shape \(inputs, slots\), got \(3,\)"),
        (lambda: Route.from_indices(torch.ones(2, 2), num_branches=2), "must be integers"),
        (
            lambda: Route.from_indices(IDS[None], torch.ones(3, 1), num_branches=2),
            "the shape of the branches",
        ),
        (lambda: Route.from_dense(torch.ones(3)), r"shape \(inputs, branches\)"),
        (lambda: Route.from_dense(torch.ones(2, 2), torch.ones(2, 2)), "mask must be bool"),
        (lambda: Route.from_dense(torch.ones(2, 2), IDS[:, None].bool()), r"shape \(2, 2\)"),
        (
            lambda: Route.from_triples(IDS, IDS[:2], num_inputs=1, num_branches=1),
            r"one shape \(N,\)",
        ),
        (
            lambda: Route.from_triples(IDS.bool(), IDS, num_inputs=1, num_branches=1),
            "inputs must be integers",
        ),
    ],
)
def test_shapes_types_and_devices_are_checked_on_construction(build, message):
    with pytest.raises(RouteError, match=message):
        build()


# ---------------------------------------------------------------- validate


@pytest.mark.parametrize(
    ("inputs", "branches", "weights", "message"),
    [
        ([0, 0, 2], [0, 1, 1], [1, 1, 1], "every input .* below 2, got input 2.* at pair 2 of 3"),
        ([-1, 0, 1], [0, 1, 1], [1, 1, 1], "every input must be at least 0 .* at pair 0 of 3"),
        ([0, 0, 1], [0, 3, 4], [1, 1, 1], "every branch .* below 3, got input 0, branch 3"),
        ([0, 0, 1], [0, -1, 1], [1, 1, 1], "every branch .* branch -1, weight 1 at pair 1"),
        ([0, 1, 0], [0, 1, 1], [1, 1, 1], "ascending .* got input 0, branch 1, .* at pair 2"),
        ([0, 0, 0], [2, 1, 2], [1, 1, 1], "once only, got input 0, branch 2, .* at pair 2 of 3"),
        ([0, 0, 1], [0, 1, 0], [1, torch.nan, 1], "finite, got .* weight nan at pair 1"),
        ([0, 0, 1], [0, 1, 0], [1, 1, -torch.inf], "finite, got .* weight -inf at pair 2"),
    ],
)
def test_validate_names_the_first_offending_pair(inputs, branches, weights, message):
    route = Route(torch.tensor(inputs), torch.tensor(branches), torch.tensor(weights).float(), 2, 3)
    with pytest.raises(RouteError, match=message):
        route.validate()


def test_validate_returns_a_good_route_and_names_a_repeat_in_the_route_s_own_order():
    route = ragged()
    assert route.validate() is route
    repeats = Route(
        torch.tensor([0, 0, 0, 0, 1, 1]), torch.tensor([2, 1, 1, 2, 0, 0]), torch.ones(6), 2, 3
    )
    with pytest.raises(RouteError, match="at pair 2 of 6"):
        repeats.validate()


# ---------------------------------------------------------------- accounts


@settings(max_examples=50, deadline=None)
@given(routes)
def test_accounts_equal_those_of_the_table(route):
    mask, dense = route.mask(), route.to_dense()
    assert_close(route.load(), mask.sum(0))
    assert_close(route.branches_per_input(), mask.sum(1))
    assert_close(route.dropped(), ~mask.any(1))
    best = torch.where(mask.any(1), dense.masked_fill(~mask, -torch.inf).argmax(1), -1)
    assert_close(route.answered_by(), best)
    share = dense / dense.sum(1, keepdim=True).clamp(min=1e-30)
    assert_close(route.entropy(), torch.special.entr(share).sum(1))
    load = mask.sum(0).double() / max(len(route), 1)
    assert_close(route.load_entropy(), torch.special.entr(load).sum())
    amounts = torch.rand(route.num_branches, dtype=torch.float64)
    assert_close(route.cost(Cost(amounts, "ms")).amount, mask.double() @ amounts)


def test_answered_by_takes_the_first_of_equals_and_may_answer_with_negative_weights():
    route = Route.from_indices(
        torch.tensor([[2, 0, 1], [1, 0, -1], [-1, -1, -1]]),
        torch.tensor([[1.0, 2.0, 2.0], [-3.0, -1.0, 9.0], [9.0, 9.0, 9.0]]),
        num_branches=3,
    )
    assert route.answered_by().tolist() == [0, 0, -1]


def test_cost_counts_every_visited_branch_whatever_its_weight():
    cascade = Route.from_indices(
        torch.tensor([[0, -1, -1], [0, 1, -1], [0, 1, 2]]),
        torch.tensor([[1.0, 0.0, 0.0], [0.0, 1.0, 0.0], [0.0, 0.0, 1.0]]),
        num_branches=3,
    )
    spent = cascade.cost(Cost(np.array([1.0, 10.0, 100.0]), "MFLOPs"))
    assert spent.unit == "MFLOPs"
    assert isinstance(spent.amount, np.ndarray)
    np.testing.assert_array_equal(spent.amount, [1.0, 11.0, 111.0])
    assert cascade.answered_by().tolist() == [0, 1, 2]
    assert spent.mean() == Cost(41.0, "MFLOPs")


def test_costs_of_two_units_do_not_add_up_over_a_route():
    flops, time = Cost(torch.ones(5), "MFLOPs"), Cost(torch.ones(5), "ms")
    with pytest.raises(UnitError):
        ragged().cost(flops) + ragged().cost(time)
    with pytest.raises(UnitError, match="priced with a Cost, got Tensor"):
        ragged().cost(torch.ones(5))


@pytest.mark.parametrize("amount", [1.0, np.ones(4), torch.ones(5, 1)])
def test_cost_needs_one_amount_a_branch(amount):
    with pytest.raises(RouteError, match="each of 5 branches"):
        ragged().cost(Cost(amount, "ms"))


def test_entropy_is_in_nats_of_absolute_shares_with_finite_gradients():
    route = Route.from_dense(
        torch.tensor([[1.0, -1.0, 0.0], [5.0, 0.0, 0.0], [0.0, 0.0, 0.0]]),
        torch.tensor([[True, True, True], [True, True, False], [True, True, False]]),
    )
    assert_close(route.entropy(), torch.tensor([math.log(2), 0.0, 0.0]))
    weights = route.weights.clone().requires_grad_()
    Route(route.inputs, route.branches, weights, 3, 3).entropy().sum().backward()
    assert weights.grad.isfinite().all()


def test_entropy_gradcheck():
    weights = torch.rand(7, dtype=torch.float64).add(0.1).requires_grad_()
    assert torch.autograd.gradcheck(lambda w: ragged(w).entropy(), (weights,))


def test_entropy_of_half_precision_is_computed_in_float32():
    assert ragged(torch.rand(7).bfloat16()).entropy().dtype == torch.float32
    assert ragged(torch.rand(7).bfloat16()).load_entropy().dtype == torch.float32


def test_load_entropy_is_largest_when_branches_are_equally_full():
    even = Route.from_indices(torch.arange(8)[:, None] % 4, num_branches=4)
    skewed = Route.from_indices(torch.zeros(8, 1, dtype=torch.int64), num_branches=4)
    assert float(even.load_entropy()) == pytest.approx(math.log(4))
    assert float(skewed.load_entropy()) == 0.0


# ---------------------------------------------------------------- the object


def test_a_route_cannot_be_changed_and_has_a_length():
    route = ragged()
    assert len(route) == 7
    with pytest.raises(AttributeError):
        route.weights = torch.zeros(7)


def test_detach_cuts_the_gradient_and_nothing_else():
    route = ragged(torch.rand(7, requires_grad=True))
    assert not route.detach().weights.requires_grad
    assert_close(route.detach().to_dense(), route.to_dense().detach())
    assert route.to("cpu").weights.requires_grad


@pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device here")
def test_a_route_works_on_cuda_as_on_cpu():
    weights, x = torch.rand(7), torch.randn(5, 3)
    here, there = ragged(weights), ragged(weights).to("cuda").validate()
    assert_close(run_through(there, x.cuda()).cpu(), run_through(here, x))
    for account in ("load", "dropped", "answered_by", "entropy", "to_dense", "mask"):
        assert_close(getattr(there, account)().cpu(), getattr(here, account)())
    amounts = Cost(np.arange(5.0), "ms")
    np.testing.assert_array_equal(there.cost(amounts).amount, here.cost(amounts).amount)
