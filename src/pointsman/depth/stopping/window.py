"""Window: inputs near a decision go on; those far on either side of it leave.

Xia & Bouganis, "Window-Based Early-Exit Cascades for Uncertainty Estimation: When Deep Ensembles
are More Efficient than Single Models" (2023, arXiv:2303.08010). To answer an input or to reject it
is a binary decision on a score s (the largest softmax probability) against tau. With F the
distribution of scores among held-out inputs and q = F(tau), an input whose score lies in

    [ F^-1(q - w), F^-1(q + w) ]

goes on, the others leave: those above tau are answered and those below are rejected, whatever a
later exit would say, so computing it would be a waste. Written as a sureness, |F(s) - q|, the width
w is the threshold an exit is held against: one number for all exits, or a smaller one for each
later exit, which nests the windows as the paper does.

Where we depart: every exit has its own F and its own tau, because scores of different exits lie on
different scales (the paper holds both members of an ensemble against one tau); F runs straight
between the scores that were seen, is flat beyond them, and gives equal scores their middle rank;
`recentred` moves the quantiles to another mixture of inputs and keeps tau.

Legend: S exits, N held-out inputs, n inputs, C classes.
"""

from typing import Any, Self

import torch
from torch import Tensor

from pointsman.depth.stopping.keeping import confidence_name, confidence_named
from pointsman.errors import InputError
from pointsman.run import Confidence, State
from pointsman.select import max_probability


class Window:
    """How far an exit's score lies from the decision, in shares of the inputs; a stopping rule.

    The knob is the width w on either side: 0 lets the first exit answer everything, 1 passes
    everything on to the last; with w, the share 2w of the inputs goes on at most.

    Args:
        coverage: share of the inputs that is to be answered, in (0, 1); tau of each exit is the
            score that this share of held-out inputs reaches there.
        confidence: the score, logits (n, C) -> (n,), higher is surer.

    Attributes:
        scores_: (S, N) of held-out inputs, ascending, after `fit`.
        decisions_: (S,) tau of each exit, after `fit`: answer where the score reaches it.
    """

    scores_: Tensor
    decisions_: Tensor

    def __init__(self, coverage: float, confidence: Confidence = max_probability) -> None:
        if not 0 < coverage < 1:
            raise InputError(f"a coverage lies strictly between 0 and 1, got {coverage}")
        self.coverage = coverage
        self.confidence = confidence

    def fit(self, logits_SNC: Tensor) -> Self:
        """Learn each exit's scores and its decision on held-out inputs; labels are not needed.

        Raises:
            InputError: logits that are not (exits, inputs, classes), or fewer than two inputs.
        """
        self.scores_ = self._scores(logits_SNC)
        self.decisions_ = self.scores_.quantile(1 - self.coverage, dim=1)
        return self

    def recentred(self, logits_SNC: Tensor) -> "Window":
        """The same decisions among other inputs, such as the mixture that now comes in.

        Raises:
            InputError: as in `fit`, or another number of exits.
        """
        self._fitted(len(logits_SNC) - 1)
        other = Window(self.coverage, self.confidence)
        other.scores_, other.decisions_ = self._scores(logits_SNC), self.decisions_
        if len(other.scores_) != len(self.decisions_):
            raise InputError(
                f"the rule was fitted on {len(self.decisions_)} exits, got logits of "
                f"{len(other.scores_)}"
            )
        return other

    def sureness(self, logits: Tensor, stage: int, memory: State | None) -> tuple[Tensor, State]:
        """Distance (n,) of the score's rank from the decision's, in [0, 1]; nothing is remembered.

        Raises:
            InputError: not fitted, or fitted for fewer exits.
        """
        self._fitted(stage)
        seen = self.scores_[stage].to(logits.device)
        score = self.confidence(logits).to(seen.dtype)
        tau = self.decisions_[stage : stage + 1].to(seen)
        return (_rank(seen, score) - _rank(seen, tau)).abs(), None

    def accepted(self, logits: Tensor, stage: int) -> Tensor:
        """Which answers of one exit are given, (n,) bool; the others are rejected.

        Args:
            logits: (n, C) of inputs that this exit answers.
            stage: the exit, from 0.

        Raises:
            InputError: as in `sureness`.
        """
        self._fitted(stage)
        score = self.confidence(logits).to(self.scores_.dtype)
        return score >= self.decisions_[stage].to(score)

    def _fitted(self, stage: int) -> None:
        if stage >= len(getattr(self, "scores_", ())):
            raise InputError(
                f"there is no window for exit {stage}: fit the rule on the logits of every exit "
                "first"
            )

    def _scores(self, logits_SNC: Tensor) -> Tensor:
        if logits_SNC.ndim != 3 or logits_SNC.shape[1] < 2:
            raise InputError(
                "a window is fitted on logits (exits, inputs, classes) of at least two inputs, "
                f"got {tuple(logits_SNC.shape)}"
            )
        scores = [self.confidence(logits_NC).double() for logits_NC in logits_SNC]
        return torch.stack(scores).sort(dim=1).values

    def to_state(self) -> tuple[dict[str, Any], dict[str, Tensor]]:
        """Plain values and tensors, for a saved policy."""
        plain = {"coverage": self.coverage, "confidence": confidence_name(self.confidence)}
        return plain, {"scores": self.scores_, "decisions": self.decisions_}

    @classmethod
    def from_state(cls, plain: dict[str, Any], tensors: dict[str, Tensor]) -> Self:
        """What `to_state` gave, back."""
        rule = cls(plain["coverage"], confidence_named(plain["confidence"]))
        rule.scores_, rule.decisions_ = tensors["scores"], tensors["decisions"]
        return rule


def _rank(seen_N: Tensor, score_n: Tensor) -> Tensor:
    """(n,) share of held-out scores below each score, from 0 to 1, straight between two of them."""
    last = len(seen_N) - 1
    left = torch.searchsorted(seen_N, score_n)  # how many lie below
    right = torch.searchsorted(seen_N, score_n, right=True)  # how many lie at or below
    low, high = seen_N[(right - 1).clamp(0, last)], seen_N[right.clamp(0, last)]
    step = torch.where(high > low, (score_n - low) / (high - low).clamp_min(1e-300), 0.0)
    between = right - 1 + step
    seen = (left + right - 1) / 2
    return torch.where(right > left, seen, between).clamp(0, last) / last
