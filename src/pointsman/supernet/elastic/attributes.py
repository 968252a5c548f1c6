"""Attributes of torch's layers that follow the shape of their tensors."""

from collections.abc import Mapping
from typing import Any

from torch import Tensor, nn

from pointsman.errors import InputError

Kept = Mapping[tuple[str, int], Tensor]  # which rows stay, by (tensor, dimension)

CONVOLUTIONS = (nn.Conv1d, nn.Conv2d, nn.Conv3d)
BATCH_NORMS = (nn.BatchNorm1d, nn.BatchNorm2d, nn.BatchNorm3d)


def follow(module: nn.Module, kept: Kept) -> dict[str, Any]:
    """The attributes that a layer must have when only these rows of its tensors stay.

    A layer of another class gets those that name the sizes of its `weight`, if it has them
    (`transformers.pytorch_utils.Conv1D`: nf and nx); its other attributes are its own matter.

    Raises:
        InputError: a kind of layer that cannot be cut, or padding that cannot follow a kernel.
    """
    rows = {(name, dim): int(stay.sum()) for (name, dim), stay in kept.items()}
    if isinstance(module, CONVOLUTIONS):
        return _convolution(module, kept)
    if isinstance(module, nn.LayerNorm | nn.RMSNorm):
        return {"normalized_shape": (rows["weight", 0],)} if ("weight", 0) in rows else {}
    if isinstance(module, nn.GroupNorm) and ("weight", 0) in rows:
        each = module.num_channels // module.num_groups
        groups = 1 if module.num_groups == 1 else rows["weight", 0] // each
        return {"num_channels": rows["weight", 0], "num_groups": groups}
    if isinstance(module, nn.modules.conv._ConvNd | nn.RNNBase | nn.MultiheadAttention):
        raise InputError(f"a {type(module).__name__} cannot be cut: leave it whole")
    names = {
        ("weight", 0): ["out_features", "num_features", "nx"],
        ("weight", 1): ["in_features", "embedding_dim", "nf"],
    }
    return {
        name: rows[at]
        for at, known in names.items()
        if at in rows
        for name in known
        if hasattr(module, name)
    }


def _convolution(layer: Any, kept: Kept) -> dict[str, Any]:
    found: dict[str, Any] = {}
    out = kept.get(("weight", 0))
    if out is not None:
        found["out_channels"] = int(out.sum())
        if layer.groups > 1:  # those with an output left
            found["groups"] = int(out.view(layer.groups, -1).any(dim=1).sum())
    inside = kept.get(("weight", 1))
    per_group = layer.in_channels // layer.groups if inside is None else int(inside.sum())
    found["in_channels"] = per_group * found.get("groups", layer.groups)
    sizes = [kept.get(("weight", 2 + at)) for at in range(len(layer.kernel_size))]
    if any(size is not None for size in sizes):
        found |= _kernel(layer, sizes)
    return found


def _kernel(layer: Any, sizes: list[Tensor | None]) -> dict[str, Any]:
    """A smaller kernel pads less, so that the output keeps its size."""
    kernel = tuple(
        size if stay is None else int(stay.sum())
        for size, stay in zip(layer.kernel_size, sizes, strict=True)
    )
    if isinstance(layer.padding, str):
        if layer.padding == "same" and kernel != layer.kernel_size:
            raise InputError('padding="same" cannot follow a kernel: give the padding as a number')
        return {"kernel_size": kernel}
    less = [
        d * (whole - now) // 2
        for d, whole, now in zip(layer.dilation, layer.kernel_size, kernel, strict=True)
    ]
    padding = tuple(pad - cut for pad, cut in zip(layer.padding, less, strict=True))
    if min(padding) < 0:
        raise InputError(
            f"a smaller kernel pads less, so that the output keeps its size: {layer} has too "
            "little padding for that, give it half of its kernel or more"
        )
    doubled = [pad for pad in reversed(padding) for _ in range(2)]
    return {
        "kernel_size": kernel,
        "padding": padding,
        "_reversed_padding_repeated_twice": doubled,
    }
