"""Adapters, trees, paths and image systems: what they share with plain layers, and their errors."""

import copy
import io
from functools import partial

import pytest
import torch
from torch import Tensor, nn
from torch.testing import assert_close

from pointsman.errors import InputError
from pointsman.moe.experts import LoRAExperts, MixedExperts
from pointsman.moe.layer import MoE
from pointsman.moe.systems.adapters import mixture_of_shards, multi_head_routing
from pointsman.moe.systems.continual import bi_level_routing, mixture_of_rank
from pointsman.moe.systems.robust import attack, robust_paths
from pointsman.moe.systems.stacked import (
    DistributedNetwork,
    RoutedAttention,
    SkipControl,
    chain_of_experts,
    distributed_architecture,
)
from pointsman.moe.systems.trees import residual_tree
from pointsman.moe.systems.vision import ChannelAttention, multi_centre, soft_value_network


def base() -> nn.Linear:
    torch.manual_seed(0)
    return nn.Linear(6, 4).double()


def answer(found: Tensor | tuple[Tensor, object]) -> Tensor:
    return found if isinstance(found, Tensor) else found[0]


def made(name: str) -> tuple[nn.Module, tuple[int, ...]]:
    """A system with no weight at zero, and the shape of its input."""
    torch.manual_seed(1)
    systems: dict[str, tuple[nn.Module, tuple[int, ...]]] = {
        "rank": (mixture_of_rank(base(), 3, 2), (2, 3, 6)),
        "shards": (mixture_of_shards([base(), base()], 1, 3, shards=2)[1], (2, 3, 6)),
        "tree": (residual_tree(base(), (3, 2), (2, 1), (2, 1)), (2, 3, 6)),
        "care": (bi_level_routing(6, expert=3, shared=2), (2, 3, 6)),
        "chain": (chain_of_experts(6, 3, 4, 2, balance=0.1), (2, 3, 6)),
        "network": (
            distributed_architecture(6, 5, attentions=2, feed_forwards=2, steps=2),
            (2, 4, 6),
        ),
        "centres": (multi_centre(1, 4, 1, heads=2, hidden=3), (2, 1, 3, 3)),
        "paths": (robust_paths([1, 2, 3], router_width=3), (2, 1, 4, 4)),
        "values": (
            soft_value_network(nn.Conv2d(1, 2, 1), 2, 9, 3, 2, hidden=3),
            (2, 1, 3, 3),
        ),
    }
    system, shape = systems[name]
    if name == "care":
        for classes in (2, 3, 2):
            system.add_task(classes)
    with torch.no_grad():
        for weight in system.parameters():
            weight.add_(0.3 * torch.randn_like(weight))
    return system.double().eval(), shape


SYSTEMS = pytest.mark.parametrize(
    "name", ["rank", "shards", "tree", "care", "chain", "network", "centres", "paths", "values"]
)


def inputs(shape: tuple[int, ...]) -> Tensor:
    return torch.rand(shape, generator=torch.Generator().manual_seed(3), dtype=torch.float64)


@SYSTEMS
def test_gradients_in_float64(name: str) -> None:
    system, shape = made(name)
    if name == "paths":
        # The gradient of its route is a straight-through one: only what does not route is checked.
        system.router.requires_grad_(False)
        for layer in system.router:
            layer.register_forward_hook(lambda _module, _inputs, output: output.detach())
    weights = [weight for weight in system.parameters() if weight.requires_grad]
    x = inputs(shape).requires_grad_()
    assert torch.autograd.gradcheck(lambda x, *_: answer(system(x)), (x, *weights), fast_mode=True)


@SYSTEMS
def test_each_input_by_itself_and_none(name: str) -> None:
    system, shape = made(name)
    x = inputs(shape)
    y = answer(system(x))
    assert y.dtype == torch.float64
    assert_close(torch.cat([answer(system(x[:1])), answer(system(x[1:]))]), y)
    if name != "network":
        empty = answer(system(x[:0]))
        assert empty.shape == (0, *y.shape[1:])


@SYSTEMS
def test_saved_loaded_and_copied(name: str) -> None:
    system, shape = made(name)
    file = io.BytesIO()
    torch.save(system.state_dict(), file)
    file.seek(0)
    other, x = made(name)[0], inputs(shape)
    with torch.no_grad():
        for weight in other.parameters():
            weight.zero_()
    other.load_state_dict(torch.load(file, weights_only=True))
    for each in (other, copy.deepcopy(system)):
        assert torch.equal(answer(each(x)), answer(system(x)))


def test_padding_takes_no_part_in_rounds_and_paths() -> None:
    mask = torch.tensor([[True, True, True, False], [True, False, False, False]])
    for name in ("chain", "network"):
        system, x = made(name)[0], inputs((2, 4, 6))
        y, routings = system(x, mask=mask)
        assert not y[~mask].any()
        assert_close(y[0, :3], answer(system(x[:1, :3]))[0])
        assert {routing.route.num_inputs for routing in routings} == {4}


def test_attention_sees_earlier_tokens_of_its_sequence_that_chose_it() -> None:
    module = RoutedAttention(4, 2).double()
    rows = inputs((5, 4)).requires_grad_()
    y = module(rows, torch.tensor([0, 0, 1, 1, 1]), torch.tensor([0, 3, 0, 1, 4]))
    (grad,) = torch.autograd.grad(y[3].sum(), rows)
    assert grad[2].any()
    assert grad[3].any()
    assert not grad[[0, 1, 4]].any()


def test_skip_control_keeps_its_bias_in_float32_and_in_the_state() -> None:
    network = distributed_architecture(6, 5, steps=2, target=0.2).bfloat16()
    assert network.controls[0].bias.dtype == torch.float32
    assert "controls.1.bias" in network.state_dict()
    y, routings = network(inputs((2, 4, 6)).bfloat16())
    network.after_step(routings)
    assert y.dtype == torch.bfloat16
    assert network.controls[0].bias.abs() == torch.tensor(0.01)


def test_pieces_of_three_tasks_are_on_offer() -> None:
    layer: MoE | None = None
    for _ in range(3):
        layer = mixture_of_rank(base(), 2, 4, earlier=layer)
    assert layer is not None
    assert isinstance(layer.experts, MixedExperts)
    assert layer.experts.num_experts == 6
    trained = [name for name, weight in layer.named_parameters() if weight.requires_grad]
    assert len(trained) == 2
    assert all("parts.2" in name for name in trained)
    assert isinstance(layer.experts.parts[0], LoRAExperts)


def test_an_attack_of_no_steps_is_noise_alone() -> None:
    x = inputs((3, 4))
    moved = attack(torch.sum, x, radius=0.5, step=0.1, steps=0, noise=0.0)
    assert torch.equal(moved, x)


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (partial(chain_of_experts, 6, 3, 4, 3, rounds=2), "split evenly over rounds, got 3 over 2"),
        (partial(SkipControl, 4, 2, skips=1, target=0.6), "between 0 and 0.5 of the slots"),
        (partial(SkipControl, 4, 2, skips=4), "1 to E - 1 skip"),
        (partial(RoutedAttention, 6, 4), "heads must divide the width"),
        (partial(ChannelAttention, 6, 4), "heads must divide the channels"),
        (partial(multi_head_routing, base(), 2, heads=4), "heads must divide 6 inputs"),
        (partial(mixture_of_shards, [base()], shards=3), "shards must divide 6 inputs"),
        (partial(mixture_of_shards, [base()], 1, 4, shards=2, private=2), "0 to the budget of 1"),
        (partial(mixture_of_shards, [base()], 1, 4, shards=2, private=1), "needs public shards"),
        (partial(mixture_of_shards, [base(), nn.Linear(2, 2)]), "layers of one shape"),
        (partial(residual_tree, base(), (2,), (3,), (1,)), "1 to E children"),
        (partial(residual_tree, base(), (2,), (1, 1), (1,)), "as many sub-layers"),
    ],
)
def test_bad_sizes_are_refused(make: partial[object], message: str) -> None:
    with pytest.raises(InputError, match=message):
        make()


def test_bad_calls_are_refused() -> None:
    adapter, x = multi_head_routing(base().float(), 3, skills=2, heads=2), torch.randn(4, 6)
    with pytest.raises(InputError, match="from 0 to 2"):
        adapter(x, torch.tensor([0, 1, 2, 3]))
    with pytest.raises(InputError, match="each token needs a task"):
        adapter(x, torch.tensor([0]))
    with pytest.raises(InputError, match=r"call add_task\(classes\) first"):
        bi_level_routing(6)(torch.randn(2, 3, 6))


def test_modules_of_a_pool_that_nobody_chose_are_not_called() -> None:
    class Never(nn.Module):
        def forward(self, rows: Tensor) -> Tensor:
            raise AssertionError(rows)

    network = DistributedNetwork(6, [Never(), nn.Linear(6, 6)], 2, 1)
    with torch.no_grad():
        for router in network.routers:
            router.bias.copy_(torch.tensor([-1e9, 0.0, 0.0]))
    network(torch.randn(2, 3, 6))
