"""Carving by activations: equality with all experts on, the assignment, and the analytic router."""

from itertools import permutations

import pytest
import torch
from torch import Tensor, nn
from torch.testing import assert_close

from pointsman.errors import InputError
from pointsman.moe import FeedForwardExperts
from pointsman.moe.convert import (
    GatedFeedForward,
    LearnedScale,
    RepresentativeRouter,
    assign,
    carve,
    merge,
    read_dense,
)
from pointsman.moe.convert.carve import _equal_groups
from pointsman.route import Route
from pointsman.select import guarantees


def tokens(count: int = 60) -> Tensor:
    return torch.randn(count, 8, generator=torch.Generator().manual_seed(0), dtype=torch.float64)


def layers() -> list[nn.Module]:
    torch.manual_seed(0)
    return [
        GatedFeedForward(8, 32).double(),
        GatedFeedForward(8, 32, bias=True, down_bias=True).double(),
        nn.Sequential(nn.Linear(8, 32), nn.ReLU(), nn.Linear(32, 5)).double(),
        nn.Sequential(nn.Linear(8, 32, bias=False), nn.GELU(), nn.Linear(32, 8)).double(),
    ]


@guarantees(batch_independent=True, causal=True)
def everyone(scores_TE: Tensor) -> Route:
    return Route.from_dense(torch.ones_like(scores_TE))


@pytest.mark.parametrize("shared", [0, 1, 2])
@pytest.mark.parametrize("which", range(4))
def test_all_experts_together_equal_the_dense_layer(which: int, shared: int) -> None:
    mlp, x = layers()[which], tokens()
    moe = carve(mlp, x, num_experts=8, shared=shared, k=8 - shared, active=6)
    assert_close(moe(x)[0], mlp(x), rtol=0, atol=1e-12)
    assert_close(moe(x, select=everyone)[0], mlp(x), rtol=0, atol=1e-12)
    assert_close(merge(moe)(x), mlp(x), rtol=0, atol=1e-12)


def test_every_unit_has_one_place_and_groups_are_equal() -> None:
    carving = assign(layers()[0], tokens(), num_experts=8, shared=2, active=6)
    assert carving.experts.shape == (6, 4)
    assert carving.shared.shape == (8,)
    everywhere = torch.cat([carving.shared, carving.experts.reshape(-1)])
    assert everywhere.sort().values.tolist() == list(range(32))
    assert (carving.experts == carving.representatives[:, None]).any(dim=1).all()
    assert carving.rates[carving.shared].min() >= carving.rates[carving.experts].max()
    assert_close(carving.rates.sum(), torch.tensor(6.0))


def test_units_are_grouped_at_the_least_total_distance() -> None:
    distance = torch.rand(6, 3, generator=torch.Generator().manual_seed(0))
    owner = _equal_groups(distance, 2)
    assert owner.bincount().tolist() == [2, 2, 2]
    found = distance.gather(1, owner[:, None]).sum()
    best = min(
        sum(distance[unit, group] for unit, group in enumerate(order))
        for order in set(permutations([0, 0, 1, 1, 2, 2]))
    )
    assert_close(found, torch.as_tensor(best))


def test_units_that_answer_together_end_in_one_expert() -> None:
    """Eight directions, four units each: tokens along a direction wake exactly those."""
    mlp = nn.Sequential(nn.Linear(8, 32, bias=False), nn.ReLU(), nn.Linear(32, 8, bias=False))
    order = torch.randperm(32, generator=torch.Generator().manual_seed(3))
    directions = torch.eye(8).repeat_interleave(4, 0)[order]
    with torch.no_grad():
        mlp[0].weight.copy_(directions * torch.rand(32, 1).add(0.5))
    x = torch.eye(8).repeat(5, 1) + 0.01 * torch.rand(40, 8)
    # Seeds are the most active units, and here all are equally active: give a hint of an order.
    carving = assign(mlp, x, num_experts=8, shared=0, active=4)
    names = directions.argmax(dim=1)
    groups = [set(names[units].tolist()) for units in carving.experts]
    seeds = carving.rates.argsort(descending=True, stable=True)[:8]
    if len(set(names[seeds].tolist())) == 8:
        assert all(len(group) == 1 for group in groups)
    moe = carve(mlp, x, num_experts=8, shared=0, k=8, active=4)
    assert_close(moe(x)[0], mlp(x))


def test_scores_are_the_answers_of_the_representatives() -> None:
    mlp, x = layers()[0], tokens()
    carving = assign(mlp, x, num_experts=8, active=6)
    moe = carve(mlp, x, num_experts=8, active=6)
    assert isinstance(moe.router, RepresentativeRouter)
    gate, up = mlp.gate_proj.weight, mlp.up_proj.weight  # type: ignore[union-attr]
    for expert, unit in enumerate(carving.representatives.tolist()):
        answer = torch.nn.functional.silu(x @ gate[unit] / gate[unit].norm()) * (
            x @ up[unit] / up[unit].norm()
        )
        assert_close(moe(x)[1].scores[:, expert], answer.abs())


def test_the_size_of_rows_does_not_matter() -> None:
    mlp, x = layers()[0], tokens()
    before = assign(mlp, x, num_experts=8, active=6)
    with torch.no_grad():
        factors = torch.rand(32, 1, dtype=torch.float64).add(0.1).mul(5)
        mlp.gate_proj.weight.mul_(factors)  # type: ignore[union-attr, operator]
    after = assign(mlp, x, num_experts=8, active=6)
    assert all(torch.equal(a, b) for a, b in zip(before, after, strict=True))


def test_scales_start_at_weight_one_and_learn() -> None:
    mlp, x = layers()[0], tokens()
    moe = carve(mlp, x, num_experts=8, k=2, active=6)
    y, routing = moe(x)
    assert torch.equal(routing.route.weights, torch.ones_like(routing.route.weights))
    y.square().sum().backward()
    assert isinstance(moe.estimator, LearnedScale)
    grad = moe.estimator.scale_E.grad
    assert grad is not None
    assert bool(grad.any())
    assert isinstance(moe.experts, FeedForwardExperts)
    assert moe.experts.num_experts == 6
    with torch.no_grad():
        moe.estimator.scale_E.fill_(1.0)
    _, routing = moe(x)
    share = routing.scores.softmax(dim=1)
    assert_close(routing.route.weights, 1 + share[routing.route.inputs, routing.route.branches])


def test_type_is_kept_and_gradients_are_right() -> None:
    mlp = layers()[1]
    moe = carve(mlp, tokens(), num_experts=8, k=3, active=6)
    x = tokens(3).requires_grad_()
    assert torch.autograd.gradcheck(lambda x: moe(x)[0], (x,))
    for dtype in (torch.float32, torch.bfloat16):
        small = carve(mlp.to(dtype), tokens().to(dtype), num_experts=8, k=6, active=6)
        assert {weight.dtype for weight in small.parameters()} == {dtype}
        y, _ = small(tokens().to(dtype))
        assert y.dtype == dtype
        assert small(tokens(0).to(dtype))[0].shape == (0, 8)
        assert_close(y, mlp(tokens().to(dtype)), rtol=0.1, atol=0.05)


def test_sizes_that_do_not_fit_are_refused() -> None:
    mlp, x = layers()[0], tokens()
    with pytest.raises(InputError, match="got 5 experts of which 2 shared"):
        carve(mlp, x, num_experts=5)
    with pytest.raises(InputError, match="got 8 experts of which 8 shared"):
        carve(mlp, x, num_experts=8, shared=8)
    with pytest.raises(InputError, match="at most all are active, got 33"):
        carve(mlp, x, num_experts=8, active=33)
    with pytest.raises(InputError, match=r"\(tokens, 8\), got \(60, 7\)"):
        carve(mlp, x[:, :7], num_experts=8)
    with pytest.raises(InputError, match=r"got \(0, 8\)"):
        carve(mlp, x[:0], num_experts=8)
    assert read_dense(mlp).hidden == 32
