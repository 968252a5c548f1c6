"""Which parts of which parameters live and die together.

Legend: U units of a group, R positions of a unit in one dimension of one parameter.
"""

from collections import defaultdict
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from pointsman.errors import InputError
from pointsman.supernet.channels.labels import FIXED
from pointsman.supernet.channels.ledger import Ledger
from pointsman.supernet.channels.tracing import lengths_of, trace

# A number of these names says how large a head is, even if there are as many heads.
WITHIN = ("head_dim", "head_size", "dim_head", "size_per_head", "dim_per_head", "d_head")


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
    rows_UR: Tensor


@dataclass(frozen=True, eq=False)
class Length:
    """A whole number that a module holds as an attribute: so many positions of a group.

    Attributes:
        module: its name.
        attribute: of the module.
        rows_UR: (U, R) the positions of each unit among those that are counted.
        fixed: how many positions are counted that belong to no unit of this group.
    """

    module: str
    attribute: str
    rows_UR: Tensor
    fixed: int


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
    lengths: tuple[tuple[str, str, tuple[int, ...]], ...] = ()

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
    `torch.nn.MultiheadAttention` keeps its shape, because it cannot have another width inside.

    Args:
        model: any module; it is run once, in evaluation mode, and left as it is.
        example: a tensor, a tuple of positional arguments, or a mapping of arguments by name. A
            batch of one is enough.

    Returns:
        Groups of at least two units, in the order in which the network makes them.

    Raises:
        InputError: the network branches on numbers it computed, or does not run on the example.
    """
    ledger = trace(model, example)
    for name, module in model.named_modules():
        if isinstance(module, nn.MultiheadAttention):
            for parameter in module.parameters():
                for factor in ledger.factors(parameter):
                    ledger.labels.fix(factor)
    return _grouped(model, ledger)
