"""Experts spread over 2 and 4 processes equal the bank on one, gradients and their norm too."""

import copy
import socket
from collections.abc import Callable
from functools import partial
from typing import cast

import pytest
import torch
import torch.distributed as dist
import torch.multiprocessing as mp
from torch import Tensor, nn
from torch.testing import assert_close

from pointsman.errors import InputError
from pointsman.moe import FeedForwardExperts, MoE
from pointsman.moe.balance import router_z
from pointsman.moe.experts import LinearExperts
from pointsman.moe.parallel import (
    ParallelExperts,
    gather_state,
    gradient_norm,
    reduce_replicated_gradients,
    shard,
)
from pointsman.select import top_k

WIDTH = 5
exactly = partial(assert_close, rtol=0, atol=1e-12)


def layer(experts: nn.Module, k: int = 2) -> MoE:
    torch.manual_seed(1)
    router = nn.Linear(WIDTH, experts.num_experts, bias=False)  # type: ignore[arg-type]
    return MoE(
        router,
        partial(top_k, k=k, renormalize=False),
        experts,
        shared=nn.Linear(WIDTH, WIDTH),
        balance=((0.1, router_z),),
    ).double()


def bank(count: int) -> FeedForwardExperts:
    torch.manual_seed(0)
    return FeedForwardExperts(count, WIDTH, 7, activation="silu", gated=True).double()


def tokens(counts: list[int]) -> tuple[Tensor, list[Tensor]]:
    x_TD = torch.randn(sum(counts), WIDTH, generator=torch.Generator().manual_seed(2)).double()
    return x_TD, list(x_TD.split(counts))


def compare(
    process_of: list[int] | None,
    count: int,
    counts: list[int],
    bias: Callable[[nn.Linear], None] = lambda router: None,
) -> None:
    """One process with all tokens against this group, each process with its own."""
    rank, total = dist.get_rank(), max(sum(counts), 1)
    whole = bank(count)
    one, many = layer(whole), layer(shard(whole, process_of=process_of))
    for each in (one, many):
        bias(cast(nn.Linear, each.router))
    x_TD, parts = tokens(counts)
    x_TD.requires_grad_()
    mine = parts[rank].detach().clone().requires_grad_()

    def loss(moe: MoE, x: Tensor) -> tuple[Tensor, Tensor]:
        y, routing = moe(x)
        return y, y.sin().sum() / total + routing.loss * (len(x) / total)

    y_TD, wanted = loss(one, x_TD)
    wanted.backward()  # type: ignore[no-untyped-call]
    y_mine, share = loss(many, mine)
    share.backward()  # type: ignore[no-untyped-call]
    reduce_replicated_gradients(many, losses="share")
    exactly(y_mine, y_TD.split(counts)[rank])
    assert x_TD.grad is not None
    exactly(mine.grad, x_TD.grad.split(counts)[rank])
    experts = cast(ParallelExperts, many.experts)
    own = experts.experts_of[rank]
    for name, weight in one.named_parameters():
        assert weight.grad is not None
        if name.startswith("experts."):
            local = many.get_parameter(name.replace("experts.", "experts.local."))
            exactly(_filled(local), weight.grad[own])
        else:
            exactly(_filled(many.get_parameter(name)), weight.grad)
    squares = [weight.grad.square().sum() for weight in one.parameters() if weight.grad is not None]
    exactly(gradient_norm(many), torch.stack(squares).sum().sqrt())
    state = gather_state(many)
    assert set(state) == set(one.state_dict())
    one.load_state_dict(state)
    for name, value in one.state_dict().items():
        assert torch.equal(value, state[name])


def _filled(weight: nn.Parameter) -> Tensor:
    """An expert without a row may have no gradient at all."""
    return torch.zeros_like(weight) if weight.grad is None else weight.grad


def to_the_first(router: nn.Linear) -> None:
    """Every token to experts 0 and 1: scores depend on a feature that is made large below."""
    with torch.no_grad():
        router.weight.zero_()
    router.bias = nn.Parameter(-torch.arange(router.out_features).double())


def check_equal(world: int) -> None:
    even = [6] * world
    compare(None, 2 * world, even)
    compare(None, 2 * world + 1, [3 + 2 * rank for rank in range(world)])  # unequal experts, tokens
    compare([e % world for e in range(2 * world)], 2 * world, even)  # scattered placement
    compare(None, 2 * world, [0] * (world - 1) + [9])  # processes without tokens
    compare(None, 2 * world, even, to_the_first)  # all rows to one process
    compare(None, 2 * world, [0] * world)  # nothing at all


def check_local_means(world: int) -> None:
    """With equal numbers of tokens and a mean on each process, `mean` gives the same."""
    whole = bank(world)
    one, many = layer(whole, k=1), layer(shard(whole), k=1)
    x_TD, parts = tokens([4] * world)
    one(x_TD)[0].square().mean().backward()
    many(parts[dist.get_rank()])[0].square().mean().backward()
    reduce_replicated_gradients(many)
    exactly(_filled(many.router.weight), one.router.weight.grad)  # type: ignore[arg-type]
    own = dist.get_rank()
    up = many.get_parameter("experts.local.up_EFD")
    wanted = one.get_parameter("experts.up_EFD").grad
    assert wanted is not None
    exactly(_filled(up), wanted[own : own + 1])


def check_second_order(world: int) -> None:
    """Gradients of gradients pass through the exchanges."""
    whole = bank(world)
    one, many = layer(whole, k=1), layer(shard(whole), k=1)
    x_TD, parts = tokens([3] * world)

    def twice(moe: MoE, x: Tensor) -> Tensor:
        x = x.clone().requires_grad_()
        y = moe(x)[0]
        (slope,) = torch.autograd.grad(y.square().sum(), x, create_graph=True)
        (second,) = torch.autograd.grad(slope.square().sum(), x)
        return second

    exactly(
        twice(many, parts[dist.get_rank()]), twice(one, x_TD).split([3] * world)[dist.get_rank()]
    )


def check_other_banks(world: int) -> None:
    """Another width out, other types, a frozen bank, no gradients, a copy."""
    torch.manual_seed(0)
    whole = LinearExperts(world, WIDTH, 3)
    spread = shard(whole)
    rows = torch.randn(4 * world, WIDTH)
    offsets = torch.arange(world + 1) * 4
    wanted = whole(rows, offsets)
    assert_close(spread(rows, offsets), wanted)
    with torch.no_grad():
        assert_close(copy.deepcopy(spread)(rows, offsets), wanted)
    half = copy.deepcopy(spread).bfloat16()(rows.bfloat16(), offsets)
    assert half.dtype == torch.bfloat16
    assert_close(half.float(), wanted, rtol=0.05, atol=0.05)
    frozen = shard(whole.requires_grad_(False))
    # Nothing on the first process needs a gradient, and the others wait for it all the same.
    needed = dist.get_rank() > 0
    frozen(rows.requires_grad_(needed), offsets).sum().backward()
    assert (rows.grad is not None) == needed


def check_refusals(world: int) -> None:
    whole = bank(world)
    with pytest.raises(InputError, match="each process an expert, got"):
        shard(whole, process_of=[0] * world)
    spread = shard(whole)
    with pytest.raises(InputError, match=f"hold {world} experts, got offsets of 1"):
        spread(torch.zeros(0, WIDTH).double(), torch.zeros(2, dtype=torch.int64))
    with pytest.raises(InputError, match="must have one process"):
        ParallelExperts(bank(1), own=[0])
    with pytest.raises(InputError, match="names 2 experts, the bank holds 1"):
        ParallelExperts(bank(1), own=[0, 1])
    with pytest.raises(InputError, match="stacked weights"):
        whole.scale = nn.Parameter(torch.ones(world + 1))
        shard(whole)
    with pytest.raises(InputError, match="losses must be one of share, mean"):
        reduce_replicated_gradients(spread, losses="sum")  # type: ignore[arg-type]


def run(rank: int, world: int, port: int) -> None:
    torch.set_num_threads(1)
    address = f"tcp://127.0.0.1:{port}"
    dist.init_process_group("gloo", init_method=address, rank=rank, world_size=world)
    for check in (
        check_equal,
        check_local_means,
        check_second_order,
        check_other_banks,
        check_refusals,
    ):
        check(world)
    dist.destroy_process_group()


@pytest.mark.parametrize("world", [2, 4])
def test_spread_experts_equal_one_bank(world: int) -> None:
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    # A server that imports once and forks clean processes: spawning would import in each of them.
    mp.get_context("forkserver").set_forkserver_preload(["pointsman.moe.parallel", "pytest"])
    mp.start_processes(run, (world, port), nprocs=world, start_method="forkserver")  # type: ignore[no-untyped-call]


def test_without_processes_is_refused() -> None:
    with pytest.raises(InputError, match="call torch.distributed.init_process_group first"):
        shard(bank(2))
    with pytest.raises(InputError, match="there is none"):
        gradient_norm(bank(2))
