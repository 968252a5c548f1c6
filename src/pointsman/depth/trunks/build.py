"""From a model to a row of blocks."""

from collections.abc import Iterable, Sequence
from typing import Any

from torch import nn

from pointsman.depth.trunks.sequential import SequentialTrunk
from pointsman.depth.trunks.traced import TracedTrunk
from pointsman.depth.trunks.transformers import TransformerTrunk
from pointsman.depth.trunks.trunk import Trunk
from pointsman.errors import InputError


def trunk_of(
    model: nn.Module | Iterable[nn.Module], example: Any, cuts: Sequence[int | str] = ()
) -> Trunk:
    """A model as a row of blocks, whatever it is made of.

    - A `Trunk` is taken as it is.
    - An `nn.Sequential`, or a list of modules: one block a module.
    - A model of `transformers`: one block a layer.
    - Any other model whose forward runs the same steps for every input, your own residual network
      or one of timm: cut after its modules (`TracedTrunk`), at any depth where `cuts` names them.
    - One that cannot be traced, and keeps its layers in an `nn.ModuleList`: one block a layer.

    Args:
        model: shared, not copied.
        example: a batch of at least one input.
        cuts: names of modules after which it has to be cut.

    Raises:
        InputError: a model that cannot be cut.
    """
    if isinstance(model, Trunk):
        return model
    if isinstance(model, nn.Sequential | nn.ModuleList) or not isinstance(model, nn.Module):
        return SequentialTrunk(model)
    if any(kind.__module__.startswith("transformers.") for kind in type(model).__mro__):
        return TransformerTrunk(model, example)
    if type(model).forward is nn.Module.forward:
        raise InputError(
            f"a network to cut has a forward of its own, which {type(model).__name__} has not: "
            "give an nn.Sequential or a list of its parts in order"
        )
    try:
        return TracedTrunk(model, example, cuts=cuts)
    except InputError:
        found = _by_its_layers(model, example)
        if found is None or any(isinstance(cut, str) and cut not in found.names for cut in cuts):
            raise
        return found


def _by_its_layers(model: nn.Module, example: Any) -> TransformerTrunk | None:
    """A model that cannot be traced may still run a list of layers one after the other."""
    try:
        return TransformerTrunk(model, example)
    except Exception:  # whatever it is, the error of tracing says more
        return None
