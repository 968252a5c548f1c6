"""From a model to a row of blocks."""

from collections.abc import Iterable, Sequence
from typing import Any

from torch import nn

from pointsman.depth.trunks.sequential import SequentialTrunk
from pointsman.depth.trunks.trunk import Trunk
from pointsman.errors import InputError


def trunk_of(
    model: nn.Module | Iterable[nn.Module], example: Any, cuts: Sequence[int | str] = ()
) -> Trunk:
    """A model as a row of blocks, whatever it is made of.

    - A `Trunk` is taken as it is.
    - An `nn.Sequential`, or a list of modules: one block a module.

    Args:
        model: shared, not copied.
        example: a batch of at least one input.
        cuts: places after which the row has to be cut.

    Raises:
        InputError: a model that cannot be cut.
    """
    if isinstance(model, Trunk):
        return model
    if isinstance(model, nn.Sequential | nn.ModuleList) or not isinstance(model, nn.Module):
        return SequentialTrunk(model)
    raise InputError(
        f"early exits need a backbone whose children run one after the other, got "
        f"{type(model).__name__}: give an nn.Sequential or a list of its parts in order"
    )
