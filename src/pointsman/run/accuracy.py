"""Thresholds from an allowed loss of accuracy: how right a stage is from each confidence upwards.

Berestizshevsky & Even, "Dynamically Sacrificing Accuracy for Reduced Computation: Cascaded
Inference Based on Softmax Confidence" (2018, arXiv:1805.10982), for cascades of models and exits of
one network alike. Where we depart: an accuracy counts from `min_count` inputs on, as that of a
handful is noise, and a threshold lies half-way to the next lower confidence.

Legend: N held-out inputs, L distinct confidences among them.
"""

import math

import numpy as np
import numpy.typing as npt

from pointsman.errors import InputError

Floats = npt.NDArray[np.float64]


def accuracy_curve(
    confidence: Floats, right: npt.NDArray[np.bool_], min_count: int
) -> tuple[Floats, Floats]:
    """How right a member is from each confidence upwards.

    Args:
        confidence: (N,)
        right: (N,) whether the member's label is the true one.
        min_count: fewest inputs that an accuracy may rest on.

    Returns:
        Thresholds, descending, each half-way to the next lower confidence and the last -inf; and
        the accuracy among the inputs at or above each. Both are empty when N < min_count.
    """
    order = np.argsort(-confidence, kind="stable")
    ranked = confidence[order]
    accuracy = np.cumsum(right[order]) / np.arange(1, len(order) + 1)
    below = np.append(ranked[1:], -np.inf)
    half = ranked[:-1] + (below[:-1] - ranked[:-1]) / 2
    half = np.append(np.where(half > below[:-1], half, ranked[:-1]), -np.inf)
    # Inputs of equal confidence pass together or not at all: only the last of them counts.
    kept = (below < ranked) & (np.arange(1, len(order) + 1) >= min_count)
    return half[kept], accuracy[kept]


def least_threshold(thresholds: Floats, accuracy: Floats, epsilon: float) -> float:
    """The lowest threshold whose accuracy is within epsilon of the best.

    On an empty curve nothing is known, and the threshold is +inf; but any accuracy is within an
    epsilon of 1.
    """
    check_epsilon(epsilon)
    if epsilon == 1:
        return -math.inf
    if len(thresholds) == 0:
        return math.inf
    good = accuracy >= accuracy.max() - epsilon - 1e-12  # 0.9 is within 0.1 of 1, whatever rounds
    return float(thresholds[good][-1])


def check_epsilon(epsilon: float) -> None:
    """Refuse an epsilon that is no share."""
    if not 0 <= epsilon <= 1:
        raise InputError(f"epsilon is a share of accuracy in [0, 1], got {epsilon}")
