"""Learning a choice from the losses of several draws. Legend: T inputs, E branches, M draws."""

import torch
from torch import Tensor

from pointsman.errors import InputError
from pointsman.learn.common import check_pairs, columns, log_softmax, slots
from pointsman.route import Route


def equal_weights(scores: Tensor, route: Route, *, weight: float | None = None) -> Route:
    """Every pair has the same constant weight, so no branch of an input dominates another.

    No gradient reaches the scores this way: they learn by `leave_one_out`.

    Args:
        scores: (T, E) floating point; their type is that of the weights.
        route: chosen from them.
        weight: of each pair; None means one over the branches of its input.

    Returns:
        The same pairs.

    Raises:
        RouteError: scores that do not fit the route, or NaN or +inf among them (on a CPU).
    """
    check_pairs(scores, route)
    if weight is not None:
        return route.weighted(scores.new_full((len(route),), weight))
    count_N = route.branches_per_input().index_select(0, route.inputs)
    return route.weighted(count_N.to(scores.dtype).reciprocal())


def log_prob_without_replacement(scores: Tensor, route: Route) -> Tensor:
    """How likely it was to draw each input's branches, in this order, without putting back.

    The sum over an input's pairs of log(q / (1 - what of q was drawn before)), with q the softmax
    of the scores, such as `select.categorical` draws.

    Args:
        scores: (T, E) floating point logits; -inf marks a branch as not eligible.
        route: drawn from them.

    Returns:
        (T,) logarithms in the type of the scores; 0 where nothing was drawn.

    Raises:
        RouteError: scores that do not fit the route, or NaN or +inf among them (on a CPU).
    """
    check_pairs(scores, route)
    total_T, left_TE = scores.new_zeros(len(scores)), scores
    for branch_T1 in columns(slots(route)):
        taken_T1, index_T1 = branch_T1 >= 0, branch_T1.clamp(min=0)
        log_T1 = log_softmax(left_TE).gather(1, index_T1)
        total_T = total_T + torch.where(taken_T1, log_T1, 0.0).squeeze(1)
        gone = torch.zeros_like(left_TE, dtype=torch.bool).scatter(1, index_T1, taken_T1)
        left_TE = left_TE.masked_fill(gone, -torch.inf)
    return total_T


def leave_one_out(losses: Tensor, log_probs: Tensor) -> Tensor:
    """A scalar whose gradient estimates, without bias, that of the expected loss.

    Each of M independent draws is held against the mean loss of the others: the gradient is the sum
    over draws of (loss - mean loss) * d log_prob, over M - 1. Its value means nothing; add it to
    the mean loss of the draws, which teaches what was chosen. (Kool et al. 2019, "Buy 4 REINFORCE
    samples, get a baseline for free!"; used for routers by Qiu et al. 2026, "ReMix", arXiv
    2603.10160.)

    Args:
        losses: (M,) one loss a draw, or (M, ...) one for each decision of a draw, which is much
            less noisy where losses can be told apart. No gradient flows into them.
        log_probs: of the same shape: log-probabilities of what was drawn, summed over everything
            that a loss hangs on (layers, for example).

    Returns:
        Scalar, summed over decisions: divide by their number if the loss is their mean.

    Raises:
        InputError: different shapes, or fewer than two draws.
    """
    if losses.shape != log_probs.shape or losses.ndim == 0 or len(losses) < 2:
        raise InputError(
            "leave_one_out needs losses and log-probabilities of one shape (draws, ...), two draws "
            f"at least, got {tuple(losses.shape)} and {tuple(log_probs.shape)}"
        )
    losses = losses.detach()
    advantage = (losses - losses.mean(dim=0)) / (len(losses) - 1)
    return (advantage * log_probs).sum()
