"""What is searched: a space, a quality that is expensive to learn, and a cost that is counted."""

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass

from pointsman.supernet.space import Genotype, Space


@dataclass(frozen=True)
class Evaluation:
    """What is known of one genotype.

    Args:
        genotype: canonical.
        quality: higher is better; NaN exactly if it failed.
        cost: in the unit of its problem.
        failure: why there is no quality, such as the error of a forward that broke; "" if there is.
        curve: quality after each step of a partial evaluation, where the evaluation reports it.
    """

    genotype: Genotype
    quality: float
    cost: float
    failure: str = ""
    curve: tuple[float, ...] = ()

    @property
    def failed(self) -> bool:
        """Whether there is no quality."""
        return math.isnan(self.quality)


@dataclass(frozen=True)
class Problem:
    """Find the genotypes with the best quality at each cost.

    Args:
        space: of genotypes.
        quality: of a genotype, expensive (it trains or evaluates a network). May raise: the
            genotype has failed then, and the search goes on.
        cost: of a genotype, counted or looked up, not predicted: engines call it as often as they
            like. The same number each time.
        unit: of the cost, such as "MFLOPs".
        budget: genotypes that cost more are never evaluated; None: no limit.
    """

    space: Space
    quality: Callable[[Genotype], float]
    cost: Callable[[Genotype], float]
    unit: str = "MFLOPs"
    budget: float | None = None

    def affordable(self, genotype: Genotype) -> bool:
        """Whether a genotype is within the budget."""
        return self.budget is None or self.cost(genotype) <= self.budget


def front(evaluations: Sequence[Evaluation]) -> list[Evaluation]:
    """The evaluations that none beats in both cost and quality, by rising cost, one of equals."""
    best = -math.inf
    found = []
    for each in sorted(
        (e for e in evaluations if not e.failed), key=lambda e: (e.cost, -e.quality, e.genotype)
    ):
        if each.quality > best:
            best = each.quality
            found.append(each)
    return found
