"""Smaller networks with fewer units, the same network in another order, and units set to zero.

Legend: U units of a group.
"""

import copy
from collections import defaultdict
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from pointsman.errors import InputError, reason
from pointsman.modules import evaluating
from pointsman.supernet.channels.attention import HeadAttention
from pointsman.supernet.channels.groups import CONVOLUTIONS, NORMS, TRANSPOSED, ChannelGroup
from pointsman.supernet.channels.ledger import tensors_in
from pointsman.supernet.channels.tracing import call_with

Kept = Mapping[ChannelGroup, Sequence[int]]


def narrow(model: nn.Module, kept: Kept, example: Any = None) -> nn.Module:
    """A copy of the network without the units that are not kept.

    Its outputs are those of the network with these units set to zero (see `zeroed`) if every group
    is exact. Attributes of modules are adjusted: those of torch's own layers, and whole numbers of
    other modules that counted the units, such as a number of heads.

    Args:
        model: is left as it is.
        kept: for each group, the units that stay, by index, at least one; groups that are not named
            stay whole.
        example: runs both networks and compares them, as for `channel_groups`; None: no check.

    Raises:
        InputError: no unit or an unknown one is kept; or, with an example, the narrow network does
            not run or gives other outputs.
    """
    gone = {group: _removed(group, units) for group, units in kept.items()}
    small = copy.deepcopy(model)
    removed: dict[tuple[str, int], list[Tensor]] = defaultdict(list)
    for group, units in gone.items():
        for part in group.slices:
            removed[part.name, part.dim].append(part.rows_UR[units].reshape(-1))
        for length in group.lengths:
            _shrink(small.get_submodule(length.module), length.attribute, length.each * len(units))
    touched: set[nn.Module] = set()
    for (name, dim), rows in removed.items():
        tensor = _tensor(small, name)
        stay = torch.ones(tensor.shape[dim], dtype=torch.bool)
        stay[torch.cat(rows)] = False
        taken = tensor.index_select(dim, stay.nonzero().flatten().to(tensor.device))
        touched.update(_replace(small, name, taken))
    for module in touched:
        _adjust(module)
    small = _with_fewer_heads(small)
    if example is not None:
        _check(model, small, kept, example)
    return small


def zeroed(model: nn.Module, kept: Kept) -> nn.Module:
    """A copy of the network, as large as it was, with the units that are not kept set to zero.

    Args:
        model: is left as it is.
        kept: as for `narrow`.

    Raises:
        InputError: no unit or an unknown one is kept.
    """
    blank = copy.deepcopy(model)
    with torch.no_grad():
        for group, units in kept.items():
            gone = _removed(group, units)
            for part in group.slices:
                tensor = _tensor(blank, part.name)
                rows = part.rows_UR[gone].reshape(-1).to(tensor.device)
                tensor.index_fill_(part.dim, rows, 0)
    return blank


def reorder(model: nn.Module, orders: Kept) -> nn.Module:
    """A copy of the network with the units of groups in another order; its outputs stay the same.

    Args:
        model: is left as it is.
        orders: for each group, all its units in their new order, such as by falling importance.

    Raises:
        InputError: an order that does not hold each unit once.
    """
    sorted_ = copy.deepcopy(model)
    with torch.no_grad():
        for group, order in orders.items():
            if sorted(int(unit) for unit in order) != list(range(group.size)):
                raise InputError(
                    f"an order holds each of the {group.size} units of {group.name!r} once, got "
                    f"{list(order)}"
                )
            units = torch.as_tensor(order, dtype=torch.long)
            for part in group.slices:
                tensor = _tensor(sorted_, part.name)
                rows_UR = part.rows_UR.to(tensor.device)
                taken = tensor.index_select(part.dim, rows_UR[units].reshape(-1))
                tensor.index_copy_(part.dim, rows_UR.reshape(-1), taken)
    return sorted_


def _removed(group: ChannelGroup, units: Iterable[int]) -> Tensor:
    """Indices of the units that go."""
    stay = {int(unit) for unit in units}
    if not stay or not stay <= set(range(group.size)):
        raise InputError(
            f"of {group.name!r} at least one of the units 0 to {group.size - 1} is kept, got "
            f"{sorted(stay)}"
        )
    return torch.tensor([unit for unit in range(group.size) if unit not in stay], dtype=torch.long)


def _tensor(model: nn.Module, name: str) -> Tensor:
    place, _, own = name.rpartition(".")
    tensor: Tensor = getattr(model.get_submodule(place), own)
    return tensor


def _replace(model: nn.Module, name: str, value: Tensor) -> list[nn.Module]:
    """Put a tensor in the place of another, wherever it is shared; gives the modules it is in."""
    touched = []
    old = _tensor(model, name)
    new = value.detach()
    if isinstance(old, nn.Parameter):
        new = nn.Parameter(new, requires_grad=old.requires_grad)
    for module in model.modules():
        places: list[dict[str, Any]] = [module._parameters, module._buffers]
        for place in places:
            for own, tensor in place.items():
                if tensor is old:
                    place[own] = new
                    touched.append(module)
    return touched


def _shrink(module: nn.Module, attribute: str, by: int) -> None:
    value = getattr(module, attribute)
    less = type(value)([value[0] - by]) if isinstance(value, tuple | list) else value - by
    setattr(module, attribute, less)


def _adjust(module: Any) -> None:
    """Attributes of torch's own layers, as their parameters have them."""
    if isinstance(module, nn.Linear):
        module.out_features, module.in_features = module.weight.shape
    elif isinstance(module, nn.Embedding):
        module.num_embeddings, module.embedding_dim = module.weight.shape
    elif isinstance(module, CONVOLUTIONS):
        _adjust_convolution(module)
    elif isinstance(module, NORMS):
        module.num_features = len(next(x for x in _vectors(module)))
    elif isinstance(module, nn.GroupNorm):
        each = module.num_channels // module.num_groups
        module.num_channels = len(module.weight)
        module.num_groups = 1 if module.num_groups == 1 else module.num_channels // each
    elif isinstance(module, nn.LayerNorm | nn.RMSNorm):
        module.normalized_shape = tuple(module.weight.shape)
    elif type(module).__name__ == "Conv1D":  # of transformers
        module.nx, module.nf = module.weight.shape


def _adjust_convolution(module: Any) -> None:
    rows, columns = module.weight.shape[:2]
    transposed = isinstance(module, TRANSPOSED)
    before = module.in_channels if transposed else module.out_channels
    if module.groups > 1:
        module.groups = rows // (before // module.groups)
    if transposed:
        module.in_channels, module.out_channels = rows, columns * module.groups
    else:
        module.out_channels, module.in_channels = rows, columns * module.groups


def _with_fewer_heads(module: nn.Module) -> nn.Module:
    """The network with torch's attention replaced where it lost heads."""
    if isinstance(module, nn.MultiheadAttention):
        lost = module.out_proj.weight.shape[1] < module.embed_dim
        return HeadAttention(module) if lost else module
    for name, child in module.named_children():
        other = _with_fewer_heads(child)
        if other is not child:
            setattr(module, name, other)
    return module


def _vectors(module: nn.Module) -> Iterable[Tensor]:
    own = [*module.parameters(recurse=False), *module.buffers(recurse=False)]
    return (x for x in own if x.dim() == 1)


def _check(model: nn.Module, small: nn.Module, kept: Kept, example: Any) -> None:
    """Run the narrow network and compare it with zeros where units were.

    Raises:
        InputError: it does not run, or gives other outputs.
    """
    way_out = "leave these groups whole, or compute sizes in forward from the shapes of tensors"
    names = ", ".join(group.name for group in kept)
    with torch.no_grad(), evaluating(small):
        try:
            found = call_with(small, example)
        except Exception as error:
            raise InputError(
                f"{type(model).__name__} does not run without units of {names} ({reason(error)}): "
                f"{way_out}"
            ) from error
        if not all(group.exact for group in kept):
            return
        blank = zeroed(model, kept)
        with evaluating(blank):
            wanted = call_with(blank, example)
    for one, other in zip(_outputs(found), _outputs(wanted), strict=True):
        scale = float(other.abs().max()) if other.numel() else 0.0
        if one.shape != other.shape or not torch.allclose(
            one, other, rtol=1e-3, atol=1e-4 * scale + 1e-6
        ):
            raise InputError(
                f"{type(model).__name__} without units of {names} gives other outputs than with "
                f"these units at zero: {way_out}"
            )


def _outputs(value: Any) -> list[Tensor]:
    plain = dict(value) if isinstance(value, Mapping) else value
    return [x for x in tensors_in(plain) if x.is_floating_point()]
