"""The systems of `moe.systems.estimated`: that each is the composition it says."""

import warnings

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional
from torch.testing import assert_close

from pointsman import learn
from pointsman.moe import MoE
from pointsman.moe.competition import CompetingRouter, CompetitionSchedule, every_answer
from pointsman.moe.systems import estimated

D, H, E, T = 6, 8, 4, 16


def tokens(seed: int = 0, count: int = T) -> Tensor:
    return torch.randn(count, D, generator=torch.Generator().manual_seed(seed))


MADE = {
    "grin": lambda: estimated.grin(D, H, E, eps=0.5),
    "remix": lambda: estimated.remix(nn.Linear(D, D), E, rank=2),
    "competesmoe": lambda: estimated.competesmoe(D, H, E),
    "expert_prototyping": lambda: estimated.expert_prototyping(D, H, E),
    "expert_prototyping limited": lambda: estimated.expert_prototyping(D, H, E, capacity=3),
    "rectify_router": lambda: estimated.rectify_router(D, H, E, capacity=4, devices=2),
    "sparse_transport": lambda: estimated.sparse_transport(D, H, E, capacity=5),
    "mixer": lambda: estimated.mixer(2, D, H, E),
}
WITHOUT_ROUTER_GRADIENT = {"remix", "mixer"}


@pytest.mark.parametrize("name", MADE)
def test_each_layer_is_made_silently_and_learns_in_both_modes(name: str) -> None:
    torch.manual_seed(0)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        layer = MADE[name]()
    if isinstance(layer.router, CompetingRouter):
        layer.router.competing = True
    for mode in (True, False):
        layer.train(mode)
        layer.zero_grad()
        y, routing = layer(tokens())
        assert y.shape == (T, D)
        (y.square().mean() + routing.loss).backward()
        routed = [weight for weight in layer.router.parameters() if weight.requires_grad]
        reached = any(w.grad is not None and bool((w.grad != 0).any()) for w in routed)
        assert reached == (name not in WITHOUT_ROUTER_GRADIENT)
        assert any(
            w.grad is not None and bool((w.grad != 0).any()) for w in layer.experts.parameters()
        )


@pytest.mark.parametrize("name", MADE)
def test_each_layer_takes_no_tokens(name: str) -> None:
    y, routing = MADE[name]()(tokens(count=0))
    assert y.shape == (0, D)
    assert len(routing.route) == 0


def test_grin_draws_in_training_and_takes_the_best_in_evaluation() -> None:
    layer = estimated.grin(D, H, E, eps=5.0)
    x = tokens().expand(1, T, D).reshape(T, D)
    assert not torch.equal(layer(x)[1].route.branches, layer(x)[1].route.branches)
    layer.eval()
    routing = layer(x)[1]
    assert torch.equal(routing.route.branches.reshape(T, 2), routing.scores.topk(2, dim=1).indices)


def test_remix_starts_as_its_frozen_base_and_weighs_the_chosen_equally() -> None:
    base = nn.Linear(D, 3)
    layer = estimated.remix(base, E, k=2, rank=4)
    y, routing = layer(tokens())
    assert_close(y, base(tokens()))
    assert set(routing.route.weights.tolist()) == {2 / (2 * 4)}
    assert not any(weight.requires_grad for weight in base.parameters())
    layer.eval()
    routing = layer(tokens())[1]
    assert torch.equal(routing.route.branches.reshape(T, 2), routing.scores.topk(2, dim=1).indices)


def test_remix_learns_to_route_from_the_losses_of_several_calls() -> None:
    torch.manual_seed(0)
    layer = estimated.remix(nn.Linear(D, D, bias=False), E, k=1, rank=2, weight=1.0)
    with torch.no_grad():
        layer.experts.b_EOR.normal_()
    # The third expert alone is right, for everybody.
    x = tokens()
    x[:, 0] = 1.0
    y = every_answer(layer.experts, x)[:, 2].detach() + layer.shared(x)  # type: ignore[misc]
    optimiser = torch.optim.Adam(layer.router.parameters(), 0.1)
    for _ in range(30):
        calls = [layer(x) for _ in range(3)]
        losses = torch.stack(
            [functional.mse_loss(a, y, reduction="none").mean(1) for a, _ in calls]
        )
        logs = [learn.log_prob_without_replacement(r.scores, r.route) for _, r in calls]
        loss = learn.leave_one_out(losses, torch.stack(logs))
        optimiser.zero_grad()
        loss.backward()
        optimiser.step()
    layer.eval()
    assert (layer(x)[1].route.branches == 2).double().mean() > 0.9


def test_competesmoe_competes_when_its_schedule_says() -> None:
    layer = estimated.competesmoe(D, H, E)
    assert isinstance(layer.router, CompetingRouter)
    schedule = CompetitionSchedule([layer.router], share=1.0, warm_up=1)
    found = []
    for _ in range(3):
        schedule.step()
        found.append(float(layer(tokens())[1].losses["foresight"].detach()))
    assert found[0] == 0 < min(found[1:])
    assert set(layer(tokens())[1].losses) == {"foresight", "diversity", "switch", "router_z"}


def test_rectify_router_drops_nobody() -> None:
    layer = estimated.rectify_router(D, H, E, capacity=2, devices=4)
    assert not layer(tokens())[1].route.dropped().any()


def test_mixer_is_fitted_and_weighs_its_expert_with_one() -> None:
    torch.manual_seed(0)
    layer = estimated.mixer(2, D, H, 2, out=1)
    x = tokens()
    x[:, :2] = torch.tensor([[-1.0, 0.0], [1.0, 0.0]])[torch.arange(T) % 2]
    answers = every_answer(layer.experts, x)
    assert answers.shape == (T, 2, 1)
    losses = torch.tensor([[0.0, 1.0], [1.0, 0.0]])[torch.arange(T) % 2]
    assert any(layer.router.fit(x[:, :2], losses) for _ in range(20))  # type: ignore[operator]
    y, routing = layer(x)
    assert torch.equal(routing.route.branches, torch.arange(T) % 2)
    assert_close(y, answers[torch.arange(T), torch.arange(T) % 2])


def test_smear_and_polystep_pass_their_options_on() -> None:
    layer = estimated.smear(D, 4, 3)
    y, routing = layer(tokens().reshape(2, 8, D))
    assert y.shape == (2, 8, D)
    assert routing.route.num_inputs == 2
    net = nn.Sequential(nn.Linear(D, H), nn.Linear(H, 1))
    net[0].bias.requires_grad_(False)
    kept = net[0].bias.clone()
    optimiser = estimated.polystep(net, generator=torch.Generator().manual_seed(0))
    coordinates = 4 + 4 + 1
    optimiser.step(lambda: net(tokens()).square().mean())
    assert optimiser.evaluations == 2 * 8 * -(-coordinates // 8)
    assert torch.equal(net[0].bias, kept)


def test_systems_have_a_source() -> None:
    for name in ("grin", "remix", "smear", "competesmoe", "expert_prototyping", "rectify_router"):
        assert "arXiv" in (getattr(estimated, name).__doc__ or "")
    assert isinstance(MADE["grin"](), MoE)
