"""Thresholds of exits from an allowed loss of accuracy, one exit at a time.

Berestizshevsky & Even, "Dynamically Sacrificing Accuracy for Reduced Computation: Cascaded
Inference Based on Softmax Confidence" (2018, arXiv:1805.10982). With c_s(x) the confidence of
exit s,

    a_s(t) = accuracy of exit s on the held-out inputs with c_s(x) >= t
    t_s    = least t with a_s(t) >= max_t' a_s(t') - epsilon

so that epsilon is the only knob, to be turned at run time. It bounds what each exit loses on the
inputs that it answers, against the surest of them; `certified_exits` bounds what the network loses
on all, and searches thresholds for that. Where we depart, as `pool.Cascade` does with whole models:
a_s(t) counts from `min_count` inputs on, as the accuracy of a handful is noise; t_s lies half-way
to the next lower confidence; where all held-out inputs may be answered it is -inf.

Legend: S exits, N held-out inputs, C classes.
"""

import math

import torch
from torch import Tensor

from pointsman.errors import InputError
from pointsman.run import Confidence
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
    early = [
        _threshold(confidence(logits_NC), logits_NC.argmax(dim=1) == labels_N, epsilon, min_count)
        for logits_NC in logits_SNC[:-1]
    ]
    return (*early, -math.inf)


def _threshold(sure_N: Tensor, right_N: Tensor, epsilon: float, min_count: int) -> float:
    if epsilon == 1:
        return -math.inf
    if len(sure_N) < min_count:
        return math.inf
    ranked, order = sure_N.double().sort(descending=True, stable=True)
    count = torch.arange(1, len(ranked) + 1, device=ranked.device)
    accuracy = right_N[order].double().cumsum(dim=0) / count
    below = torch.cat([ranked[1:], ranked.new_full((1,), -math.inf)])
    counts = (below < ranked) & (count >= min_count)  # inputs of equal confidence pass together
    good = counts & (accuracy >= accuracy[counts].max() - epsilon - 1e-12)
    last = int(good.nonzero()[-1])
    if last == len(ranked) - 1:
        return -math.inf
    half = float((ranked[last] + below[last]) / 2)
    return half if half > float(below[last]) else float(ranked[last])
