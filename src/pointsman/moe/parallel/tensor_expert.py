"""Tensor, expert and data parallelism at once: who is with whom, what is sent, on simulated ranks.

Weights around the experts are cut over `tensor` ranks and copied over `data` ones. Experts are
spread over `expert` of these copies, each cut over the same tensor ranks. All tensor ranks of a
copy hold the same tokens, so sending them all to the experts sends each one `tensor` times.

Singh et al. 2023, "A hybrid tensor-expert-data parallelism approach to optimize mixture-of-experts
training" (arXiv 2303.06318). Here are the plan of ranks, its volumes, and a simulation of one
routed layer in one process that proves the plan exact. A system that trains with it on a cluster is
not here; `ParallelExperts` is expert parallelism alone, on real processes.

Legend: T tokens of one copy, D width, F hidden width, E experts, R ranks.
"""

from collections import deque
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any, Literal

import torch
from torch import Tensor
from torch.nn.functional import linear

from pointsman.errors import InputError
from pointsman.route import Route
from pointsman.select import top_k

Kind = Literal["all-to-all", "all-gather", "all-reduce"]
Sent = tuple[Tensor, ...]


@dataclass(frozen=True)
class TensorExpertData:
    """A plan of ranks; rank = copy * tensor + slice, and copy c holds expert block c % expert.

    Args:
        tensor: ranks that cut every matrix.
        expert: copies that the experts are spread over; divides `data`.
        data: copies of the weights around the experts.

    Raises:
        InputError: a number below one, or `expert` does not divide `data`.
    """

    tensor: int
    expert: int
    data: int

    def __post_init__(self) -> None:
        if min(self.tensor, self.expert, self.data) < 1 or self.data % self.expert:
            raise InputError(
                "a plan needs numbers of at least 1, and `expert` must divide `data`, got "
                f"tensor={self.tensor}, expert={self.expert}, data={self.data}"
            )

    @property
    def world(self) -> int:
        """Ranks in all."""
        return self.tensor * self.data

    def tensor_groups(self) -> list[list[int]]:
        """Ranks that hold the same tokens, and the slices of the same matrices."""
        return [[self._rank(copy, part) for part in range(self.tensor)] for copy in self._copies()]

    def data_groups(self) -> list[list[int]]:
        """Ranks with the same slice of what is around the experts: its gradients are summed."""
        return [[self._rank(copy, part) for copy in self._copies()] for part in range(self.tensor)]

    def expert_groups(self) -> list[list[int]]:
        """Ranks that exchange tokens."""
        return [
            [self._rank(first + at, part) for at in range(self.expert)]
            for first in range(0, self.data, self.expert)
            for part in range(self.tensor)
        ]

    def expert_data_groups(self) -> list[list[int]]:
        """Ranks that hold the same slice of the same experts: their gradients are summed."""
        return [
            [self._rank(copy, part) for copy in range(block, self.data, self.expert)]
            for block in range(self.expert)
            for part in range(self.tensor)
        ]

    def _copies(self) -> range:
        return range(self.data)

    def _rank(self, copy: int, part: int) -> int:
        return copy * self.tensor + part


@dataclass
class Wire:
    """Counts what simulated ranks send to each other, forward and backward.

    Attributes:
        calls: of collectives, by kind; what replay takes from memory is none.
        values: sent to another rank by the forward pass, by kind.
    """

    calls: dict[Kind, int] = field(default_factory=dict)
    values: dict[Kind, int] = field(default_factory=dict)
    _memory: deque[Sent] = field(default_factory=deque)
    _replaying: bool = False

    def send(self, kind: Kind, tensors: Sequence[Tensor], values: int) -> Sent:
        """These tensors, on other ranks now; their gradients take the same way back.

        Args:
            kind: of collective.
            tensors: of all ranks.
            values: that reach another rank.
        """
        sent: Sent = _Send.apply(self, kind, values, *tensors)  # type: ignore[no-untyped-call]
        return sent

    def count(self, kind: Kind, values: int = 0) -> None:
        """One collective more."""
        self.calls[kind] = self.calls.get(kind, 0) + 1
        self.values[kind] = self.values.get(kind, 0) + values

    @contextmanager
    def replay(self) -> Iterator[None]:
        """Take what was received before from memory instead of sending again.

        For the second pass of activation checkpointing: products are computed again and messages
        are not. Give `lambda: (nullcontext(), wire.replay())` as `context_fn`.
        """
        self._replaying = True
        try:
            yield
        finally:
            self._replaying = False


class _Send(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, wire: Wire, kind: Kind, values: int, *tensors: Tensor) -> Sent:
        ctx.wire, ctx.kind = wire, kind
        if wire._replaying:
            return wire._memory.popleft()
        wire.count(kind, values)
        received = tuple(tensor.detach().clone() for tensor in tensors)
        wire._memory.append(received)
        return tuple(tensor.clone() for tensor in received)

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor | None, ...]:
        ctx.wire.count(ctx.kind)
        return (None, None, None, *grads)


def routed_layer(
    plan: TensorExpertData,
    tokens: Sequence[Tensor],
    router_ED: Tensor,
    up_EFD: Tensor,
    down_EDF: Tensor,
    wire: Wire,
    *,
    drop: bool,
) -> list[list[Tensor]]:
    """One top-1 layer of ReLU experts as every rank of a plan would run it.

    With `drop`, a tensor rank sends only its own part of the tokens that all of its copy hold, and
    the parts are gathered again beside the experts and beside the tokens: 1 / tensor of the rows of
    the exchange. Routing must be the same on all tensor ranks of a copy.

    Args:
        plan: of the ranks.
        tokens: (T, D) of each copy.
        router_ED: of a linear router.
        up_EFD: matrices of the experts; the plan cuts F, and spreads E in blocks.
        down_EDF: matrices of the experts.
        wire: counts what is sent.
        drop: whether tensor ranks send parts.

    Returns:
        For each copy, for each tensor rank, answers (T, D); those of one copy are the same.

    Raises:
        InputError: one tensor for each copy is not given, or sizes that the plan does not divide.
    """
    _check_sizes(plan, tokens, up_EFD)
    routes = [top_k(linear(x_TD, router_ED), 1, renormalize=False) for x_TD in tokens]
    answers: list[list[Tensor]] = []
    for first in range(0, plan.data, plan.expert):
        block = slice(first, first + plan.expert)
        answers += _one_group(plan, tokens[block], routes[block], up_EFD, down_EDF, wire, drop)
    return answers


def _one_group(
    plan: TensorExpertData,
    tokens: Sequence[Tensor],
    routes: Sequence[Route],
    up_EFD: Tensor,
    down_EDF: Tensor,
    wire: Wire,
    drop: bool,
) -> list[list[Tensor]]:
    """The copies that one set of experts is spread over; rows[c][e][t] of copy, block, slice."""
    parts, blocks = plan.tensor, plan.expert
    per_block = len(up_EFD) // blocks
    sent, places, experts = [], [], []
    for x_TD, route in zip(tokens, routes, strict=True):
        part_T = _parts(len(x_TD), parts, drop)
        where = [
            [(route.branches // per_block == block) & mask_T for mask_T in part_T]
            for block in range(blocks)
        ]
        places.append([[mask.nonzero().squeeze(1) for mask in row] for row in where])
        sent.append([[x_TD[index] for index in row] for row in places[-1]])
        experts.append([[route.branches[index] for index in row] for row in places[-1]])
    sent = _all_to_all(wire, sent)
    received = []  # [block][slice]: answers of all rows that reached it, in the order they came
    for block in range(blocks):
        rows = [torch.cat([sent[c][block][t] for c in range(len(tokens))]) for t in range(parts)]
        of = [torch.cat([experts[c][block][t] for c in range(len(tokens))]) for t in range(parts)]
        if drop:  # each slice has rows of its own so far, and every slice needs all of them
            rows, of = _all_gather(wire, rows), [torch.cat(of)] * parts
        partial = [_slice(rows[t], of[t], up_EFD, down_EDF, t, parts) for t in range(parts)]
        received.append(_all_reduce(wire, partial))
    back = _all_to_all(wire, _by_copy(received, places, drop))
    return [_home(wire, back[c], places[c], routes[c], drop) for c in range(len(tokens))]


def _parts(count: int, parts: int, drop: bool) -> list[Tensor]:
    """Masks (T,) of the tokens that each tensor rank sends."""
    part_T = torch.arange(count) * parts // max(count, 1)
    return [part_T == t if drop else torch.ones(count, dtype=torch.bool) for t in range(parts)]


def _slice(
    rows: Tensor, of: Tensor, up_EFD: Tensor, down_EDF: Tensor, part: int, parts: int
) -> Tensor:
    """What one slice of the hidden width adds to the answers; the slices' sum is the answer."""
    width = up_EFD.shape[1] // parts
    cut = slice(part * width, (part + 1) * width)
    hidden = torch.relu(torch.einsum("nd,nfd->nf", rows, up_EFD[of][:, cut]))
    return torch.einsum("nf,ndf->nd", hidden, down_EDF[of][:, :, cut])


def _by_copy(
    received: list[list[Tensor]], places: list[list[list[Tensor]]], drop: bool
) -> list[list[list[Tensor]]]:
    """[copy][block][slice] from [block][slice]; with `drop`, a slice sends back its own rows."""
    copies, parts = len(places), len(received[0])
    back: list[list[list[Tensor]]] = [[[] for _ in received] for _ in range(copies)]
    for block, answers in enumerate(received):
        sizes = [[len(places[c][block][t]) for c in range(copies)] for t in range(parts)]
        flat = [size for row in sizes for size in row]
        for t in range(parts):
            pieces = torch.split(answers[t], flat if drop else sizes[t])
            for c in range(copies):
                back[c][block].append(pieces[t * copies + c] if drop else pieces[c])
    return back


def _home(
    wire: Wire, back: list[list[Tensor]], places: list[list[Tensor]], route: Route, drop: bool
) -> list[Tensor]:
    """Answers (T, D) of one copy on each of its tensor ranks, weighted by the router."""
    parts = len(back[0])
    rows = [torch.cat([back[block][t] for block in range(len(back))]) for t in range(parts)]
    index = [torch.cat([places[block][t] for block in range(len(back))]) for t in range(parts)]
    if drop:
        rows, index = _all_gather(wire, rows), [torch.cat(index)] * parts
    return [
        torch.zeros_like(rows[t]).index_copy(0, index[t], rows[t]) * route.weights[:, None]
        for t in range(parts)
    ]


def _all_to_all(wire: Wire, rows: list[list[list[Tensor]]]) -> list[list[list[Tensor]]]:
    """[copy][block][slice] on other ranks; those of block c for copy c stay where they are."""
    flat = [tensor for copy in rows for block in copy for tensor in block]
    values = sum(
        tensor.numel()
        for c, copy in enumerate(rows)
        for b, block in enumerate(copy)
        for tensor in block
        if b != c
    )
    came = iter(wire.send("all-to-all", flat, values))
    return [[[next(came) for _ in block] for block in copy] for copy in rows]


def _all_gather(wire: Wire, rows: list[Tensor]) -> list[Tensor]:
    """Each rank's rows to all ranks."""
    values = (len(rows) - 1) * sum(tensor.numel() for tensor in rows)
    whole = torch.cat(wire.send("all-gather", rows, values))
    return [whole] * len(rows)


def _all_reduce(wire: Wire, rows: list[Tensor]) -> list[Tensor]:
    """The sum over ranks, on all of them; a ring sends 2 (R - 1) / R of the values of each rank."""
    values = 2 * (len(rows) - 1) * rows[0].numel()
    whole = torch.stack(wire.send("all-reduce", rows, values)).sum(dim=0)
    return [whole] * len(rows)


def _check_sizes(plan: TensorExpertData, tokens: Sequence[Tensor], up_EFD: Tensor) -> None:
    if len(tokens) != plan.data:
        raise InputError(f"the plan has {plan.data} copies, got the tokens of {len(tokens)}")
    if len(up_EFD) % plan.expert or up_EFD.shape[1] % plan.tensor:
        raise InputError(
            f"expert={plan.expert} must divide {len(up_EFD)} experts, and tensor={plan.tensor} "
            f"their hidden width {up_EFD.shape[1]}"
        )
