"""Which parts of which parameters live and die together.

Legend: U units of a group, R positions of a unit in one dimension of one parameter.
"""

from collections import Counter, defaultdict
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from pointsman.supernet.channels.attention import may_lose_heads
from pointsman.supernet.channels.labels import FIXED
from pointsman.supernet.channels.ledger import Ledger
from pointsman.supernet.channels.tracing import lengths_of, trace

TRANSPOSED = (nn.ConvTranspose1d, nn.ConvTranspose2d, nn.ConvTranspose3d)
NORMS = (nn.BatchNorm1d, nn.BatchNorm2d, nn.BatchNorm3d, nn.InstanceNorm1d, nn.InstanceNorm2d)
CONVOLUTIONS = (nn.Conv1d, nn.Conv2d, nn.Conv3d, *TRANSPOSED)
# Modules whose attributes follow from their parameters.
KNOWN = (nn.Linear, nn.Embedding, nn.GroupNorm, *NORMS, *CONVOLUTIONS)

# A number of these names says how large a head is, or how many share one, even if it is as large as
# the number of heads.
WITHIN = (
    *("head_dim", "head_size", "dim_head", "size_per_head", "dim_per_head", "d_head"),
    *("key_value_groups", "kv_groups", "n_rep"),
)


@dataclass(frozen=True, eq=False)
class Slice:
    """What the units of a group own in one dimension of one parameter or buffer.

    Attributes:
        name: of the parameter or buffer.
        dim: the dimension.
        rows_UR: (U, R) positions along it, of each unit.
    """

    name: str
    dim: int
    rows_UR: Tensor  # noqa: N815  (a name that carries its shape)


@dataclass(frozen=True)
class Length:
    """A whole number that a module holds as an attribute and that shrinks with a group.

    Attributes:
        module: its name.
        attribute: of the module.
        each: how much of it is one unit's.
    """

    module: str
    attribute: str
    each: int


@dataclass(frozen=True, eq=False)
class ChannelGroup:
    """Units of one kind: channels, hidden units or heads, of which any may be removed.

    A unit is removed from every slice at once: from the layer that makes it, the normalisations it
    passes, and every layer that takes it. Nothing of it is an input or an output of the network.

    Attributes:
        name: of the module that makes it, by its first parameter.
        size: U, how many units.
        slices: what the units own, in the order of the network.
        exact: removing a unit is the same as setting all it owns to zero. Not so where a statistic
            is taken over the units, as layer normalisation does.
        lengths: attributes of modules to be changed with it.
    """

    name: str
    size: int
    slices: tuple[Slice, ...]
    exact: bool
    lengths: tuple[Length, ...] = ()

    def __repr__(self) -> str:
        owned = ", ".join(f"{part.name}[{part.dim}]" for part in self.slices)
        return f"ChannelGroup({self.name!r}, {self.size} units of {owned})"


def channel_groups(model: nn.Module, example: Any) -> list[ChannelGroup]:
    """Find every group of units that can be removed, by running the network once.

    Follows residual sums, concatenation, grouped and depthwise convolution, flattening, attention
    (units are heads: queries, keys, values and outputs together; with grouped queries, one unit is
    a key-value head with all its queries), embeddings and normalisation, in any module, by the
    operations that it breaks down into (idea: Fang et al. 2023, "DepGraph", arXiv 2301.12900, which
    works on gradients' graphs and on rules for layers; here on labelled dimensions).

    Nothing is removed from inputs and outputs, and where an operation is not known.
    `torch.nn.MultiheadAttention` keeps its width and may lose heads, and is another module then.

    Args:
        model: any module; it is run once, in evaluation mode, and left as it is.
        example: a tensor, a tuple of positional arguments, or a mapping of arguments by name. A
            batch of one is enough.

    Returns:
        Groups of at least two units, in the order in which their modules are defined.

    Raises:
        InputError: the network branches on numbers it computed, or does not run on the example.
    """
    ledger = trace(model, example)
    for module in model.modules():
        if isinstance(module, nn.MultiheadAttention):
            _keep_width(ledger, module)
    owned = _owned(model, ledger)
    sizes = _lengths(model, ledger)
    inexact = {root for labels in ledger.inexact for root in ledger.labels.find(labels).tolist()}
    together: dict[tuple[tuple[str, int, int], ...], list[int]] = defaultdict(list)
    for root, parts in owned.items():
        together[tuple((name, dim, len(rows)) for (name, dim), rows in parts.items())].append(root)
    found: dict[str, ChannelGroup] = {}
    for signature, roots in together.items():
        if len(roots) < 2:
            continue
        slices = tuple(
            Slice(name, dim, torch.tensor([owned[root][name, dim] for root in roots]))
            for name, dim, _ in signature
        )
        name = _name(model, slices, found)
        lengths = tuple(
            Length(*at, count[roots[0]]) for at, count in sizes.items() if roots[0] in count
        )
        found[name] = ChannelGroup(name, len(roots), slices, inexact.isdisjoint(roots), lengths)
    return list(found.values())


def _keep_width(ledger: Ledger, attention: nn.MultiheadAttention) -> None:
    """Heads may go, the width around them may not: torch's attention checks it."""
    for name, parameter in attention.named_parameters():
        inside = name in ("in_proj_weight", "in_proj_bias") or name == "out_proj.weight"
        for dim, vector in enumerate(ledger.vectors(parameter)):
            of_heads = inside and dim == (1 if name == "out_proj.weight" else 0)
            if not (of_heads and may_lose_heads(attention)):
                ledger.labels.fix(vector)


def _owned(model: nn.Module, ledger: Ledger) -> dict[int, dict[tuple[str, int], list[int]]]:
    """For every class of labels that can be removed, its positions by parameter and dimension."""
    owned: dict[int, dict[tuple[str, int], list[int]]] = defaultdict(lambda: defaultdict(list))
    for name, tensor in [*model.named_parameters(), *model.named_buffers()]:
        for dim, vector in enumerate(ledger.vectors(tensor)):
            for row, root in enumerate([] if vector is None else vector.tolist()):
                if root != FIXED:
                    owned[root][name, dim].append(row)
    trained = {name for name, _ in model.named_parameters()}
    return {
        root: dict(parts)
        for root, parts in owned.items()
        if any(name in trained for name, _ in parts)
    }


def _lengths(model: nn.Module, ledger: Ledger) -> dict[tuple[str, str], Counter[int]]:
    """For every attribute that counts positions, how many are of which class of labels."""
    found: dict[tuple[str, str], Counter[int]] = {}
    for site in ledger.sites:
        module = model.get_submodule(site.module)
        if isinstance(module, (*KNOWN, nn.MultiheadAttention)):
            continue
        vectors = ledger.labels.settle([site.factor], site.factor.dim())
        for dim, vector in enumerate(vectors):
            if vector is None or dim not in site.dims:
                continue
            for attribute, value in lengths_of(module).items():
                if value == len(vector) and not attribute.endswith(WITHIN):
                    found.setdefault((site.module, attribute), Counter(vector.tolist()))
    return found


def _name(model: nn.Module, slices: tuple[Slice, ...], taken: Mapping[str, Any]) -> str:
    """Of the module whose outputs the units are."""
    makers = [part.name for part in slices if makes(model, part)] or [slices[0].name]
    name = makers[0].rpartition(".")[0] or makers[0]
    again = sum(other.split("#")[0] == name for other in taken)
    return f"{name}#{again + 1}" if again else name


def makes(model: nn.Module, part: Slice) -> bool:
    """Whether a slice is on the side that makes its units, not in a layer that takes them."""
    module = model.get_submodule(part.name.rpartition(".")[0])
    weight = part.name.endswith("weight")
    if isinstance(module, nn.Embedding) or (weight and type(module).__name__ == "Conv1D"):
        return part.dim == 1
    if isinstance(module, TRANSPOSED) and weight:
        return part.dim == 1
    return part.dim == 0
