"""Systems on trained models: carving, splitting, drawn routing, tuned shifts and routers."""

from functools import partial
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.testing import assert_close

from pointsman.errors import InputError
from pointsman.moe import FeedForwardExperts, MoE, Routing
from pointsman.moe.balance import BiasedTopK
from pointsman.moe.convert import copy, softmax_top_k
from pointsman.moe.routers import KMeansRouter
from pointsman.moe.systems.rerouted import (
    ShiftedRouter,
    confident_layers,
    manifold_loss,
    online_rerouting,
    roma,
    roster_of_experts,
    routing_vectors,
    sampled_routing,
    sampled_top_k,
    successful_neighbours,
)
from pointsman.moe.systems.upcycled import cmoe, dynamic_dino
from pointsman.select import relu, top_k


def tokens(count: int = 20, dtype: torch.dtype = torch.float64) -> Tensor:
    return torch.randn(count, 6, generator=torch.Generator().manual_seed(0)).to(dtype)


def layer(select: Any = None, router: nn.Module | None = None) -> MoE:
    torch.manual_seed(0)
    return MoE(
        router or nn.Linear(6, 5),
        select or partial(top_k, k=2),
        FeedForwardExperts(5, 6, 8),
    ).double()


class Two(nn.Module):
    """Two routed layers, one after the other."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.second = layer(), layer(partial(softmax_top_k, k=2, renormalize=False))

    def forward(self, x: Tensor) -> Tensor:
        x = x + self.first(x)[0]
        y: Tensor = x + self.second(x)[0]
        return y


def mlp(*, down_bias: bool = True) -> nn.Module:
    torch.manual_seed(1)
    layers = nn.Linear(6, 16), nn.GELU(), nn.Linear(16, 6, bias=down_bias)
    return nn.Sequential(*layers).double()


def test_cmoe_balances_by_its_bias_alone() -> None:
    moe = cmoe(mlp(), tokens(), num_experts=8, k=2, active=4, rate=0.1)
    assert isinstance(moe.select, BiasedTopK)
    before = moe(tokens())[1]
    moe.after_step([before])
    assert bool(moe.select.bias.any())
    assert_close(moe(tokens())[1].scores, before.scores)
    assert cmoe(mlp(), tokens(), num_experts=8, k=6, active=4)(tokens())[0].dtype == torch.float64


def test_dynamic_dino_equals_the_dense_layer_and_has_its_balancing_loss() -> None:
    y, routing = dynamic_dino(mlp(), copies=3, slices=4)(tokens())
    assert_close(y, mlp()(tokens()), rtol=0, atol=1e-12)
    assert routing.weights == {"switch": 0.01}
    assert routing.route.num_branches == 12


@pytest.mark.parametrize("renormalize", [True, False])
def test_drawn_experts_are_weighted_as_without_noise(renormalize: bool) -> None:
    scores = torch.randn(30, 7, generator=torch.Generator().manual_seed(1)).double()
    generator = torch.Generator().manual_seed(2)
    route = sampled_top_k(
        scores, 3, temperature=0.7, renormalize=renormalize, generator=generator
    ).validate()
    chosen = route.branches.reshape(30, 3)
    weights = scores.softmax(dim=1).gather(1, chosen)
    if renormalize:
        weights = weights / weights.sum(dim=1, keepdim=True)
    assert_close(route.weights.reshape(30, 3), weights)
    assert not torch.equal(chosen, scores.topk(3, dim=1).indices)
    plain = top_k(scores, 3, renormalize=renormalize)
    still = sampled_top_k(scores, 3, temperature=0.0, renormalize=renormalize)
    assert torch.equal(still.branches, plain.branches)
    assert torch.equal(still.weights, plain.weights)


def test_a_draw_does_not_hang_on_rows_below_and_closed_experts_stay_closed() -> None:
    scores = torch.randn(9, 4, generator=torch.Generator().manual_seed(1))
    scores[:, 2] = -torch.inf

    def drawn(rows: Tensor) -> Tensor:
        generator = torch.Generator().manual_seed(5)
        return sampled_top_k(rows, 2, temperature=2.0, generator=generator).branches

    assert torch.equal(drawn(scores)[:8], drawn(scores[:4]))
    assert 2 not in drawn(scores).tolist()
    assert len(sampled_top_k(scores[:0], 2, temperature=1.0)) == 0


def test_a_roster_averages_probabilities_and_leaves_the_model_as_it_was() -> None:
    model, x = Two(), tokens()
    selects = [model.first.select, model.second.select]
    passes = iter([torch.tensor([[2.0, 0.0]]), torch.tensor([[0.0, 3.0]])])
    mixed = roster_of_experts(model, lambda: next(passes), passes=2)
    expected = torch.tensor([[2.0, 0.0], [0.0, 3.0]]).softmax(dim=1).mean(dim=0, keepdim=True)
    assert_close(mixed, expected)
    own = model(x).softmax(dim=1)
    assert torch.equal(roster_of_experts(model, lambda: model(x), temperature=1.0, passes=1), own)
    same = roster_of_experts(model, lambda: model(x), temperature=0.0, passes=3)
    assert_close(same, own, rtol=0, atol=1e-12)
    assert [model.first.select, model.second.select] == selects
    with pytest.raises(InputError, match="at least one pass"):
        roster_of_experts(model, lambda: model(x), passes=0)


def test_temperatures_are_given_by_layer() -> None:
    model, x = Two(), tokens()
    with sampled_routing(model, {"second": 2.0}, generator=torch.Generator().manual_seed(0)):
        drawn = model.second(x)[1].route.branches
        assert torch.equal(model.first(x)[1].route.branches, layer()(x)[1].route.branches)
    assert not torch.equal(drawn, model.second(x)[1].route.branches)
    with (
        pytest.raises(InputError, match="no routed layer is named 'third'"),
        sampled_routing(model, {"third": 1.0}),
    ):
        pass
    for select in (relu, partial(top_k, k=2, bias=torch.zeros(5))):
        with (
            pytest.raises(InputError, match="drawing around a choice"),
            sampled_routing(layer(select), 1.0),
        ):
            pass


def test_shifts_change_nothing_at_zero_and_only_they_are_tuned() -> None:
    model, x = Two(), tokens()
    own, weights = model(x), [weight.clone() for weight in model.parameters()]
    routers = model.first.router, model.second.router
    target = torch.randn(x.shape, generator=torch.Generator().manual_seed(3)).double()

    def loss() -> Tensor:
        return (model(x) - target).square().mean()

    before = float(loss().detach())
    with torch.no_grad(), online_rerouting(model) as rerouting:
        assert torch.equal(model(x), own)
        rerouting.adapt(loss, steps=4, rate=0.05)
        assert float(loss()) < before
        assert all(bool(shift.any()) for shift in rerouting.shifts.values())
        rerouting.reset()
        assert torch.equal(model(x), own)
    assert (model.first.router, model.second.router) == routers
    assert all(torch.equal(a, b) for a, b in zip(weights, model.parameters(), strict=True))
    assert all(weight.grad is None for weight in model.parameters())


def test_shifts_are_for_the_layers_named() -> None:
    model = Two()
    with online_rerouting(model, ["second"]) as rerouting:
        assert list(rerouting.shifts) == ["second"]
        assert isinstance(model.second.router, ShiftedRouter)
        assert not isinstance(model.first.router, ShiftedRouter)
    with (
        pytest.raises(InputError, match="there are first, second"),
        online_rerouting(model, ["third"]),
    ):
        pass


def test_a_shifted_router_passes_on_what_its_router_is() -> None:
    inside = KMeansRouter(6, 5)
    shifted = ShiftedRouter(inside, torch.zeros(5))
    assert shifted.guarantee == inside.guarantee
    assert shifted.keeps_tokens == inside.keeps_tokens
    moe = MoE(shifted, partial(top_k, k=2), FeedForwardExperts(5, 6, 8))
    plain = MoE(inside, partial(top_k, k=2), moe.experts)
    x = tokens(dtype=torch.float32)
    _, routing = moe(x)
    assert_close(routing.scores, plain(x)[1].scores)
    before = {name: t.clone() for name, t in inside.state_dict().items()}
    moe.after_step([routing])
    assert any(not torch.equal(t, before[name]) for name, t in inside.state_dict().items())
    with torch.no_grad():
        shifted.shift[2] = 50.0
    assert (moe(x)[1].route.branches.reshape(-1, 2)[:, 0] == 2).all()


def test_confident_layers_come_surest_first() -> None:
    x = tokens()
    found: dict[str, Routing] = {}
    for name, scale in (("unsure", 0.1), ("sure", 30.0), ("between", 2.0)):
        moe = layer()
        with torch.no_grad():
            for weight in moe.router.parameters():
                weight.mul_(scale)
        found[name] = moe(x)[1]
    assert confident_layers(found, 2) == ["sure", "between"]
    vectors = routing_vectors(list(found.values()))
    assert vectors.shape == (20, 15)
    assert_close(vectors.sum(dim=1), torch.full((20,), 3.0, dtype=torch.float64))


def test_neighbours_are_near_correct_and_weighed_by_distance() -> None:
    embeddings = torch.tensor([[0.0], [0.1], [0.3], [5.0], [5.1]])
    correct = torch.tensor([True, True, False, True, True])
    index, weights = successful_neighbours(embeddings, correct, k=2, width=1.0)
    assert index.tolist() == [[1, 3], [0, 3], [1, 0], [4, 1], [3, 1]]
    exact = torch.tensor([0.2**2, 0.3**2]).div(-2).exp()
    assert_close(weights[2], exact / exact.sum())
    with pytest.raises(InputError, match="at least 5 correct samples, got 4"):
        successful_neighbours(embeddings, correct, k=4)


def test_manifold_loss_is_what_it_says() -> None:
    generator = torch.Generator().manual_seed(0)
    vectors = torch.rand(3, 4, generator=generator, dtype=torch.float64, requires_grad=True)
    targets = torch.rand(3, 2, 4, generator=generator, dtype=torch.float64)
    weights = torch.rand(3, 2, generator=generator, dtype=torch.float64)
    expected = sum(
        weights[b, k] * (vectors[b] - targets[b, k]).square().sum()
        for b in range(3)
        for k in range(2)
    )
    assert_close(manifold_loss(vectors, targets, weights), expected / 3)
    assert torch.autograd.gradcheck(manifold_loss, (vectors, targets, weights))


def test_roma_moves_the_routers_alone_and_towards_the_neighbours() -> None:
    moe, x = layer(), tokens()

    def run(rows: Tensor) -> tuple[Tensor, Tensor]:
        y, routing = moe(x[rows])
        return 0.0 * y.sum(), routing_vectors([routing])

    neighbours = successful_neighbours(x, torch.ones(20, dtype=torch.bool), k=2)
    stored = run(torch.arange(20))[1].detach()

    def apart() -> float:
        vectors = run(torch.arange(20))[1]
        return float(manifold_loss(vectors, stored[neighbours[0]], neighbours[1]).detach())

    before, experts = apart(), [w.clone() for w in moe.experts.parameters()]
    roma(moe.router.parameters(), run, neighbours, updates=30, rate=0.05)
    assert apart() < before
    assert all(torch.equal(a, b) for a, b in zip(experts, moe.experts.parameters(), strict=True))
    assert all(weight.grad is None for weight in moe.parameters())


def test_shifts_and_draws_work_on_upcycled_layers() -> None:
    moe = copy(mlp(), 4)
    with online_rerouting(moe) as rerouting:
        assert list(rerouting.shifts) == [""]
        assert_close(moe(tokens())[0], mlp()(tokens()), rtol=0, atol=1e-12)
    with sampled_routing(moe, 1.0):
        assert_close(moe(tokens())[0], mlp()(tokens()), rtol=0, atol=1e-12)
