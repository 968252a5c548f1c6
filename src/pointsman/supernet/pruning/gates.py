"""A factor on every unit of a network, through which gradients flow.

Legend: U units of a group.
"""

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor, nn
from torch.func import functional_call

from pointsman.errors import InputError
from pointsman.supernet.channels import ChannelGroup, Slice
from pointsman.supernet.channels.groups import makes

Gates = Mapping[ChannelGroup, Tensor]


def taking(model: nn.Module, group: ChannelGroup) -> tuple[Slice, ...]:
    """The slices of the layers that take a group's units.

    Raises:
        InputError: no layer with weights takes them.
    """
    trained = {name for name, _ in model.named_parameters(remove_duplicate=False)}
    found = tuple(s for s in group.slices if s.name in trained and not makes(model, s))
    if not found:
        raise InputError(f"units are scaled where a layer takes them, {group.name!r} has no such")
    return found


def gated_parameters(model: nn.Module, gates: Gates) -> dict[str, Tensor]:
    """The parameters of the layers that take units, scaled by the units' gates.

    Scaling what takes a unit is scaling the unit itself, whatever function lies between it and the
    layer that makes it: a gate of 0 is the network without the unit, 1 leaves it alone.

    Args:
        model: that the groups were found in.
        gates: (U,) factors of the units of some groups.
    """
    scaled: dict[str, Tensor] = {}
    for group, gate in gates.items():
        for part in taking(model, group):
            weight = scaled.get(part.name, model.get_parameter(part.name))
            each = part.rows_UR.shape[1]
            factor = weight.new_ones(weight.shape[part.dim])
            factor = factor.index_put((part.rows_UR.reshape(-1),), gate.repeat_interleave(each))
            shape = [-1 if dim == part.dim else 1 for dim in range(weight.dim())]
            scaled[part.name] = weight * factor.reshape(shape)
    return scaled


def run_gated(model: nn.Module, gates: Gates, *inputs: Any, **options: Any) -> Any:
    """The network's output with a factor on its units."""
    return functional_call(model, gated_parameters(model, gates), inputs, options)


def unit_weights(model: nn.Module, group: ChannelGroup) -> Tensor:
    """(U, ...) the weights by which each unit is made, one row a unit, with gradients."""
    trained = {name for name, _ in model.named_parameters(remove_duplicate=False)}
    rows = []
    for part in group.slices:
        if part.name in trained and makes(model, part):
            whole = model.get_parameter(part.name).movedim(part.dim, 0)
            rows.append(whole.reshape(len(whole), -1)[part.rows_UR].flatten(1))
    return torch.cat(rows, dim=1)
