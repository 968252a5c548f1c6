"""One sureness for an input with several places, such as a window of text or the pixels of a map.

Legend: n inputs, L places, C classes.
"""

from typing import Any, Self

import torch
from torch import Tensor

from pointsman.depth.stopping.keeping import confidence_name, confidence_named
from pointsman.errors import RouteError
from pointsman.run import Confidence, State
from pointsman.select import max_probability


class OverPlaces:
    """A confidence of each place, brought to one number per input; a stopping rule.

    An input leaves as one, so it is as sure as its places are on average, or as its least sure
    place is.

    Args:
        confidence: logits (n, C) -> (n,), higher is surer.
        least: the least sure place counts instead of the mean.
    """

    def __init__(self, confidence: Confidence = max_probability, *, least: bool = False) -> None:
        self.confidence = confidence
        self.least = least

    def sureness(self, logits: Tensor, stage: int, memory: State | None) -> tuple[Tensor, State]:
        """Of logits (n, ..., C), (n,); nothing is remembered.

        Raises:
            RouteError: inputs without a place, or as the confidence.
        """
        places = logits.shape[1:-1].numel()
        if places == 0:
            raise RouteError(f"every input needs a place, got logits {tuple(logits.shape)}")
        each = self.confidence(logits.reshape(-1, logits.shape[-1])).reshape(len(logits), places)
        return torch.amin(each, dim=1) if self.least else each.mean(dim=1), None

    def to_state(self) -> tuple[dict[str, Any], dict[str, Tensor]]:
        """Plain values and tensors, for a saved policy."""
        return {"confidence": confidence_name(self.confidence), "least": self.least}, {}

    @classmethod
    def from_state(cls, plain: dict[str, Any], tensors: dict[str, Tensor]) -> Self:
        """What `to_state` gave, back."""
        return cls(confidence_named(plain["confidence"]), least=plain["least"])
