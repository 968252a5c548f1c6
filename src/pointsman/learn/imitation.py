"""A cheap router learns from an expensive judgement. Legend: T inputs, E branches, N pairs."""

from torch import Tensor

from pointsman.errors import InputError
from pointsman.learn.common import check_pairs, of_pairs
from pointsman.route import Route
from pointsman.select.weighing import softmax


def imitation(
    scores: Tensor, target: Tensor, chosen: Route | None = None, *, theta: float = 0.1
) -> Tensor:
    """Mean squared difference of two softmaxes; no gradient reaches the target.

    Softmaxes over many branches are nearly flat and their differences small, so what was chosen by
    the target counts once more, `theta` times. (Nguyen et al. 2025, "CompeteSMoE", arXiv
    2505.13380: a gate imitates a competition of the experts.) Nothing here is particular to
    experts: the target may be rewards of models or losses of exits, with their sign turned.

    Args:
        scores: (T, E) of the cheap router; -inf marks a branch as not eligible.
        target: (T, E) floating point, the judgement: higher is better.
        chosen: what the target chose; None leaves the second term out.
        theta: weight of the second term.

    Returns:
        Scalar in the type of the scores; 0 for no input.

    Raises:
        InputError: a target of another shape.
        RouteError: scores that do not fit the route, or NaN or +inf among them (on a CPU).
    """
    if scores.shape != target.shape:
        raise InputError(
            f"scores and target must have one shape, got {tuple(scores.shape)} "
            f"and {tuple(target.shape)}"
        )
    wanted_TE = softmax(target.detach().to(scores.dtype))
    square_TE = (softmax(scores) - wanted_TE).square()
    loss = square_TE.sum() / max(square_TE.numel(), 1)
    if chosen is None:
        return loss
    check_pairs(scores, chosen)
    return loss + theta * of_pairs(square_TE, chosen).sum() / max(len(chosen), 1)
