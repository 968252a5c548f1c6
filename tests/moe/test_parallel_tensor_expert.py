"""Tensor, expert and data ranks: exact answers, counted volumes, and tiles that change no bit."""

from contextlib import nullcontext

import pytest
import torch
from torch import Tensor, nn
from torch.testing import assert_close
from torch.utils.checkpoint import checkpoint

from pointsman.errors import InputError
from pointsman.moe.experts.reference import by_loop
from pointsman.moe.parallel import TensorExpertData, TiledAdam, Wire, routed_layer
from pointsman.select import top_k

EXPERTS, WIDTH, HIDDEN = 4, 6, 8


def weights() -> list[Tensor]:
    torch.manual_seed(0)
    shapes = [(EXPERTS, WIDTH), (EXPERTS, HIDDEN, WIDTH), (EXPERTS, WIDTH, HIDDEN)]
    return [torch.randn(shape, dtype=torch.float64, requires_grad=True) for shape in shapes]


def tokens(copies: int, count: int = 10) -> list[Tensor]:
    torch.manual_seed(1)
    return [torch.randn(count, WIDTH, dtype=torch.float64) for _ in range(copies)]


def single(x: Tensor, router_ED: Tensor, up_EFD: Tensor, down_EDF: Tensor) -> Tensor:
    """The layer of one process."""
    route = top_k(x @ router_ED.T, 1, renormalize=False)
    sizes = route.load().tolist()
    rows = by_loop(route.dispatch(x), sizes, up_EFD, None, down_EDF, torch.relu, False)
    return route.combine(rows)


@pytest.mark.parametrize("drop", [False, True])
@pytest.mark.parametrize("plan", [(1, 1, 1), (2, 2, 2), (2, 2, 4), (4, 1, 2), (1, 4, 4), (2, 4, 4)])
def test_every_rank_computes_what_one_process_does(plan: tuple[int, int, int], drop: bool) -> None:
    layout, parts = TensorExpertData(*plan), tokens(plan[2])
    mine, theirs = weights(), weights()
    found = routed_layer(layout, parts, *mine, Wire(), drop=drop)
    total = torch.zeros((), dtype=torch.float64)
    for x_TD, ranks in zip(parts, found, strict=True):
        wanted = single(x_TD, *theirs)
        for answer in ranks:
            assert_close(answer, wanted, rtol=0, atol=1e-12)
        total = total + sum(answer.sin().sum() for answer in ranks) / len(ranks)
        wanted.sin().sum().backward()  # type: ignore[no-untyped-call]
    total.backward()  # type: ignore[no-untyped-call]
    for one, many in zip(theirs, mine, strict=True):
        assert_close(many.grad, one.grad, rtol=0, atol=1e-12)


@pytest.mark.parametrize("tensor", [1, 2, 4])
def test_dropping_sends_exactly_one_row_where_each_slice_sent_one(tensor: int) -> None:
    values = {}
    for drop in (False, True):
        wire = Wire()
        routed_layer(TensorExpertData(tensor, 2, 2), tokens(2), *weights(), wire, drop=drop)
        values[drop] = wire.values["all-to-all"]
    assert values[False] == tensor * values[True] > 0


def test_replayed_messages_are_not_sent_again() -> None:
    layout = TensorExpertData(2, 2, 2)
    parts = [x_TD.requires_grad_() for x_TD in tokens(2)]

    def step(replay: bool) -> tuple[int, list[Tensor]]:
        wire, given = Wire(), weights()

        def run(*given: Tensor) -> Tensor:
            ranks = routed_layer(layout, parts, *given, wire, drop=True)
            return torch.stack([answer.square().sum() for copy in ranks for answer in copy]).sum()

        context = (lambda: (nullcontext(), wire.replay())) if replay else None
        options = {} if context is None else {"context_fn": context}
        checkpoint(run, *given, use_reentrant=False, **options).backward()
        return sum(wire.calls.values()), [
            weight.grad for weight in given if weight.grad is not None
        ]

    (naive, wanted), (aware, found) = step(False), step(True)
    assert aware * 3 == naive * 2
    for one, other in zip(wanted, found, strict=True):
        assert torch.equal(one, other)


def test_groups_are_partitions_that_meet_the_plan() -> None:
    plan = TensorExpertData(tensor=2, expert=2, data=4)
    groups = {
        2: [plan.tensor_groups(), plan.expert_groups(), plan.expert_data_groups()],
        4: [plan.data_groups()],
    }
    for size, kinds in groups.items():
        for kind in kinds:
            assert sorted(rank for group in kind for rank in group) == list(range(plan.world))
            assert {len(group) for group in kind} == {size}
    assert plan.expert_groups()[0] == [0, 2]
    assert plan.expert_data_groups()[0] == [0, 4]


def test_plans_that_do_not_divide_are_refused() -> None:
    with pytest.raises(InputError, match="`expert` must divide `data`, got tensor=1, expert=2"):
        TensorExpertData(1, 2, 3)
    with pytest.raises(InputError, match="has 2 copies, got the tokens of 1"):
        routed_layer(TensorExpertData(1, 1, 2), tokens(1), *weights(), Wire(), drop=True)
    with pytest.raises(InputError, match="must divide 4 experts, and tensor=3 their hidden"):
        routed_layer(TensorExpertData(3, 1, 1), tokens(1), *weights(), Wire(), drop=True)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float32])
def test_tiles_change_no_bit(dtype: torch.dtype) -> None:
    def run(tile: int) -> tuple[list[Tensor], int]:
        torch.manual_seed(0)
        net = nn.Sequential(nn.Linear(7, 19), nn.Tanh(), nn.Linear(19, 3)).to(dtype)
        optimiser = TiledAdam(net.parameters(), 1e-2, tile=tile)
        for _ in range(5):
            net(torch.randn(4, 7, dtype=dtype)).square().sum().backward()
            optimiser.step()
            optimiser.zero_grad()
        return [weight.detach() for weight in net.parameters()], optimiser.largest_copy

    wanted, whole = run(10**6)
    assert whole == 7 * 19
    for tile in (1, 5, 64):
        found, largest = run(tile)
        assert largest == tile
        assert all(torch.equal(one, other) for one, other in zip(wanted, found, strict=True))


def test_tiled_adam_follows_adam() -> None:
    torch.manual_seed(0)
    mine, theirs = (nn.Parameter(torch.ones(6)) for _ in range(2))
    tiled, adam = TiledAdam([mine], 1e-2, tile=4), torch.optim.Adam([theirs], 1e-2)
    for _ in range(10):
        gradient = torch.randn(6)
        mine.grad, theirs.grad = gradient.clone(), gradient.clone()
        tiled.step()
        adam.step()
    assert_close(mine, theirs)
    with pytest.raises(InputError, match="at least one value, got 0"):
        TiledAdam([mine], tile=0)
