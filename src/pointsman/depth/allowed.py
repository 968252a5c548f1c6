"""Thresholds of exits from an allowed loss of accuracy, one exit at a time.

Berestizshevsky & Even, "Dynamically Sacrificing Accuracy for Reduced Computation: Cascaded
Inference Based on Softmax Confidence" (2018, arXiv:1805.10982). With c_s(x) the confidence of
exit s,

    a_s(t) = accuracy of exit s on the held-out inputs with c_s(x) >= t
    t_s    = least t with a_s(t) >= max_t' a_s(t') - epsilon

so that epsilon is the only knob, to be turned at run time. It bounds what each exit loses on the
inputs that it answers, against the surest of them; `certified_exits` bounds what the network loses
on all, and searches thresholds for that. Where we depart: see `run.accuracy`, which `pool.Cascade`
uses for whole models.

Legend: S exits, N held-out inputs, C classes.
"""

import math

from torch import Tensor

from pointsman.errors import InputError
from pointsman.run import Confidence
from pointsman.run.accuracy import accuracy_curve, least_threshold
from pointsman.select import max_probability


def allowed_loss(
    logits_SNC: Tensor,
    labels_N: Tensor,
    epsilon: float,
    *,
    confidence: Confidence = max_probability,
    min_count: int = 20,
) -> tuple[float, ...]:
    """Thresholds (S,) for `EarlyExit.run`; the last is -inf, the last exit always answers.

    Args:
        logits_SNC: of every exit on held-out inputs, see `EarlyExit.logits`.
        labels_N: their classes.
        epsilon: in [0, 1]; 1 lets the first exit answer everything.
        confidence: logits (N, C) -> (N,), higher is surer.
        min_count: fewest inputs that an accuracy may rest on; an exit with fewer is left out.

    Raises:
        InputError: shapes that do not fit, an epsilon that is no share, or a count below 1.
    """
    if logits_SNC.ndim != 3 or labels_N.shape != logits_SNC.shape[1:2]:
        raise InputError(
            "logits are (exits, inputs, classes) and labels (inputs,), got "
            f"{tuple(logits_SNC.shape)} and {tuple(labels_N.shape)}"
        )
    if not 0 <= epsilon <= 1 or min_count < 1:
        raise InputError(
            "epsilon is a share of accuracy in [0, 1] and a count at least 1, got "
            f"{epsilon} and {min_count}"
        )
    early = []
    for logits_NC in logits_SNC[:-1]:
        sure_N = confidence(logits_NC).detach().cpu().double().numpy()
        right_N = (logits_NC.argmax(dim=1) == labels_N).cpu().numpy()
        curve = accuracy_curve(sure_N, right_N, min_count)
        early.append(least_threshold(*curve, epsilon))
    return (*early, -math.inf)
