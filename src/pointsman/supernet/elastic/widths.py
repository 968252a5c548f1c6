"""How many channels, hidden units or attention heads there are.

A unit is removed from every layer that makes it, norms it or takes it. Which layers those are is
found by following the network (`Width`, `Heads`), or said (`NamedWidth`).

Legend: U units, R rows of a unit.
"""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any

from torch import nn

from pointsman.errors import InputError
from pointsman.supernet.channels import ChannelGroup
from pointsman.supernet.channels.attention import HeadAttention
from pointsman.supernet.elastic.attributes import BATCH_NORMS, CONVOLUTIONS
from pointsman.supernet.elastic.choices import counts_of
from pointsman.supernet.elastic.dial import Dial
from pointsman.supernet.elastic.names import matching
from pointsman.supernet.elastic.parts import Cut, Setting, rows_of
from pointsman.supernet.elastic.plan import Plan


@dataclass(frozen=True)
class Width:
    """How many channels or hidden units there are, with all that depends on them.

    Args:
        layers: pattern of layers, whose outputs are the units, or of blocks: all units that are
            made and used up inside, such as the hidden units of a transformer's feed-forward. None:
            every group of units in the network that are no attention heads.
        shares: options, in (0, 1]; or
        counts: options, as numbers of units.
        multiple: units are kept in multiples of it where shares are given.
        together: one choice for all of them, in shares.
    """

    layers: str | None = None
    shares: Sequence[float] | None = None
    counts: Sequence[int] | None = None
    multiple: int = 1
    together: bool = False

    def declare(self, plan: Plan) -> None:
        """A choice for each group of units, or one for all."""
        _declare(self, plan, "width", _groups(plan, self.layers, heads=False), self.multiple)


@dataclass(frozen=True)
class Heads:
    """How many attention heads there are; with grouped queries, of keys with all their queries.

    Args:
        layers: pattern of attention modules, or of blocks that hold them; None: all.
        shares: options, in (0, 1]; or
        counts: options, as numbers of heads.
        together: one choice for all of them, in shares.
    """

    layers: str | None = None
    shares: Sequence[float] | None = None
    counts: Sequence[int] | None = None
    together: bool = False

    def declare(self, plan: Plan) -> None:
        """A choice for each attention module, or one for all."""
        _declare(self, plan, "heads", _groups(plan, self.layers, heads=True), 1)


def _declare(
    said: Width | Heads, plan: Plan, kind: str, groups: Sequence[ChannelGroup], multiple: int
) -> None:
    for group in groups:
        if group.name in plan.groups_taken:
            raise InputError(
                f"the units of {group.name!r} are elastic once, they were declared twice"
            )
        plan.groups_taken.add(group.name)
        counts = counts_of(group.size, said.shares, said.counts, multiple)
        if said.together and said.shares is not None:
            shares = sorted(set(said.shares))
            counts = tuple(counts_of(group.size, [s], None, multiple)[0] for s in shares)
            dial = plan.dial(f"{said.layers or 'all'}.{kind}", shares, None)
        elif said.together:
            dial = plan.dial(f"{said.layers or 'all'}.{kind}", counts, None)
        else:
            place = _common(part.name.rpartition(".")[0] for part in group.slices)
            dial = plan.dial(f"{group.name}.{kind}", counts, place)
        _cut_group(plan, group, dial, counts)


def _cut_group(plan: Plan, group: ChannelGroup, dial: Dial, counts: Sequence[int]) -> None:
    for name in {part.name.rpartition(".")[0] for part in group.slices}:
        module = plan.model.get_submodule(name)
        if isinstance(module, nn.MultiheadAttention):  # which needs all of its heads
            plan.replace(name, HeadAttention(module))
    for part in group.slices:
        for module, tensor in _places(plan.model, part.name):
            rows = _store(module, tensor)[tensor].shape[part.dim]
            kept = rows_of(part.rows_UR.tolist(), counts, rows)
            plan.add(Cut(module, tensor, part.dim, dial, kept))
    for length in group.lengths:
        owner = plan.model.get_submodule(length.module)
        less = tuple(length.each * (group.size - count) for count in counts)
        plan.add(Setting(owner, length.attribute, dial, less, less=True))


def _store(module: nn.Module, tensor: str) -> dict[str, Any]:
    return module._parameters if tensor in module._parameters else module._buffers


def _places(model: nn.Module, name: str) -> list[tuple[nn.Module, str]]:
    """Every module that holds a tensor, which stands in several where weights are tied."""
    place, _, own = name.rpartition(".")
    module = model.get_submodule(place)
    value = _store(module, own)[own]
    return [
        (module, tensor)
        for module in model.modules()
        for tensor, other in (*module._parameters.items(), *module._buffers.items())
        if other is value
    ]


def are_heads(group: ChannelGroup) -> bool:
    """Whether each unit owns several rows everywhere, as a head does."""
    return all(part.rows_UR.shape[1] > 1 for part in group.slices)


def _groups(plan: Plan, pattern: str | None, heads: bool) -> list[ChannelGroup]:
    groups = [group for group in plan.groups if are_heads(group) == heads]
    found: dict[str, ChannelGroup] = {}
    for name, module in [] if pattern is None else matching(plan.model, pattern):
        is_leaf = not any(True for _ in module.children())
        for group in groups:
            inside = (part.name.startswith(f"{name}.") for part in group.slices)
            made = any(
                part.name == f"{name}.weight" and part.dim == output_dim(module)
                for part in group.slices
            )
            if made if is_leaf else all(inside):
                found[group.name] = group
    chosen = groups if pattern is None else list(found.values())
    if not chosen:
        kind = "attention heads" if heads else "units"
        there = ", ".join(repr(group.name) for group in groups) or "none"
        raise InputError(
            f"nothing to make elastic at {pattern or 'any layer'!r}: the {kind} that may be cut in "
            f"this network are made at {there}"
        )
    return chosen


def output_dim(layer: nn.Module) -> int:
    """Which dimension of a layer's weight counts its outputs."""
    # transformers' Conv1D holds inputs first, as an embedding does
    return int(isinstance(layer, nn.Embedding) or type(layer).__name__ == "Conv1D")


@dataclass(frozen=True)
class NamedWidth:
    """A width whose layers are named, for networks that cannot be followed, or by explicit wish.

    Args:
        name: of the choice, which ends in ".width".
        outputs: patterns of layers whose outputs are the units: linear layers, convolutions,
            embeddings, and what the units pass, normalisations and depthwise convolutions.
        inputs: patterns of layers that take them. One whose inputs are a multiple of the units, as
            after flattening, takes an equal run of neighbours of each.
        shares: options, in (0, 1]; or
        counts: options, as numbers of units.
        multiple: units are kept in multiples of it where shares are given.
    """

    name: str
    outputs: Sequence[str]
    inputs: Sequence[str]
    shares: Sequence[float] | None = None
    counts: Sequence[int] | None = None
    multiple: int = 1

    def declare(self, plan: Plan) -> None:
        """One choice."""
        made = _layers(plan.model, self.outputs)
        taken = _layers(plan.model, self.inputs)
        sizes = {name: _outputs(name, layer) for name, layer in made}
        units = min(sizes.values())
        counts = counts_of(units, self.shares, self.counts, self.multiple)
        dial = plan.dial(f"{self.name}.width", counts, _common(sizes))
        for name, layer in made:
            for tensor, value in (*layer._parameters.items(), *layer._buffers.items()):
                if value is not None and value.ndim > 0:
                    dim = output_dim(layer) if value.ndim > 1 else 0
                    _cut_runs(plan, name, layer, tensor, dim, dial, units)
        for name, layer in taken:
            _cut_runs(plan, name, layer, "weight", 1 - output_dim(layer), dial, units)


def _layers(model: nn.Module, patterns: Iterable[str]) -> list[tuple[str, nn.Module]]:
    return [found for pattern in patterns for found in matching(model, pattern)]


def _outputs(name: str, layer: nn.Module) -> int:
    weight = layer._parameters.get("weight")
    kinds = (nn.Linear, nn.Embedding, nn.LayerNorm, nn.RMSNorm, *CONVOLUTIONS, *BATCH_NORMS)
    if weight is None or (not isinstance(layer, kinds) and type(layer).__name__ != "Conv1D"):
        raise InputError(
            f"a width is made by layers with weights, got {type(layer).__name__} at {name!r}: name "
            "the layers themselves"
        )
    return weight.shape[output_dim(layer) if weight.ndim > 1 else 0]


def _cut_runs(
    plan: Plan, name: str, layer: nn.Module, tensor: str, dim: int, dial: Dial, units: int
) -> None:
    """Cut a dimension that holds an equal run of rows of each unit."""
    value = layer._parameters.get(tensor, layer._buffers.get(tensor))
    if value is None:
        raise InputError(
            f"a width is taken by layers with weights, got {type(layer).__name__} at {name!r}: "
            "name the layers themselves"
        )
    rows = value.shape[dim]
    if rows % units:
        raise InputError(
            f"each of {units} units has equally many rows, {name}.{tensor} has {rows} along "
            f"dimension {dim}: are these layers tied to one another?"
        )
    run = rows // units
    each = [range(unit * run, (unit + 1) * run) for unit in range(units)]
    kept = rows_of(each, [int(count) for count in dial.choice.options], rows)
    plan.add(Cut(layer, tensor, dim, dial, kept))


def _common(names: Iterable[str]) -> str | None:
    """The module inside of which all of them lie."""
    split = [name.split(".") for name in names]
    shared = []
    for parts in zip(*split, strict=False):
        if len(set(parts)) > 1:
            break
        shared.append(parts[0])
    return ".".join(shared) or None
