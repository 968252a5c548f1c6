"""Classifier-free guidance that stops per sample once it no longer changes anything.

Guidance (Ho & Salimans 2022, arXiv 2207.12598) evaluates the network twice a step, with the
condition and without, and goes beyond the first: s eps_c + (1 - s) eps_0. Adaptive guidance
(Castillo et al. 2023, arXiv 2312.12487) looks at the cosine of the two and, once it exceeds a
threshold, evaluates with the condition alone for all steps that are left.

Where we depart from the paper:

- Each sample of a batch decides by itself.
- At very high noise the two agree as well, so that the first crossing would come at the first step.
  Crossings count from a step on that is given.
- The unconditional evaluation is any evaluation: a negative prompt stays one while guidance lasts.

Legend: n samples, m of them guided, K steps, E evaluations.
"""

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional

from pointsman.errors import InputError
from pointsman.route import Route
from pointsman.steps.sampling import Computed, Moment, Settled


@dataclass(frozen=True)
class Guided:
    """Guidance at some steps, the condition alone at the others.

    All steps: the ordinary guided sampler. Some: guidance in an interval (Kynkäänniemi et al. 2024,
    arXiv 2404.07724).

    Attributes:
        scale: s; 1 is the condition alone (and pays for both), 0 the unconditional prediction.
        first: guided from this step on.
        last: up to the step before this one; None: all that are left.
        conditional: which evaluation has the condition.
        unconditional: which has not.
    """

    scale: float
    first: int = 0
    last: int | None = None
    conditional: int = 0
    unconditional: int = 1

    def choose(self, now: Moment, memory: Any) -> Route:
        """Both evaluations inside the interval."""
        inside = self.first <= now.step < (now.steps if self.last is None else self.last)
        guided = torch.full((len(now.x),), inside, device=now.x.device)
        return guidance(guided, self.scale, self.conditional, self.unconditional, now.evaluations)

    def settle(self, now: Moment, computed: Computed, memory: Any) -> Settled:
        """What was computed."""
        return Settled(computed.prediction(), None)


@dataclass(frozen=True)
class AdaptiveGuidance:
    """Guidance until conditional and unconditional predictions agree, sample by sample.

    Attributes:
        scale: s.
        threshold: a cosine; above 1 guidance never ends, below -1 it ends at `first`.
        first: the first step whose cosine counts; all before it are guided.
        conditional: which evaluation has the condition.
        unconditional: which has not, or has a negative one.

    Raises:
        InputError: a threshold that is no number, or a negative step.
    """

    scale: float
    threshold: float
    first: int = 0
    conditional: int = 0
    unconditional: int = 1

    def __post_init__(self) -> None:
        if self.threshold != self.threshold or self.first < 0:
            raise InputError(
                "adaptive guidance takes a cosine and a step of at least 0, got "
                f"threshold={self.threshold} and first={self.first}"
            )

    def choose(self, now: Moment, memory: Any) -> Route:
        """Both evaluations for samples whose predictions have not agreed yet."""
        guided = now.x.new_ones(len(now.x), dtype=torch.bool) if memory is None else ~memory
        return guidance(guided, self.scale, self.conditional, self.unconditional, now.evaluations)

    def settle(self, now: Moment, computed: Computed, memory: Any) -> Settled:
        """What was computed; remembers (n,) bool, whose guidance has ended."""
        ended = now.x.new_zeros(len(now.x), dtype=torch.bool) if memory is None else memory
        if now.step >= self.first and computed.rows is not None:
            guided, without = computed.of(self.unconditional)
            rows, having = computed.of(self.conditional)
            both = torch.isin(rows, guided)  # the conditional rows of guided samples, in order
            agree = agreement(having[both], without) > self.threshold
            ended = ended.index_put((guided,), agree)
        return Settled(computed.prediction(), ended)


def agreement(a: Tensor, b: Tensor) -> Tensor:
    """(m,) cosine of two predictions (m, ...), each taken as one long vector."""
    return functional.cosine_similarity(a.flatten(1), b.flatten(1), dim=1)


def guidance(
    guided_n: Tensor, scale: float, conditional: int, unconditional: int, evaluations: int
) -> Route:
    """The route of guidance: weights s and 1 - s for guided samples, the condition for others.

    Args:
        guided_n: (n,) bool.
        scale: s.
        conditional: which evaluation has the condition.
        unconditional: which has not.
        evaluations: E.

    Raises:
        InputError: evaluations that there are not, or one for both.
    """
    named = {conditional, unconditional}
    if len(named) < 2 or not named <= set(range(evaluations)):
        raise InputError(
            f"guidance needs two different evaluations of 0 to {evaluations - 1}, got "
            f"conditional={conditional} and unconditional={unconditional}"
        )
    mask = torch.zeros(len(guided_n), evaluations, dtype=torch.bool, device=guided_n.device)
    mask[:, conditional], mask[:, unconditional] = True, guided_n
    weights = torch.zeros(mask.shape, device=guided_n.device)
    weights[:, conditional] = torch.where(guided_n, float(scale), 1.0)
    weights[:, unconditional] = 1.0 - scale
    return Route.from_dense(weights, mask)
