"""Weights of the branches that were chosen, from the scores, without NaN for masked-out inputs.

Legend: T inputs, E branches, K slots of one input.
"""

from collections.abc import Callable

import torch
from torch import Tensor

from pointsman.errors import RouteError

Weigh = Callable[[Tensor], Tensor]  # scores (T, E) -> weights (T, E)


def softmax(scores_TE: Tensor) -> Tensor:
    """Softmax over branches, in which an input without eligible branch gets zeros, not NaN.

    Its gradient is finite too: with a plain softmax one padded row of -inf would turn the gradient
    of a whole router into NaN.
    """
    nowhere_T1 = _nowhere(scores_TE)
    return scores_TE.masked_fill(nowhere_T1, 0.0).softmax(dim=1).masked_fill(nowhere_T1, 0.0)


def weigh_all(scores_TE: Tensor, weigh: Weigh | None) -> Tensor:
    """Weight of every branch: `weigh` of the scores, softmax over branches if it is None.

    Raises:
        RouteError: `weigh` changed the shape.
    """
    if weigh is None:
        return softmax(scores_TE)
    weights_TE = weigh(scores_TE.masked_fill(_nowhere(scores_TE), 0.0))
    if weights_TE.shape != scores_TE.shape:
        raise RouteError(
            f"weigh must keep the shape of the scores, {tuple(scores_TE.shape)}, "
            f"got {tuple(weights_TE.shape)}"
        )
    return weights_TE


def weigh_chosen(
    scores_TE: Tensor,
    branches_TK: Tensor,
    taken_TK: Tensor,
    *,
    weigh: Weigh | None,
    renormalize: bool,
) -> Tensor:
    """Weights (T, K) of the chosen branches, zeros in slots that are not taken.

    With `renormalize` the weights of an input are divided by their sum, if that is not zero.
    """
    if weigh is None and renormalize:
        # Dividing a softmax by a part of its sum is a softmax of that part: no 0 / 0 can arise.
        return softmax(scores_TE.gather(1, branches_TK).masked_fill(~taken_TK, -torch.inf))
    weights_TK = weigh_all(scores_TE, weigh).gather(1, branches_TK).masked_fill(~taken_TK, 0.0)
    if not renormalize:
        return weights_TK
    total_T1 = weights_TK.sum(dim=1, keepdim=True)
    return weights_TK / total_T1.masked_fill(total_T1 == 0, 1.0)


def _nowhere(scores_TE: Tensor) -> Tensor:
    """(T, 1) bool: inputs without any eligible branch."""
    return (scores_TE == -torch.inf).all(dim=1, keepdim=True)
