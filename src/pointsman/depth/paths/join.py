"""Where several paths meet: the mean of those that are there. Legend: P paths, n inputs."""

from collections.abc import Sequence

import torch
from torch import Tensor

from pointsman.errors import InputError


def mean_join(parts: Sequence[Tensor], alive_nP: Tensor | None = None) -> Tensor:
    """The mean over the paths that are alive, so that the scale stays when some are dropped.

    Args:
        parts: P tensors of one shape (n, ...).
        alive_nP: bool, which paths each input has, at least one; None: all. Paths that are not
            alive get no gradient, and whatever they hold (NaN too) does not come through.

    Returns:
        (n, ...)

    Raises:
        InputError: no path, different shapes, or an input without any path.
    """
    shapes = {tuple(part.shape) for part in parts}
    if len(shapes) != 1:
        raise InputError(f"paths that are joined have one shape, got {sorted(shapes)}")
    if len(parts) == 1:
        return parts[0]
    if alive_nP is None:
        return torch.stack(list(parts)).mean(dim=0)
    if alive_nP.shape != (len(parts[0]), len(parts)) or alive_nP.dtype != torch.bool:
        raise InputError(
            f"which paths are alive is a bool table {(len(parts[0]), len(parts))}, got "
            f"{alive_nP.dtype} of shape {tuple(alive_nP.shape)}"
        )
    if not bool(alive_nP.any(dim=1).all()):
        raise InputError("every input needs at least one path that is alive: see survivors")
    wide = (-1, *[1] * (parts[0].ndim - 1))
    kept = [
        part.where(alive_n.reshape(wide), 0.0)
        for part, alive_n in zip(parts, alive_nP.unbind(dim=1), strict=True)
    ]
    return torch.stack(kept).sum(dim=0) / alive_nP.sum(dim=1).reshape(wide)


def survivors(
    inputs: int,
    paths: int,
    rate: float,
    *,
    generator: torch.Generator | None = None,
    device: torch.device | str | None = None,
) -> Tensor:
    """Which paths are left when each is dropped with probability `rate`, and never all of them.

    Where a draw would drop every path of an input, one of them, any with equal chance, stays.

    Args:
        inputs: n.
        paths: P, at least 1.
        rate: from 0 to 1; at 1 exactly one path is left.
        generator: on the device; None means torch's global one.
        device: of the table.

    Returns:
        (n, P) bool.

    Raises:
        InputError: a rate outside of [0, 1], or no path.
    """
    if paths < 1 or not 0 <= rate <= 1:
        raise InputError(f"at least one path and a rate from 0 to 1, got {paths} and {rate!r}")
    draws_nP = torch.rand(inputs, paths, generator=generator, device=device)
    # The largest draw is the last to be dropped: all draws are equally likely to be it.
    spared_n1 = draws_nP.argmax(dim=1, keepdim=True)
    return (draws_nP >= rate).scatter(1, spared_n1, torch.ones_like(spared_n1, dtype=torch.bool))
