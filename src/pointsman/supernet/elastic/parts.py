"""What an option takes away from a module: rows of its tensors, blocks of a list, attributes.

Legend: O options of a dial, U rows of a tensor along one dimension, or blocks of a container.
"""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from pointsman.supernet.elastic.dial import Dial


@dataclass(frozen=True, eq=False)
class Cut:
    """Which rows of a tensor stay, along one dimension, for each option of a dial.

    Cuts of one tensor and dimension by several dials keep the rows that all of them keep.

    Args:
        module: that owns the tensor.
        tensor: name of the parameter or buffer in it.
        dim: dimension of the tensor.
        dial: decides.
        kept: (options, rows) of truth values.
    """

    module: nn.Module
    tensor: str
    dim: int
    dial: Dial
    kept: Tensor


@dataclass(frozen=True, eq=False)
class Blocks:
    """Which modules of an `nn.ModuleList` or `nn.Sequential` stay, for each option of a dial.

    Args:
        container: holds the blocks.
        dial: decides.
        kept: (options, blocks) of truth values.
        counted: (object, attribute) that hold the number of blocks, or a list with an entry for
            each, as configurations do.
    """

    container: nn.Module
    dial: Dial
    kept: Tensor
    counted: tuple[tuple[Any, str], ...] = ()


@dataclass(frozen=True, eq=False)
class Setting:
    """An attribute that follows a dial, such as the number of heads.

    Args:
        owner: any object: a module, or the configuration that its forward reads.
        attribute: name.
        dial: decides.
        values: by option.
        less: the values are numbers to take away from what is there.
    """

    owner: Any
    attribute: str
    dial: Dial
    values: tuple[Any, ...]
    less: bool = False

    def value(self, option: int) -> Any:
        """What the attribute becomes."""
        if not self.less:
            return self.values[option]
        before = getattr(self.owner, self.attribute)
        if isinstance(before, tuple | list):  # as a shape of one dimension
            return type(before)([before[0] - self.values[option]])
        return before - self.values[option]


Part = Cut | Blocks | Setting


def prefixes(counts: Iterable[int], rows: int) -> Tensor:
    """(O, U) that keeps the first rows, as many as each option counts."""
    return torch.stack([torch.arange(rows) < count for count in counts])


def centred(sizes: Iterable[int], rows: int) -> Tensor:
    """(O, U) that keeps the middle rows, as many as each option counts."""
    away = (torch.arange(rows) - (rows - 1) / 2).abs()
    return torch.stack([away < size / 2 for size in sizes])


def rows_of(units: Sequence[Sequence[int]], counts: Iterable[int], rows: int) -> Tensor:
    """(O, U) without the rows of all units beyond the first so many; other rows stay.

    Args:
        units: the rows of each unit.
        counts: units kept, by option.
        rows: U.
    """
    unit_U = torch.full((rows,), -1)
    for unit, taken in enumerate(units):
        unit_U[torch.as_tensor(taken, dtype=torch.long)] = unit
    return torch.stack([unit_U < count for count in counts])


def index_of(kept_U: Tensor) -> slice | Tensor:
    """The rows as a slice where they are neighbours, so that the cut is a view; else by number."""
    rows = kept_U.nonzero().flatten()
    if len(rows) and int(rows[-1]) - int(rows[0]) + 1 == len(rows):
        return slice(int(rows[0]), int(rows[-1]) + 1)
    return rows
