"""Expert parallelism: a bank of experts that is spread over the processes of a group.

Every process keeps its own tokens and some of the experts. Rows travel to the process that holds
their expert and back, by two all-to-all exchanges; to the layer, the spread bank is a bank like any
other.

Whose gradients are whole, and whose are not. Rows of all processes meet in an expert, so after the
backward pass an expert's gradient is that of the *sum* of all processes' losses. A weight that
every process has a copy of (router, shared expert, everything around the layer) only has the
gradient of its own process's loss. `reduce_replicated_gradients` makes both those of one loss;
leaving out its division where each process's loss is a mean is what doubles the norms of expert
gradients in a group of two.

Legend: N rows of this process, R rows that it receives, E experts in all, M experts of this
process, W processes, D width.
"""

from collections.abc import Iterator, Sequence
from copy import deepcopy
from itertools import accumulate, pairwise
from typing import Any, Literal, Self, get_args

import torch
import torch.distributed as dist
from torch import Tensor, nn

from pointsman.errors import InputError

Losses = Literal["share", "mean"]


class ParallelExperts(nn.Module):
    """Experts spread over processes, behind the interface of a bank.

    Each call makes three collective exchanges (counts, rows there, rows back) and one wait of the
    host, for the sizes; its backward makes two. So every process of the group must make the same
    calls in the same order, also one that has no rows. Any process may have any number of rows.

    Args:
        local: the bank of this process's experts.
        group: of processes; None means all of them.
        own: numbers of this process's experts among all, ascending; over the group, each number
            once. None: process 0 has the first ones, process 1 the next, and so on.

    Attributes:
        num_experts: E, of all processes together.
        experts_of: for each process, the numbers of its experts.

    Raises:
        InputError: no process group, numbers that do not fit the bank, or an expert that two
            processes or none have.
    """

    def __init__(
        self,
        local: nn.Module,
        group: dist.ProcessGroup | None = None,
        *,
        own: Sequence[int] | None = None,
    ) -> None:
        super().__init__()
        _check_group()
        self.local, self.group = local, group
        count = int(local.num_experts)  # type: ignore[arg-type]
        if own is not None and len(own) != count:
            raise InputError(f"`own` names {len(own)} experts, the bank holds {count}")
        found: list[tuple[int, list[int] | None]] = [(0, None)] * dist.get_world_size(group)
        dist.all_gather_object(found, (count, None if own is None else list(own)), group=group)
        self.experts_of = _numbered(found)
        order = [expert for experts in self.experts_of for expert in experts]
        self.num_experts = len(order)
        if sorted(order) != list(range(len(order))):
            raise InputError(
                f"over the group every expert from 0 to {len(order) - 1} must have one process, "
                f"got {self.experts_of}"
            )
        self._order = None if order == sorted(order) else order  # None: nothing to reorder

    def forward(self, rows: Tensor, offsets: Tensor) -> Tensor:
        """Rows (N, ...) sorted by expert → (N, ...); expert e owns offsets[e] to offsets[e + 1].

        Raises:
            InputError: offsets of another number of experts.
        """
        if len(offsets) != self.num_experts + 1:
            raise InputError(
                f"the processes hold {self.num_experts} experts, got offsets of {len(offsets) - 1}"
            )
        sizes_E = torch.diff(offsets)
        there = None
        if self._order is not None:
            there = _by_owner(sizes_E, self._order)
            rows = rows.index_select(0, there)
            sizes_E = sizes_E[self._order]
        sent, received_WM = self._swap_sizes(sizes_E)
        received = [sum(sizes) for sizes in received_WM]
        # Each call is part of the graph on every process, even where nothing needs a gradient:
        # the exchanges of the backward pass wait for all of them.
        needed = torch.zeros((), requires_grad=torch.is_grad_enabled())
        rows_R = _exchange(rows, needed, sent, received, self.group)
        order_R, inverse_R = _by_expert(received_WM, rows.device)
        sizes_M = [sum(sizes) for sizes in zip(*received_WM, strict=True)]
        bounds = torch.tensor([0, *accumulate(sizes_M)], device=rows.device)
        answers_R = self.local(rows_R.index_select(0, order_R), bounds)
        answers = _exchange(
            answers_R.index_select(0, inverse_R), rows_R, received, sent, self.group
        )
        return answers if there is None else answers.index_select(0, _inverse(there))

    def _swap_sizes(self, sizes_E: Tensor) -> tuple[list[int], list[list[int]]]:
        """Rows to send to each process, and rows that come, (W, M): each process's own experts."""
        counts = [len(experts) for experts in self.experts_of]
        mine = counts[dist.get_rank(self.group)]
        came = sizes_E.new_empty(len(counts) * mine)
        dist.all_to_all_single(
            came, sizes_E.contiguous(), [mine] * len(counts), counts, group=self.group
        )
        both = torch.cat([sizes_E, came]).tolist()  # the one wait of the host
        bounds = [0, *accumulate(counts)]
        sent = [sum(both[a:b]) for a, b in pairwise(bounds)]
        flat = both[len(sizes_E) :]
        return sent, [flat[at * mine : (at + 1) * mine] for at in range(len(counts))]

    def __deepcopy__(self, memo: dict[int, Any]) -> Self:
        copied = type(self).__new__(type(self))
        memo[id(self)] = copied
        memo[id(self.group)] = self.group  # a group cannot be copied, and is the same for both
        copied.__dict__.update(deepcopy(self.__dict__, memo))
        return copied

    def extra_repr(self) -> str:
        """How many experts there are, and how many of them here."""
        here = len(self.experts_of[dist.get_rank(self.group)]) if dist.is_initialized() else "?"
        return f"num_experts={self.num_experts}, here={here}"


def shard(
    bank: nn.Module,
    group: dist.ProcessGroup | None = None,
    *,
    process_of: Sequence[int] | None = None,
) -> ParallelExperts:
    """This process's experts of a whole bank, as part of one bank over the group.

    All processes must give the same bank: weights are not sent.

    Args:
        bank: with stacked weights, the first dimension of each being E. It is left as it is.
        group: of processes; None means all of them.
        process_of: (E,) the process of each expert, such as one row of a placement. None: equal
            blocks in order, the first processes having one more where E does not divide.

    Raises:
        InputError: no process group, a process without an expert, or a bank whose weights are not
            stacked (give `ParallelExperts` the bank of each process then).
    """
    _check_group()
    total, world = int(bank.num_experts), dist.get_world_size(group)  # type: ignore[arg-type]
    if process_of is None:
        process_of = _blocks(total, world)
    if len(process_of) != total or set(process_of) != set(range(world)):
        raise InputError(
            f"each of {total} experts needs a process from 0 to {world - 1}, and each process an "
            f"expert, got {list(process_of)}"
        )
    rank = dist.get_rank(group)
    own = [expert for expert, process in enumerate(process_of) if process == rank]
    return ParallelExperts(_sliced(bank, own), group, own=own)


def _blocks(total: int, world: int) -> list[int]:
    each, more = divmod(total, world)
    return [rank for rank in range(world) for _ in range(each + (rank < more))]


def _sliced(bank: nn.Module, own: Sequence[int]) -> nn.Module:
    total = bank.num_experts
    local = deepcopy(bank)
    for module in local.modules():
        for name, weight in [*module._parameters.items(), *module._buffers.items()]:
            if weight is None:
                continue
            if weight.ndim == 0 or len(weight) != total:
                raise InputError(
                    f"a bank is sharded along stacked weights, the first dimension being "
                    f"{total}, got {name} of shape {tuple(weight.shape)}: give ParallelExperts "
                    "the bank of each process"
                )
            kept = weight.detach()[list(own)].clone()
            if isinstance(weight, nn.Parameter):
                module._parameters[name] = nn.Parameter(kept, weight.requires_grad)
            else:
                module._buffers[name] = kept
        if hasattr(module, "num_experts"):
            setattr(module, "num_experts", len(own))  # noqa: B010  # typed as a weight otherwise
    return local


@torch.no_grad()
def gather_state(module: nn.Module) -> dict[str, Tensor]:
    """State of a module as if its experts lay on one process: what to save, or load elsewhere.

    Weights of spread banks are put together in the order of their experts, under the names that
    the whole bank has. All processes of the groups must call it, and all get the same.

    Args:
        module: holds `ParallelExperts` anywhere, with stacked weights.
    """
    state: dict[str, Tensor] = dict(module.state_dict())
    for path, bank in _spread_banks(module):
        prefix = f"{path}." if path else ""
        for name, mine in bank.local.state_dict().items():
            del state[f"{prefix}local.{name}"]
            state[prefix + name] = _whole(bank, mine)
    return state


def _whole(bank: ParallelExperts, mine: Tensor) -> Tensor:
    """Slices of all processes: one broadcast each, as they may be of different lengths."""
    whole = mine.new_empty(bank.num_experts, *mine.shape[1:])
    for rank, experts in enumerate(bank.experts_of):
        here = rank == dist.get_rank(bank.group)
        part = mine.contiguous() if here else mine.new_empty(len(experts), *mine.shape[1:])
        dist.broadcast(part, group=bank.group, group_src=rank)
        whole[experts] = part
    return whole


@torch.no_grad()
def reduce_replicated_gradients(
    module: nn.Module, group: dist.ProcessGroup | None = None, *, losses: Losses = "mean"
) -> None:
    """Make every gradient that of one loss over all processes; call it after `backward`.

    Gradients of weights that every process has a copy of are summed over the group, in one
    exchange for each type; those of spread experts are whole already. With losses "mean", all are
    then divided by the number of processes, those of experts too.

    The gradients then equal those of one process with all tokens, wherever the loss of that
    process is the sum (or mean) of what the processes computed. That holds for anything that is
    computed token by token, and not for balancing losses, which are of one process's tokens here.

    Args:
        module: holds `ParallelExperts` of this group; without one, all its weights are copies.
        group: of processes; None means all of them.
        losses: what the processes' losses are to the loss that is minimised. "mean": it is their
            mean, as where each takes the mean over its own tokens and all have as many. "share":
            it is their sum, as where each divides its sum by the number of all tokens, the choice
            where processes have different numbers.

    Raises:
        InputError: another word, or no process group.
    """
    _check_group()
    if losses not in get_args(Losses):
        raise InputError(f"losses must be one of {', '.join(get_args(Losses))}, got {losses!r}")
    world = dist.get_world_size(group)
    copies, spread = _by_kind(module)
    buckets: dict[tuple[torch.dtype, torch.device], list[nn.Parameter]] = {}
    for weight in copies:
        if weight.grad is None:  # a process without tokens: it must take part all the same
            weight.grad = torch.zeros_like(weight)
        buckets.setdefault((weight.dtype, weight.device), []).append(weight)
    for weights in buckets.values():
        gradients = [weight.grad for weight in weights if weight.grad is not None]
        flat = torch.cat([gradient.flatten() for gradient in gradients])
        dist.all_reduce(flat, group=group)
        parts = torch.split(flat, [gradient.numel() for gradient in gradients])
        for gradient, part in zip(gradients, parts, strict=True):
            gradient.copy_(part.view_as(gradient))
    if losses == "mean":
        for weight in [*copies, *spread]:
            if weight.grad is not None:
                weight.grad /= world


@torch.no_grad()
def gradient_norm(module: nn.Module, group: dist.ProcessGroup | None = None) -> Tensor:
    """Scalar: length of the whole gradient, each weight counted once; the same on every process.

    Call it after `reduce_replicated_gradients`. The norm that one process would compute by itself
    lacks the experts of the others; a sum of squares over processes counts copies many times.

    Args:
        module: holds `ParallelExperts` of this group.
        group: of processes; None means all of them.
    """
    _check_group()
    copies, spread = _by_kind(module)
    device = next((weight.device for weight in module.parameters()), None)
    square = torch.zeros((), dtype=torch.float64, device=device)
    for weight in spread:
        square += 0 if weight.grad is None else weight.grad.double().square().sum()
    dist.all_reduce(square, group=group)
    for weight in copies:
        square += 0 if weight.grad is None else weight.grad.double().square().sum()
    return square.sqrt()


def _spread_banks(module: nn.Module) -> Iterator[tuple[str, ParallelExperts]]:
    for path, found in module.named_modules():
        if isinstance(found, ParallelExperts):
            yield path, found


def _by_kind(module: nn.Module) -> tuple[list[nn.Parameter], list[nn.Parameter]]:
    """Trained weights that every process has a copy of, and those of its own experts."""
    own = {id(w) for _, bank in _spread_banks(module) for w in bank.local.parameters()}
    trained = [weight for weight in module.parameters() if weight.requires_grad]
    return [w for w in trained if id(w) not in own], [w for w in trained if id(w) in own]


def _check_group() -> None:
    if not (dist.is_available() and dist.is_initialized()):
        raise InputError(
            "experts are spread over a process group, and there is none: call "
            "torch.distributed.init_process_group first"
        )


def _numbered(found: list[tuple[int, list[int] | None]]) -> list[list[int]]:
    """Numbers of each process's experts: as given, or blocks in order."""
    starts = [0, *accumulate(count for count, _ in found)]
    return [
        list(range(start, start + count)) if own is None else own
        for start, (count, own) in zip(starts, found, strict=False)
    ]


def _by_owner(sizes_E: Tensor, order: list[int]) -> Tensor:
    """(N,) rows sorted by process, inside one by expert."""
    place_E = torch.empty(len(order), dtype=torch.int64)
    place_E[order] = torch.arange(len(order))
    place_N = place_E.to(sizes_E.device).repeat_interleave(sizes_E)
    return place_N.argsort(stable=True)


def _by_expert(sizes_WM: list[list[int]], device: torch.device) -> tuple[Tensor, Tensor]:
    """Rows that came process by process, sorted by expert, and the way back; (R,) each."""
    flat = torch.tensor(sizes_WM, dtype=torch.int64).flatten()
    expert = torch.arange(len(sizes_WM[0])).repeat(len(sizes_WM))
    order = expert.repeat_interleave(flat).argsort(stable=True)
    return order.to(device), _inverse(order).to(device)


def _inverse(order: Tensor) -> Tensor:
    return torch.empty_like(order).scatter_(0, order, torch.arange(len(order), device=order.device))


class _Exchange(torch.autograd.Function):
    """Rows to every process, as many as `sent` says; the gradient goes the other way round.

    The second tensor takes no part and gets no gradient: it ties the exchange into the graph.
    """

    @staticmethod
    def forward(
        ctx: Any,
        rows: Tensor,
        needed: Tensor,
        sent: list[int],
        received: list[int],
        group: dist.ProcessGroup | None,
    ) -> Tensor:
        ctx.sent, ctx.received, ctx.group = sent, received, group
        came = rows.new_empty(sum(received), *rows.shape[1:])
        dist.all_to_all_single(came, rows.contiguous(), received, sent, group=group)
        return came

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor | None, ...]:
        needed = torch.zeros((), requires_grad=torch.is_grad_enabled())
        back = _exchange(grads[0], needed, ctx.received, ctx.sent, ctx.group)
        return back, None, None, None, None


def _exchange(
    rows: Tensor,
    needed: Tensor,
    sent: list[int],
    received: list[int],
    group: dist.ProcessGroup | None,
) -> Tensor:
    came: Tensor = _Exchange.apply(rows, needed, sent, received, group)  # type: ignore[no-untyped-call]
    return came
