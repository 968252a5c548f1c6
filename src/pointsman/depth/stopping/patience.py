"""Patience: an input leaves once enough exits in a row have said the same.

Zhou et al., "BERT Loses Patience: Fast and Robust Inference with Early Exit" (PABEE, 2020,
arXiv:2006.04152). With y_s the class that exit s gives an input,

    count_s = count_(s-1) + 1  if y_s = y_(s-1),  else 0;        count of the first exit = 0

and the input leaves at the first exit whose count reaches the patience, which is the threshold that
the exit is held against. Where we depart: counts are whole numbers, so patience alone has only as
many settings as there are exits. A confidence in [0, 1] may be added as the fraction of the count:
a threshold of 2 is still a patience of 2, one of 1.7 also lets go an input whose count is 1 where
the exit is 0.7 sure.

Legend: n inputs, C classes.
"""

from typing import Any, Self

import torch
from torch import Tensor

from pointsman.depth.stopping.keeping import confidence_name, confidence_named
from pointsman.errors import RouteError
from pointsman.run import Confidence, State


class Patience:
    """How many exits in a row agreed with this one's class before it; a stopping rule.

    The knob is the count: 0 lets the first exit answer everything, S lets only the last answer.
    Exits that are skipped are not asked and neither add to a count nor end it. Where an input has
    several places (logits (n, ..., C)), exits agree if they do at all of them.

    Args:
        within: a confidence with values in [0, 1], added below the next whole count; None: counts
            alone, as published.
    """

    def __init__(self, within: Confidence | None = None) -> None:
        self.within = within

    def sureness(self, logits: Tensor, stage: int, memory: State | None) -> tuple[Tensor, State]:
        """Counts (n,) float32, and the classes and counts to remember.

        Raises:
            RouteError: NaN among the logits, or a confidence outside [0, 1].
        """
        if bool(logits.isnan().any()):
            raise RouteError(f"logits must be numbers, got NaN at exit {stage}")
        classes = logits.argmax(dim=-1)
        counts = torch.zeros(len(logits), device=logits.device)
        if memory is not None:
            before, counted = memory
            agreed = classes == before
            agreed = agreed.flatten(1).all(dim=1) if agreed.ndim > 1 else agreed
            counts = torch.where(agreed, counted + 1, 0.0)
        return counts + self._fraction(logits, stage), (classes, counts)

    def _fraction(self, logits: Tensor, stage: int) -> Tensor | float:
        if self.within is None:
            return 0.0
        sure = self.within(logits).float()
        if not bool(((sure >= 0) & (sure <= 1 + 1e-6)).all()):
            raise RouteError(
                f"the confidence within a count lies in [0, 1], got {float(sure.min()):g} to "
                f"{float(sure.max()):g} at exit {stage}: use max_probability or margin"
            )
        return sure.clamp_max(1 - 2**-10)  # never the next count

    def to_state(self) -> tuple[dict[str, Any], dict[str, Tensor]]:
        """Plain values and tensors, for a saved policy."""
        return {"within": None if self.within is None else confidence_name(self.within)}, {}

    @classmethod
    def from_state(cls, plain: dict[str, Any], tensors: dict[str, Tensor]) -> Self:
        """What `to_state` gave, back."""
        return cls(None if plain["within"] is None else confidence_named(plain["within"]))
