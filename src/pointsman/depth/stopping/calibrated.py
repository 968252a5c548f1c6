"""Confidence that means the same at every exit: one temperature per exit, fitted on held-out data.

Guo et al., "On Calibration of Modern Neural Networks" (2017, arXiv:1706.04599): logits are divided
by the temperature that makes held-out labels likeliest. Early exits and the last one are usually
over- or underconfident to different degrees, so that one threshold for all of them is unfair to
some; after this it is not. Ranking within an exit, and so what thresholds of their own for each
exit can reach with two classes, stays as it was.

Legend: S exits, N inputs, C classes.
"""

import math
from typing import Any, Self

import torch
from torch import Tensor
from torch.nn import functional

from pointsman.depth.stopping.keeping import confidence_name, confidence_named
from pointsman.errors import InputError
from pointsman.run import Confidence, State
from pointsman.select import max_probability

LOWEST, HIGHEST = -4.0, 4.0  # of the temperature's natural logarithm
STEPS = 60  # halvings of the golden section: far below the noise of any labels


class Calibrated:
    """A confidence of logits divided by their exit's temperature; a stopping rule.

    Args:
        confidence: logits (n, C) -> (n,), higher is surer.

    Attributes:
        temperatures_: (S,) float64 after `fit`.
    """

    temperatures_: Tensor

    def __init__(self, confidence: Confidence = max_probability) -> None:
        self.confidence = confidence

    def fit(self, logits_SNC: Tensor, labels_N: Tensor) -> Self:
        """Find the temperature of each exit on inputs that nothing was trained on.

        Raises:
            InputError: shapes that do not fit, or no input.
        """
        if logits_SNC.ndim != 3 or labels_N.shape != logits_SNC.shape[1:2] or not len(labels_N):
            raise InputError(
                "temperatures are fitted on logits (exits, inputs, classes) and labels (inputs,) "
                f"of at least one input, got {tuple(logits_SNC.shape)} and {tuple(labels_N.shape)}"
            )
        found = [_temperature(logits_NC.double(), labels_N) for logits_NC in logits_SNC]
        self.temperatures_ = torch.tensor(found, dtype=torch.float64)
        return self

    def sureness(self, logits: Tensor, stage: int, memory: State | None) -> tuple[Tensor, State]:
        """Confidence (n,) of the exit's logits at its temperature; nothing is remembered.

        Raises:
            InputError: not fitted, or fitted for fewer exits.
        """
        if stage >= len(getattr(self, "temperatures_", ())):
            raise InputError(
                f"there is no temperature for exit {stage}: fit the rule on the logits of every "
                "exit first"
            )
        return self.confidence(logits / float(self.temperatures_[stage])), None

    def to_state(self) -> tuple[dict[str, Any], dict[str, Tensor]]:
        """Plain values and tensors, for a saved policy."""
        plain = {"confidence": confidence_name(self.confidence)}
        return plain, {"temperatures": self.temperatures_}

    @classmethod
    def from_state(cls, plain: dict[str, Any], tensors: dict[str, Tensor]) -> Self:
        """What `to_state` gave, back."""
        rule = cls(confidence_named(plain["confidence"]))
        rule.temperatures_ = tensors["temperatures"]
        return rule


@torch.no_grad()
def _temperature(logits_NC: Tensor, labels_N: Tensor) -> float:
    """Golden section over log temperature: the likelihood is unimodal in its inverse."""
    shrink = (5**0.5 - 1) / 2

    def loss(log: float) -> float:
        return float(functional.cross_entropy(logits_NC / math.exp(log), labels_N))

    low, high = LOWEST, HIGHEST
    left, right = high - shrink * (high - low), low + shrink * (high - low)
    at_left, at_right = loss(left), loss(right)
    for _ in range(STEPS):
        if at_left <= at_right:
            high, right, at_right = right, left, at_left
            left = high - shrink * (high - low)
            at_left = loss(left)
        else:
            low, left, at_left = left, right, at_right
            right = low + shrink * (high - low)
            at_right = loss(right)
    return math.exp((low + high) / 2)
