"""A module that runs on the part of its tensors and blocks that its dials leave in force.

Nothing in the module is replaced: while it runs, its parameters and buffers are views of what is
kept (weight sharing by slices: Yu et al. 2018, arXiv 1812.08928; Cai et al. 2019, arXiv
1908.09791), blocks left out are not there, and attributes that follow, such as the groups of a
convolution, are set. Afterwards everything is as it was. So one class serves one layer and a whole
network of any code.

With a mixture on a dial, what any option keeps stays in force and each row of a parameter is
multiplied by the weights of the options that keep it, which equals the weighted sum of the
overlapping slices, padded with zeros (weight entanglement: Sukthanker et al. 2023, arXiv
2312.10440). Blocks and attributes are those of the last option meanwhile, and buffers are not
multiplied.
"""

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from functools import reduce
from itertools import compress
from typing import Any

import torch
from torch import Tensor, nn

from pointsman.supernet.elastic.attributes import follow
from pointsman.supernet.elastic.dial import Dial
from pointsman.supernet.elastic.parts import Blocks, Cut, Part, Setting, index_of

Index = slice | Tensor
Undo = list[Callable[[], object]]


class Sliced(nn.Module):
    """A module whose tensors, blocks and attributes follow dials.

    Args:
        body: the whole module. Other elastic modules may be inside.
        parts: what each dial takes away. The order of their dials is the order of the choices.
    """

    def __init__(self, body: nn.Module, parts: Sequence[Part]) -> None:
        super().__init__()
        self.body = body
        self.parts = tuple(parts)
        self._settings = [part for part in parts if isinstance(part, Setting)]
        cuts: dict[nn.Module, list[Cut]] = {}
        blocks: dict[nn.Module, list[Blocks]] = {}
        for part in parts:
            if isinstance(part, Cut):
                cuts.setdefault(part.module, []).append(part)
            elif isinstance(part, Blocks):
                blocks.setdefault(part.container, []).append(part)
        self._layers = [_Layer(module, taken) for module, taken in cuts.items()]
        self._containers = list(blocks.items())
        self._numbered: dict[nn.Module, list[nn.Module]] = {
            block: [m for m in block.modules() if isinstance(getattr(m, "layer_idx", None), int)]
            for container in blocks
            for block in container.children()
        }

    def dials(self) -> tuple[Dial, ...]:
        """Each once, in the order of the parts."""
        return tuple(dict.fromkeys(part.dial for part in self.parts))

    def forward(self, *inputs: Any, **options: Any) -> Any:
        """Output of the part in force."""
        with self.in_force():
            return self.body(*inputs, **options)

    @contextmanager
    def in_force(self) -> Iterator[None]:
        """The module as its dials say, meanwhile: for other calls than forward."""
        undo: Undo = []
        try:
            self._set(undo)
            yield
        finally:
            for back in reversed(undo):
                back()

    def plain(self) -> nn.Module:
        """The module itself, cut for good: to be called on a copy."""
        made: dict[tuple[int, str], nn.Parameter] = {}  # tied weights stay tied
        for layer in self._layers:
            layer.cut(made)
        for layer in self._layers:
            layer.set_attributes([])
        self._set_structure([])
        return self.body

    def _set(self, undo: Undo) -> None:
        for layer in self._layers:
            layer.swap(undo)
            layer.set_attributes(undo)
        self._set_structure(undo)

    def _set_structure(self, undo: Undo) -> None:
        for part in self._settings:
            _put(part.owner, part.attribute, part.value(_option(part.dial)), undo)
        for container, parts in self._containers:
            keep = reduce(torch.logical_and, [p.kept[_option(p.dial)] for p in parts]).tolist()
            if all(keep):
                continue
            left = list(compress(container.children(), keep))
            for at, block in enumerate(left):
                for owner in self._numbered[block]:  # as caches of keys and values ask for
                    _put(owner, "layer_idx", at, undo)
            for owner, name in parts[0].counted:
                now = getattr(owner, name)
                value = list(compress(now, keep)) if isinstance(now, list) else len(left)
                _put(owner, name, value, undo)
            # The names stay numbers without gaps, as containers index by them.
            _put(container, "_modules", {str(at): block for at, block in enumerate(left)}, undo)


class _Layer:
    """A module with tensors that are cut, and what was worked out for options met before."""

    def __init__(self, module: nn.Module, cuts: list[Cut]) -> None:
        self.module = module
        self.cuts = cuts
        self.names = tuple(dict.fromkeys(cut.tensor for cut in cuts))
        self._known: dict[tuple[int, ...], _Plan] = {}

    def plan(self) -> "_Plan":
        """Of the options in force."""
        key = tuple(-1 if cut.dial.mixture is not None else cut.dial.index for cut in self.cuts)
        if key not in self._known:
            self._known[key] = _Plan(self.module, self.cuts)
        return self._known[key]

    def _store(self, name: str) -> dict[str, Any]:
        module = self.module
        return module._parameters if name in module._parameters else module._buffers

    def swap(self, undo: Undo) -> None:
        """Put views in the place of the tensors."""
        indices = self.plan().indices
        for name in self.names:
            store = self._store(name)
            whole = store[name]
            if whole is not None:
                store[name] = now = _taken(self._mixed(name, whole), indices[name])
                undo.append(_back(self.module, store, name, whole, now, indices[name]))

    def cut(self, made: dict[tuple[int, str], nn.Parameter]) -> None:
        """Put smaller tensors in the place of the tensors, for good."""
        indices = self.plan().indices
        for name in self.names:
            store = self._store(name)
            whole = store[name]
            if whole is None:
                continue
            now = _taken(self._mixed(name, whole), indices[name]).detach().clone()
            if isinstance(whole, nn.Parameter):
                key = id(whole), repr(indices[name])
                now = made.setdefault(key, nn.Parameter(now, whole.requires_grad))
            store[name] = now

    def set_attributes(self, undo: Undo) -> None:
        """Those that follow the shapes of the tensors."""
        for name, value in self.plan().attributes.items():
            _put(self.module, name, value, undo)

    def _mixed(self, name: str, whole: Tensor) -> Tensor:
        """A parameter with its rows multiplied by the weights of the options that keep them."""
        if not isinstance(whole, nn.Parameter):
            return whole
        for cut in self.cuts:
            mixture = cut.dial.mixture
            if mixture is not None and cut.tensor == name:
                share_U = mixture.to(whole) @ cut.kept.to(whole)
                shape = [1] * whole.ndim
                shape[cut.dim] = -1
                whole = whole * share_U.view(shape)
        return whole


class _Plan:
    """Indices of what stays, by tensor and dimension, and the attributes that follow."""

    def __init__(self, module: nn.Module, cuts: Sequence[Cut]) -> None:
        kept: dict[tuple[str, int], Tensor] = {}
        for cut in cuts:
            mixes = cut.dial.mixture is not None
            rows = cut.kept.any(dim=0) if mixes else cut.kept[cut.dial.index]
            at = cut.tensor, cut.dim
            kept[at] = kept[at] & rows if at in kept else rows
        self.attributes = follow(module, kept)
        self.indices: dict[str, dict[int, Index]] = {cut.tensor: {} for cut in cuts}
        for (name, dim), rows in kept.items():
            if not bool(rows.all()):
                self.indices[name][dim] = index_of(rows)


def _option(dial: Dial) -> int:
    return dial.index if dial.mixture is None else len(dial.choice.options) - 1


def _taken(whole: Tensor, indices: dict[int, Index]) -> Tensor:
    for dim, index in indices.items():
        if isinstance(index, slice):
            whole = whole.narrow(dim, index.start, index.stop - index.start)
        else:
            whole = whole.index_select(dim, index.to(whole.device))
    return whole


def _back(
    module: nn.Module,
    store: dict[str, Any],
    name: str,
    whole: Tensor,
    now: Tensor,
    indices: dict[int, Index],
) -> Callable[[], None]:
    """What puts the whole tensor back, and in it statistics that moved in a copy meanwhile."""
    copied = any(not isinstance(index, slice) for index in indices.values())

    def back() -> None:
        if copied and module.training and not isinstance(whole, nn.Parameter):
            ((dim, index),) = indices.items()
            assert isinstance(index, Tensor)
            whole.index_copy_(dim, index.to(whole.device), now)
        store[name] = whole

    return back


def _put(owner: Any, name: str, value: Any, undo: Undo) -> None:
    before = getattr(owner, name)
    if before is not value and before != value:
        setattr(owner, name, value)
        undo.append(lambda: setattr(owner, name, before))
