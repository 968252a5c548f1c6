"""What balancing terms share: sums in a wide type, places of tokens, counts over processes.

Legend: T tokens without padding, E experts.
"""

from typing import TYPE_CHECKING

import torch
from torch import Tensor, distributed

from pointsman.errors import InputError

if TYPE_CHECKING:
    from pointsman.moe.layer import Routing


def nothing(scores: Tensor) -> Tensor:
    """Scalar 0 in the type of the scores, part of their graph; also where scores are infinite."""
    return scores[:0].sum()


def wide(values: Tensor) -> Tensor:
    """In float32 or better: a sum over thousands of tokens is too long for a half type."""
    return values.to(torch.promote_types(values.dtype, torch.float32))


def squared_variation(amount_E: Tensor) -> Tensor:
    """Scalar: variance over squared mean, 0 where everything is zero."""
    mean = amount_E.mean()
    variance = (amount_E - mean).square().mean()
    return variance / torch.where(mean == 0, 1.0, mean.square())


def places(routing: "Routing") -> Tensor:
    """(T,) int64: where each token stands among the flattened ones, padding included."""
    if routing.kept is not None:
        return routing.kept
    return torch.arange(len(routing.scores), device=routing.scores.device)


def check_length(routing: "Routing", length: int, name: str) -> None:
    """Stretches of this many places must fill the tokens of the call, padding included.

    Raises:
        InputError: a length below 1, or one that does not divide the number of tokens.
    """
    total = max(routing.num_tokens, len(routing.scores))
    if not isinstance(length, int) or isinstance(length, bool) or length < 1 or total % length:
        raise InputError(
            f"{name} must be a whole number that divides the number of tokens, padding included: "
            f"{total}, got {length!r}"
        )


def over_processes(counts: Tensor) -> Tensor:
    """The counts summed over all processes, where torch.distributed has been started.

    Every process must get here equally often.
    """
    if distributed.is_available() and distributed.is_initialized():
        counts = counts.clone()
        distributed.all_reduce(counts)
    return counts
