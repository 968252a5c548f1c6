"""Classifier-free guidance that stops per sample once it no longer changes anything.

Guidance (Ho & Salimans 2022, arXiv 2207.12598) evaluates the network twice a step, with the
condition and without, and goes beyond the first: s eps_c + (1 - s) eps_0. Adaptive guidance
(Castillo et al. 2023, arXiv 2312.12487) looks at the cosine of the two and, once it exceeds a
threshold, evaluates with the condition alone for all steps that are left.

Where we depart from the paper:

- Each sample of a batch decides by itself.
- At very high noise the two agree as well, so that the first crossing would come at the first step.
  The agreement counts only where it has risen since the step before; a first step can be given too.
- The unconditional evaluation is any evaluation: a negative prompt stays one while guidance lasts.

Legend: n samples, m of them guided, K steps, E evaluations.
"""

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from pointsman.errors import InputError
from pointsman.route import Route
from pointsman.steps.policies.plain import at_step
from pointsman.steps.sampling import Computed, Moment, Settled


@dataclass(frozen=True)
class Guided:
    """Guidance at steps fixed beforehand, the condition alone at the others.

    All steps: the ordinary guided sampler. Some: guidance in an interval (Kynkäänniemi et al. 2024,
    arXiv 2404.07724).

    Attributes:
        scale: s; 1 is the condition alone (and pays for both), 0 the unconditional prediction.
        at: bool, the guided steps: (K,) for all samples or (n, K); None: all.
        conditional: which evaluation has the condition.
        unconditional: which has not.
    """

    scale: float
    at: Tensor | None = None
    conditional: int = 0
    unconditional: int = 1

    def choose(self, now: Moment, memory: Any) -> Route:
        """Both evaluations where guided.

        Raises:
            InputError: a mask of another shape.
        """
        guided = torch.ones(len(now.x), dtype=torch.bool, device=now.x.device)
        if self.at is not None:
            guided = at_step(self.at, now)
        return guidance(guided, self.scale, self.conditional, self.unconditional, now.evaluations)

    def settle(self, now: Moment, computed: Computed, memory: Any) -> Settled:
        """What was computed."""
        return Settled(computed.prediction(), None)


@dataclass(frozen=True)
class AdaptiveGuidance:
    """Guidance until conditional and unconditional predictions agree, sample by sample.

    Attributes:
        scale: s.
        threshold: a cosine; above 1 guidance never ends.
        first: the first step whose cosine counts; it and all before it are guided.
        rising: only a cosine above that of the step before counts. Without it a threshold below -1
            ends guidance after `first`.
        conditional: which evaluation has the condition.
        unconditional: which has not, or has a negative one.

    Raises:
        InputError: a threshold that is no number, or a negative step.
    """

    scale: float
    threshold: float
    first: int = 0
    rising: bool = True
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
        guided = torch.ones(len(now.x), dtype=torch.bool, device=now.x.device)
        if memory is not None:
            guided = ~memory[0]
        return guidance(guided, self.scale, self.conditional, self.unconditional, now.evaluations)

    def settle(self, now: Moment, computed: Computed, memory: Any) -> Settled:
        """What was computed; remembers (n,) bool, whose guidance has ended, and the last gaps."""
        if memory is None:
            ended = torch.zeros(len(now.x), dtype=torch.bool, device=now.x.device)
            memory = ended, torch.zeros(len(now.x), dtype=now.x.dtype, device=now.x.device)
        ended, gaps = memory
        if computed.rows is not None:
            guided, without = computed.of(self.unconditional)
            rows, having = computed.of(self.conditional)
            gap = disagreement(having[torch.isin(rows, guided)], without)
            agree = gap < 1 - self.threshold
            if self.rising:
                agree &= gap < gaps.index_select(0, guided)
            agree &= now.step >= self.first
            ended = ended.index_put((guided,), agree)
            gaps = gaps.index_put((guided,), gap.to(gaps.dtype))
        return Settled(computed.prediction(), (ended, gaps))


def disagreement(a: Tensor, b: Tensor) -> Tensor:
    """(m,) one minus the cosine of two predictions (m, ...), each taken as one long vector.

    Taken as half the squared distance of the two at unit length, which keeps its digits where the
    cosine rounds to 1.
    """
    lengths = [part.flatten(1).norm(dim=1, keepdim=True) for part in (a, b)]
    unit = [
        part.flatten(1) / size.clamp(min=1e-30) for part, size in zip((a, b), lengths, strict=True)
    ]
    gap: Tensor = (unit[0] - unit[1]).square().sum(dim=1) / 2
    return gap


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
    # In double precision: s and 1 - s are rounded once, to the type of the predictions.
    weights = torch.zeros(mask.shape, dtype=torch.float64, device=guided_n.device)
    weights[:, conditional] = torch.where(guided_n, float(scale), 1.0).double()
    weights[:, unconditional] = 1.0 - scale
    return Route.from_dense(weights, mask)
