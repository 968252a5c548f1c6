"""Rules for operations that move positions about without touching a number.

What they do to a tensor they do to its labels, so each is run on the labels themselves; only cuts
need thought, because a length that is cut off may be written down in the network.

Legend: P positions of a dimension.
"""

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from pointsman.supernet.channels.ledger import Call, Ledger, Site, expanded, tensors_in
from pointsman.supernet.channels.operations import Rule, aten


def view(ledger: Ledger, call: Call) -> None:
    """Dimensions split and merged."""
    _moved(ledger, call, lambda whole: [whole.reshape(call.out.shape)])


def same(ledger: Ledger, call: Call) -> None:
    """Whatever it does to the numbers it does to their labels."""

    def run(whole: Tensor) -> list[Tensor]:
        return list(tensors_in(call.func(whole, *call.args[1:], **call.kwargs)))

    _moved(ledger, call, run)


def padded(ledger: Ledger, call: Call) -> None:
    """What is put around a dimension that has labels stays, and so the rest of it."""
    x, pad = call.args[:2]
    for place in range(len(pad) // 2):
        if pad[2 * place] or pad[2 * place + 1]:
            ledger.fix_dim(x, x.dim() - 1 - place)
    _moved(ledger, call, lambda whole: [aten.constant_pad_nd(whole, pad, 0)])


def _moved(ledger: Ledger, call: Call, run: Callable[[Tensor], list[Tensor]]) -> None:
    """Run a movement on every factor and write down where it went."""
    x = call.args[0]
    outs = list(tensors_in(call.out))
    moved: list[list[Tensor]] = [[] for _ in outs]
    before = ledger.factors(x)
    for factor in before:
        for at, part in enumerate(run(expanded(factor, x.shape))):
            moved[at].append(part)
    for out, factors in zip(outs, moved, strict=True):
        ledger.give(out, ledger.labels.simplified(factors), free=ledger.is_free(x))
    for out in outs:
        _note_sites(ledger, x, out)
        _note_sites(ledger, out, x)


def _note_sites(ledger: Ledger, here: Tensor, there: Tensor) -> None:
    """Write down where lengths changed that a module may have as an attribute."""
    changed = [dim for dim, size in enumerate(here.shape) if size not in there.shape]
    if ledger.module is not None and changed:
        for factor in ledger.factors(here):
            whole = expanded(factor, here.shape)
            ledger.sites.append(Site(ledger.module, whole, tuple(changed)))


def _cut(ledger: Ledger, x: Tensor, dim: int, pieces: int | None) -> None:
    """Before a dimension is cut: in equal pieces, which shrink alike, or else not at all.

    Args:
        ledger: of all tensors.
        x: what is cut.
        dim: along which.
        pieces: how many equal ones; None: a part is taken that is none of equal pieces.
    """
    for factor in ledger.factors(x):
        size = factor.shape[dim]
        if size == 1:
            continue
        if factor.numel() > size:  # a view split a dimension here: the cut settles what it is for
            ledger.labels.tie(factor, factor.narrow(dim, 0, 1))
        elif pieces is None:
            ledger.labels.fix(factor)
        else:
            parts = factor.reshape(pieces, -1)
            ledger.labels.tie(parts, parts[:1])


def split(ledger: Ledger, call: Call) -> None:
    """Into parts along a dimension."""
    x, sizes = call.args[:2]
    dim = call.option(2, "dim", 0) % x.dim()
    lengths = {out.shape[dim] for out in tensors_in(call.out)}
    if len(lengths) == 1:
        _cut(ledger, x, dim, x.shape[dim] // lengths.pop())
    elif not ledger.written(sizes if isinstance(sizes, list | tuple) else [sizes]):
        _cut(ledger, x, dim, None)
    same(ledger, call)


def sliced(ledger: Ledger, call: Call) -> None:
    """A range of a dimension; halves, thirds and so on are known as such."""
    x = call.args[0]
    dim = call.option(1, "dim", 0) % x.dim()
    whole, part = x.shape[dim], call.out.shape[dim]
    if part < whole:
        start = call.option(2, "start") or 0
        equal = part and whole % part == 0 and start % part == 0 and call.option(4, "step", 1) == 1
        _cut(ledger, x, dim, whole // part if equal else None)
    same(ledger, call)


def selected(ledger: Ledger, call: Call) -> None:
    """One position of a dimension, or several by number, or each apart."""
    x = call.args[0]
    _cut(ledger, x, call.option(1, "dim", 0) % x.dim(), None)
    same(ledger, call)


def turned(ledger: Ledger, call: Call) -> None:
    """Positions of some dimensions in another order, by number."""
    x = call.args[0]
    last = call.args[-1]
    for dim in [last] if isinstance(last, int) else last:
        ledger.fix_dim(x, dim % x.dim())
    same(ledger, call)


def joined(ledger: Ledger, call: Call) -> None:
    """cat: one after another along a dimension, position by position along the others."""
    parts = [x for x in call.args[0] if x.numel() or x.dim() > 1]
    if not parts:
        ledger.give(call.out, [], free=True)
        return
    dim = call.option(1, "dim", 0) % call.out.dim()
    vectors = [ledger.vectors(x) for x in parts]
    merged: list[Tensor | None] = []
    for at in range(call.out.dim()):
        if at == dim:
            merged.append(_after_another(parts, [of_x[at] for of_x in vectors], dim))
        else:
            meeting = [
                (of_x[at], ledger.is_free(x)) for x, of_x in zip(parts, vectors, strict=True)
            ]
            merged.append(ledger.meet(*meeting))
    ledger.set(call.out, merged)


def _after_another(parts: list[Tensor], vectors: list[Tensor | None], dim: int) -> Tensor | None:
    if all(vector is None for vector in vectors):
        return None
    return torch.cat(
        [
            torch.zeros(x.shape[dim], dtype=torch.long) if vector is None else vector
            for x, vector in zip(parts, vectors, strict=True)
        ]
    )


def stacked(ledger: Ledger, call: Call) -> None:
    """Beside each other in a new dimension, position by position along the others."""
    parts = list(call.args[0])
    dim = call.option(1, "dim", 0) % call.out.dim()
    vectors = [ledger.vectors(x) for x in parts]
    merged = [
        ledger.meet(
            *((of_x[at], ledger.is_free(x)) for x, of_x in zip(parts, vectors, strict=True))
        )
        for at in range(parts[0].dim())
    ]
    ledger.set(call.out, [*merged[:dim], None, *merged[dim:]])


def looked_up(ledger: Ledger, call: Call) -> None:
    """x[index]: indexed dimensions stay whole, the others are what they were."""
    x, indices = call.args[:2]
    places = [dim for dim, index in enumerate(indices) if index is not None]
    for dim in places:
        ledger.fix_dim(x, dim)
    vectors = ledger.vectors(x)
    rank = max(index.dim() for index in indices if index is not None)
    adjacent = places == list(range(places[0], places[-1] + 1))
    if not adjacent or any(indices[dim].dtype == torch.bool for dim in places):
        for vector in vectors:
            ledger.labels.fix(vector)
        ledger.give(call.out, [])
        return
    ledger.set(call.out, [*vectors[: places[0]], *[None] * rank, *vectors[places[-1] + 1 :]])


MOVING: dict[Any, Rule] = {
    **dict.fromkeys((aten.view, aten._unsafe_view, aten.reshape, aten._reshape_alias), view),
    **dict.fromkeys((aten.permute, aten.transpose, aten.t, aten.unsqueeze, aten.squeeze), same),
    **dict.fromkeys((aten.expand, aten.repeat, aten.pixel_shuffle, aten.unfold), same),
    **dict.fromkeys((aten.pixel_unshuffle, aten.channel_shuffle, aten.diagonal), same),
    **dict.fromkeys((aten.split, aten.split_with_sizes), split),
    aten.slice: sliced,
    **dict.fromkeys((aten.select, aten.unbind, aten.index_select), selected),
    **dict.fromkeys((aten.flip,), turned),
    aten.constant_pad_nd: padded,
    aten.cat: joined,
    aten.stack: stacked,
    aten.index: looked_up,
}
