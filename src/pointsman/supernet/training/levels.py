"""Sampling of paths by level of complexity, with probability that shifts to where it is needed.

Zhang et al. 2023, "ShiftNAS: Improving one-shot NAS via probability shift", arXiv 2307.08300:
uniform options concentrate on subnets of middling cost. So the range of costs is cut into levels, a
level is drawn, and then a path of that level; the levels' probabilities move to those that still
improve.

Legend: C levels.
"""

from collections.abc import Callable, Sequence

import numpy as np

from pointsman.errors import InputError
from pointsman.supernet.space import Genotype, Space
from pointsman.supernet.supernet import Supernet
from pointsman.supernet.training.importance import mixed_with_uniform
from pointsman.supernet.training.paths import Path

ENUMERATED = 20_000  # spaces up to this many genotypes are sorted into their levels once
STEPS = 200  # towards a level, from a random genotype, in larger spaces
SLOW, FAST = 0.02, 0.1  # rates of the two moving averages of a level's loss


class LevelPaths:
    """One path an update: a level of cost by its probability, then a genotype of that level.

    A level's variation is how much its loss still falls: the difference between a slow and a fast
    moving average, where it is above 0, relative to the slow one. Losses of small subnets are
    higher for good, so it is the change that counts. Every `period` updates the probabilities
    become floor / C + (1 - floor) variation / total.

    Reconstructed: the paper's text was not at hand beyond its abstract and a summary, and its code
    is not public. Levels, the draw of a level and the shift towards levels with more variation are
    certain; the estimate of the variation is ours. The paper's learned generator of paths is a
    constrained draw here: uniform over the level where the space can be enumerated, else a random
    walk from a random genotype towards the level.

    Args:
        space: of the supernet.
        cost: of a genotype, counted.
        levels: C, of equal width in cost. A level that no genotype is found in is left out.
        shift: whether the probabilities move; else all levels stay equally likely.
        floor: share of the probability that is always spread evenly.
        period: updates between two revisions.
        seed: of the draws.

    Raises:
        InputError: fewer than one level, or a floor outside of [0, 1].
    """

    def __init__(
        self,
        space: Space,
        cost: Callable[[Genotype], float],
        *,
        levels: int = 5,
        shift: bool = True,
        floor: float = 0.3,
        period: int = 50,
        seed: int = 0,
    ) -> None:
        if levels < 1 or not 0 <= floor <= 1 or period < 1:
            raise InputError(
                "levels and period are at least 1 and floor is in [0, 1], got "
                f"levels={levels}, period={period}, floor={floor}"
            )
        self.space, self.cost, self.shift = space, cost, shift
        self.floor, self.period = floor, period
        self.rng = np.random.default_rng(seed)
        self._members: list[Genotype] = []  # by rising cost, where the space is enumerated
        if space.count() <= ENUMERATED:
            self._members = sorted(space.enumerate(), key=lambda each: (cost(each), each))
            self._costs = np.array([cost(each) for each in self._members])
            low, high = float(self._costs[0]), float(self._costs[-1])
        else:
            low, high = self._descend(1), self._descend(-1)
        self.edges = np.linspace(low, high, levels + 1)
        self.levels = [level for level in range(levels) if self.member(level) is not None]
        self.probabilities = np.full(len(self.levels), 1 / len(self.levels))
        self._slow = np.full(len(self.levels), np.nan)
        self._fast = np.full(len(self.levels), np.nan)
        self._drawn, self._updates = 0, 0

    def _descend(self, sign: int) -> float:
        """The lowest (1) or highest (-1) cost that changes of single choices lead to."""
        here = self.space.sample(self.rng)
        while True:
            best = min(self.space.neighbours(here), key=lambda other: sign * self.cost(other))
            if sign * self.cost(best) >= sign * self.cost(here):
                return self.cost(here)
            here = best

    def level_of(self, cost: float) -> int:
        """The level of a cost, from 0 to C - 1."""
        inner = self.edges[1:-1]
        return int(np.searchsorted(inner, cost, "right"))

    def member(self, level: int) -> Genotype | None:
        """A genotype of a level, or None if there is none, or none was found."""
        if self._members:
            ends = np.searchsorted(self._costs, self.edges[1:-1], "left")
            first, last = np.concatenate([[0], ends, [len(self._members)]])[level : level + 2]
            return self._members[self.rng.integers(first, last)] if first < last else None
        target = self.rng.uniform(self.edges[level], self.edges[level + 1])
        here = self.space.sample(self.rng)
        for _ in range(STEPS):
            if self.level_of(self.cost(here)) == level:
                return here
            other = self.space.mutate(here, self.rng)
            if abs(self.cost(other) - target) <= abs(self.cost(here) - target):
                here = other
        return None

    def draw(self, done: float) -> Sequence[Path]:
        """One path."""
        if self.shift and self._updates and self._updates % self.period == 0:
            self._revise()
        self._updates += 1
        while True:
            self._drawn = int(self.rng.choice(len(self.levels), p=self.probabilities))
            genotype = self.member(self.levels[self._drawn])
            if genotype is not None:  # a walk may miss a level that others have reached
                return [Path(genotype)]

    def _revise(self) -> None:
        variation = np.nan_to_num(np.maximum(self._slow - self._fast, 0) / self._slow)
        self.probabilities = mixed_with_uniform(variation, 1 - self.floor)

    def learn(self, supernet: Supernet, paths: Sequence[Path], losses: Sequence[float]) -> None:
        """Take account of the level's loss."""
        at, loss = self._drawn, losses[0]
        if np.isnan(self._slow[at]):
            self._slow[at] = self._fast[at] = loss
        self._slow[at] += SLOW * (loss - self._slow[at])
        self._fast[at] += FAST * (loss - self._fast[at])
