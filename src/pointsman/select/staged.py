"""Selection for cascades and early exits, where branches are stages asked in order.

Legend: T inputs, S stages, C classes.
"""

from collections.abc import Sequence

import torch
from torch import Tensor

from pointsman.errors import RouteError
from pointsman.route import Route
from pointsman.select.checks import check_scores, check_values
from pointsman.select.guarantee import guarantees


@guarantees(batch_independent=True, causal=True)
def first_confident(confidences_TS: Tensor, thresholds_S: Sequence[float] | Tensor) -> Route:
    """Each input visits the stages in order until one is confident enough.

    Guarantee: an input visits stages 0..s with s the first whose confidence is at least its
    threshold (compared in the type of the confidences), or the last stage if there is none. Stage s
    has weight 1, those before it weight 0, so that their cost is counted and their output is not.

    Args:
        confidences_TS: how sure each stage is, higher is surer; -inf is below any finite threshold.
        thresholds_S: one number a stage; the last one is ignored, since the last stage always
            answers. +inf never answers at a stage, -inf always does.

    Returns:
        A route with T inputs and S branches; weights have the type of the confidences.

    Raises:
        RouteError: NaN or +inf among the confidences, NaN among the thresholds, no stage at all, or
            another number of thresholds than stages.
    """
    check_scores(confidences_TS, "confidences", "stages")
    stages = confidences_TS.shape[1]
    thresholds = torch.as_tensor(thresholds_S, dtype=confidences_TS.dtype)
    if stages == 0 or thresholds.shape != (stages,):
        raise RouteError(
            "there must be at least one stage and one threshold for each, "
            f"got {stages} stages and thresholds of shape {tuple(thresholds.shape)}"
        )
    if thresholds.device.type == "cpu" and thresholds.isnan().any():
        raise RouteError(f"thresholds must be numbers, got {thresholds.tolist()}")
    with torch.no_grad():
        sure_TS = confidences_TS >= thresholds.to(confidences_TS.device)
        sure_TS[:, -1] = True
        answering_T1 = sure_TS.byte().argmax(dim=1, keepdim=True)
        stage_S = torch.arange(stages, device=confidences_TS.device)
        weights_TS = (stage_S == answering_T1).to(confidences_TS.dtype)
        return Route.from_dense(weights_TS, stage_S <= answering_T1)


@guarantees(batch_independent=True, causal=True)
def window(scores_T: Tensor, low: float, high: float) -> Tensor:
    """Which inputs a stage passes on: those whose score lies between two bounds.

    Below the window even the next stage would most likely fail, above it this one is right already
    (Xia and Bouganis 2023, "Window-based early-exit cascades", arXiv 2303.08010).

    Args:
        scores_T: (T,) how doubtful, or how confident, each input is.
        low: lower bound, included.
        high: upper bound, included.

    Returns:
        (T,) bool: True is passed on.

    Raises:
        RouteError: NaN or +inf among the scores, or bounds that are not in order.
    """
    if scores_T.ndim != 1:
        raise RouteError(f"scores must have shape (inputs,), got {tuple(scores_T.shape)}")
    check_values(scores_T, "scores")
    if not low <= high:
        raise RouteError(
            f"the window's low bound must not be above the high one, got {low}, {high}"
        )
    return (scores_T >= low) & (scores_T <= high)


def max_probability(logits_TC: Tensor) -> Tensor:
    """Probability of the likeliest class, in [1/C, 1]; computed in float32 or better.

    Args:
        logits_TC: (T, C) floating point, C at least 1.

    Returns:
        (T,) float32, or float64 for float64 logits.

    Raises:
        RouteError: a wrong shape or type, NaN or +inf.
    """
    return _log_probabilities(logits_TC).amax(dim=1).exp()


def margin(logits_TC: Tensor) -> Tensor:
    """Likeliest class's probability minus the second's, in [0, 1]; 1 with a single class.

    Args:
        logits_TC: (T, C) floating point, C at least 1.

    Returns:
        (T,) float32, or float64 for float64 logits.

    Raises:
        RouteError: a wrong shape or type, NaN or +inf.
    """
    best = _log_probabilities(logits_TC).topk(min(2, logits_TC.shape[1]), dim=1).values.exp()
    return best[:, 0] - best[:, 1] if best.shape[1] == 2 else best[:, 0]


def negative_entropy(logits_TC: Tensor) -> Tensor:
    """Minus the entropy of the class probabilities, in [-log C, 0] nats; 0 is fully sure.

    Args:
        logits_TC: (T, C) floating point, C at least 1.

    Returns:
        (T,) float32, or float64 for float64 logits.

    Raises:
        RouteError: a wrong shape or type, NaN or +inf.
    """
    log = _log_probabilities(logits_TC)
    # An impossible class adds nothing; 0 * -inf would be NaN, in the gradient too.
    return (log.exp() * log.masked_fill(log == -torch.inf, 0.0)).sum(dim=1)


def _log_probabilities(logits_TC: Tensor) -> Tensor:
    check_scores(logits_TC, "logits", "classes")
    if logits_TC.shape[1] == 0:
        raise RouteError(f"logits need at least one class, got shape {tuple(logits_TC.shape)}")
    wide = torch.promote_types(logits_TC.dtype, torch.float32)
    return logits_TC.to(wide).log_softmax(dim=1)
