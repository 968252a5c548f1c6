"""The residual sub-layers of a decoder, found by watching it run.

A sub-layer is x + f(norm(x)): an attention or a feed-forward with the normalisation that it alone
reads. What belongs to which is read off one run: a part that reads what a normalisation gave
begins a sub-layer, a normalisation that reads what a part gave ends it. Each layer is then tried
without its sub-layers: it must give back its input to the bit, else it is refused. So this works
on pre-norm decoders of `transformers` (Llama, GPT-2, OPT, ...) and on one's own, whatever names
their modules have.

Legend: n sequences, S tokens, D width.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Literal

import torch
from torch import Tensor, nn

from pointsman.errors import InputError
from pointsman.modules import evaluating
from pointsman.supernet.language.calling import call

Kind = Literal["attention", "feed-forward"]


class Nothing(nn.Module):
    """In the place of a module whose output is added to something: zeros.

    Args:
        width: of the zeros.
        answers: 0: they are the answer; else the answer is a tuple of so many, all but the first
            of which are None.
    """

    def __init__(self, width: int, answers: int = 0) -> None:
        super().__init__()
        self.width, self.answers = width, answers

    def forward(self, *inputs: Any, **options: Any) -> Any:
        """(..., anything) → zeros (..., width)."""
        x = _tensor_in((*inputs, *options.values()))
        zeros = x.new_zeros(*x.shape[:-1], self.width)
        return (zeros, *[None] * (self.answers - 1)) if self.answers else zeros

    def extra_repr(self) -> str:
        """For print."""
        return f"width={self.width}"


@dataclass(frozen=True)
class Piece:
    """A module of a sub-layer: its dotted name, the width of its output, how many it answers."""

    name: str
    width: int
    answers: int


@dataclass(frozen=True)
class Sublayer:
    """One residual sub-layer.

    Attributes:
        name: dotted, of its first module with a weight matrix, such as "model.layers.0.mlp".
        layer: place of its layer in the list of layers.
        kind: "attention" if what it adds to a token depends on others, else "feed-forward".
        stream: dotted name of the module that reads the residual stream for it.
        norm: dotted name of the normalisation that it alone reads, or None.
        pieces: its other modules in the order of their calls; the output of the last is added.
    """

    name: str
    layer: int
    kind: Kind
    stream: str
    norm: str | None
    pieces: tuple[Piece, ...]


@dataclass(eq=False)
class _Called:
    """One call of a module inside a layer. Holding the tensors keeps their identities apart."""

    name: str
    module: nn.Module
    read: Tensor
    gave: Tensor
    answers: int

    @property
    def is_norm(self) -> bool:
        return all(weight.ndim < 2 for weight in self.module.parameters())

    @property
    def counts(self) -> bool:
        """Activations and dropout are no pieces; a normalisation without weights is one."""
        kind = type(self.module).__name__.lower()
        return "norm" in kind or any(True for _ in self.module.parameters())


@dataclass(eq=False)
class _Group:
    """The calls of one sub-layer."""

    norm: _Called | None
    alone: bool  # whether nothing else reads what the norm gives
    pieces: list[_Called]

    @property
    def reader(self) -> _Called:
        return self.norm or self.pieces[0]

    @property
    def stream(self) -> Tensor:
        """What it is added to."""
        return self.reader.read

    @property
    def added(self) -> Tensor:
        return self.pieces[-1].gave

    def is_followed_by(self, read: Tensor) -> bool:
        """Whether what another module reads is the residual stream before or after this one."""
        if read.shape != self.stream.shape or self.added.shape != read.shape:
            return False
        return torch.equal(read, self.stream) or torch.allclose(read, self.stream + self.added)


@dataclass(eq=False)
class _Run:
    """One call of a layer: its arguments and the calls of its modules."""

    inputs: tuple[Any, ...]
    options: dict[str, Any]
    calls: list[_Called]


def layer_list(model: nn.Module) -> tuple[str, nn.ModuleList]:
    """The `nn.ModuleList` with the most weights, under its dotted name.

    Raises:
        InputError: there is none.
    """
    lists = [(name, m) for name, m in model.named_modules() if isinstance(m, nn.ModuleList)]
    if not lists:
        raise InputError(f"a decoder keeps its layers in an nn.ModuleList, {type(model)} has none")
    return max(lists, key=lambda found: sum(weight.numel() for weight in found[1].parameters()))


@torch.no_grad()
def find_sublayers(model: nn.Module, example: Any) -> tuple[Sublayer, ...]:
    """The sub-layers of a decoder in the order in which they run.

    Args:
        model: left as it is.
        example: what it is called with: token ids (n, S) of at least two tokens, or a mapping of
            its arguments.

    Raises:
        InputError: no list of layers, or a layer that is no sum of its input and sub-layers, such
            as those that normalise after the sum.
    """
    list_name, layers = layer_list(model)
    found: list[Sublayer] = []
    with evaluating(model):
        runs = _watch(model, list_name, layers, example)
        for at, layer in enumerate(layers):
            if at not in runs:
                raise InputError(f"{list_name}.{at} did not run on the example: give another")
            prefix = f"{list_name}.{at}."
            groups = _grouped(runs[at].calls)
            _check(layer, runs[at], groups, prefix)
            for group in groups:
                kind = _kind(layer, runs[at], groups, group)
                found.append(_sublayer(prefix, at, kind, group))
    return tuple(found)


def _watch(
    model: nn.Module, list_name: str, layers: nn.ModuleList, example: Any
) -> dict[int, _Run]:
    """What each layer was called with, and the calls of its own modules, on the example."""
    runs: dict[int, _Run] = {}
    handles = []
    for at, layer in enumerate(layers):

        def enter(module: nn.Module, inputs: Any, options: Any, at: int = at) -> None:
            runs[at] = _Run(inputs, options, [])

        handles.append(layer.register_forward_pre_hook(enter, with_kwargs=True))
        for name, child in layer.named_children():

            def leave(
                module: nn.Module,
                inputs: Any,
                options: Any,
                output: Any,
                at: int = at,
                name: str = name,
            ) -> None:
                read = _tensor_in((*inputs, *options.values()))
                several = isinstance(output, tuple | list)
                first = output[0] if several else output
                answers = len(output) if several else 0
                made = _Called(name, module, read, first, answers)
                if made.counts:
                    runs[at].calls.append(made)

            handles.append(child.register_forward_hook(leave, with_kwargs=True))
    try:
        call(model, example)
    finally:
        for handle in handles:
            handle.remove()
    return runs


def _grouped(calls: list[_Called]) -> list[_Group]:
    """The calls of a layer as sub-layers, in order."""
    groups: list[_Group] = []
    norms = [each for each in calls if each.is_norm]
    for each in calls:
        last = groups[-1] if groups else None
        if each.is_norm:
            if last is not None and each.read is last.added:
                last.pieces.append(each)  # a second normalisation, of what will be added
            continue
        norm = next((other for other in norms if other.gave is each.read), None)
        if last is None or norm is not None or last.is_followed_by(each.read):
            alone = norm is not None and sum(other.read is norm.gave for other in calls) == 1
            groups.append(_Group(norm, alone, [each]))
        else:
            last.pieces.append(each)
    return groups


def _check(layer: nn.Module, run: _Run, groups: list[_Group], prefix: str) -> None:
    """A layer without its sub-layers gives back its input."""
    hidden = _tensor_in((*run.inputs, *run.options.values()))
    if hidden.ndim != 3 or hidden.shape[1] < 2:
        raise InputError(
            f"the layers of a decoder read (sequences, at least 2 tokens, width), {prefix[:-1]} "
            f"read {tuple(hidden.shape)}: give an example of two tokens or more"
        )
    try:
        left = _without(layer, run, [piece for group in groups for piece in group.pieces], hidden)
        identity = torch.equal(left, hidden)
    except Exception:  # whatever a layer does with zeros
        identity = False
    if not groups or not identity:
        raise InputError(
            f"a layer adds sub-layers to its input, as x + f(norm(x)), {prefix[:-1]} "
            f"({type(layer).__name__}) does something else: sub-layers can only be left out of "
            "pre-norm decoders"
        )


def _without(layer: nn.Module, run: _Run, pieces: list[_Called], hidden: Tensor) -> Tensor:
    """Output of a layer without some modules, on another hidden state."""
    whole = {piece.name: piece.module for piece in pieces}
    read = _tensor_in((*run.inputs, *run.options.values()))
    inputs = [hidden if value is read else value for value in run.inputs]
    options = {name: hidden if value is read else value for name, value in run.options.items()}
    try:
        for piece in pieces:
            setattr(layer, piece.name, Nothing(piece.gave.shape[-1], piece.answers))
        output = layer(*inputs, **options)
    finally:
        for name, module in whole.items():
            setattr(layer, name, module)
    first: Tensor = output[0] if isinstance(output, tuple | list) else output
    return first


def _kind(layer: nn.Module, run: _Run, groups: list[_Group], group: _Group) -> Kind:
    """Whether anything inside, at the other tokens, changes with the first token."""
    others = [p for other in groups if other is not group for p in other.pieces]
    hidden = _tensor_in((*run.inputs, *run.options.values()))
    moved = hidden.clone()
    moved[:, 0] = moved[:, 0].roll(1, dims=-1) + 1

    def inside(state: Tensor) -> list[Tensor]:
        """What its modules read at all tokens but the first, and what the layer gives there."""
        seen: list[Tensor] = []

        def note(module: nn.Module, inputs: Any, options: Any) -> None:
            read = _tensor_in((*inputs, *options.values()))
            if read.numel() % (state.shape[0] * state.shape[1]) == 0:
                seen.append(read.reshape(*state.shape[:2], -1)[:, 1:])

        inner = [m for piece in group.pieces for m in piece.module.modules()]
        leaves = [module for module in inner if not any(True for _ in module.children())]
        handles = [m.register_forward_pre_hook(note, with_kwargs=True) for m in leaves]
        try:
            seen.append(_without(layer, run, others, state)[:, 1:])
        finally:
            for handle in handles:
                handle.remove()
        return seen

    pairs = zip(inside(hidden), inside(moved), strict=True)
    alike = all(torch.allclose(a, b, rtol=1e-5, atol=1e-7) for a, b in pairs)
    return "feed-forward" if alike else "attention"


def _sublayer(prefix: str, at: int, kind: Kind, group: _Group) -> Sublayer:
    pieces = tuple(Piece(prefix + p.name, p.gave.shape[-1], p.answers) for p in group.pieces)
    norm = prefix + group.norm.name if group.norm is not None and group.alone else None
    return Sublayer(pieces[0].name, at, kind, prefix + group.reader.name, norm, pieces)


def _tensor_in(values: Sequence[Any]) -> Tensor:
    """The first tensor among the arguments of a call."""
    for value in values:
        if isinstance(value, Tensor):
            return value
    raise InputError("a layer is handed its hidden state as a tensor, got none")
