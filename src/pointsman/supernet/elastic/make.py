"""One's own network, or one of transformers, made elastic by declarations."""

import copy
from collections.abc import Mapping, Sequence
from typing import Any

from torch import Tensor, nn

from pointsman.supernet.elastic.choices import Declaration, Depth, Skip
from pointsman.supernet.elastic.plan import Plan

Example = Tensor | tuple[Any, ...] | Mapping[str, Any] | None


def make_elastic(
    model: nn.Module, example: Example, declarations: Sequence[Declaration]
) -> nn.Module:
    """A copy of a network that is elastic as declared; wrap it in a `Supernet`.

    Args:
        model: any module; stays as it is.
        example: inputs of one call, from which is found out which channels depend on each other: a
            tensor, a tuple of positional inputs or a dictionary of named ones. None will do for
            depth, kernels, experts, bits, operations and widths whose layers are named.
        declarations: such as `Depth(counts=(2, 4))` and `Width("**.mlp", shares=(0.5, 1))`; what is
            said about depth is taken first, so that choices inside a block depend on whether it
            runs.

    Raises:
        InputError: nothing declared, or a declaration that does not fit the network.
    """
    plan = Plan(copy.deepcopy(model), example)
    for declaration in sorted(declarations, key=lambda d: not isinstance(d, Depth | Skip)):
        declaration.declare(plan)
    return plan.finish()
