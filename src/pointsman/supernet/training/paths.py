"""Which subnets are trained at an update: one drawn uniformly, every option once, the sandwich.

A sampler of paths is a decision by itself: the loop of `train_supernet` runs any of them.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Protocol

import numpy as np

from pointsman.errors import InputError
from pointsman.supernet.space import Genotype, Space
from pointsman.supernet.supernet import Supernet


@dataclass(frozen=True)
class Path:
    """A subnet to train, and the weight of its loss."""

    genotype: Genotype
    weight: float = 1.0


class Paths(Protocol):
    """Draws the subnets of each update, and may learn from how they did."""

    def draw(self, done: float) -> Sequence[Path]:
        """At least one path, when this share of the training is done (0 at first, below 1).

        Their losses are added up for one update, as the gradients of all.
        """
        ...

    def learn(self, supernet: Supernet, paths: Sequence[Path], losses: Sequence[float]) -> None:
        """Called after the update, with the last path in force and the gradients still there."""
        ...


class UniformPaths:
    """One path an update, each option with equal probability.

    Single path one-shot training: Guo et al. 2019, "Single path one-shot neural architecture
    search with uniform sampling", arXiv 1904.00420.

    Args:
        space: of the supernet.
        seed: of the draws.
        accept: draws again until this says yes, such as whether the path is within a budget; a
            limit on what is trained belongs here and not in the loss.
        count: paths an update, whose losses are added up.

    Raises:
        InputError: 10,000 draws in a row were not accepted; when drawn from.
    """

    def __init__(
        self,
        space: Space,
        *,
        seed: int = 0,
        accept: Callable[[Genotype], bool] = lambda genotype: True,
        count: int = 1,
    ) -> None:
        self.space, self.accept, self.count = space, accept, count
        self.rng = np.random.default_rng(seed)

    def draw(self, done: float) -> Sequence[Path]:
        """As many as asked for."""
        return [Path(self._one()) for _ in range(self.count)]

    def _one(self) -> Genotype:
        for _ in range(10_000):
            genotype = self.space.sample(self.rng)
            if self.accept(genotype):
                return genotype
        raise InputError(
            "a path is drawn until it is accepted, 10,000 draws in a row were not: the cheapest "
            "paths may lie beyond the limit"
        )

    def learn(self, supernet: Supernet, paths: Sequence[Path], losses: Sequence[float]) -> None:
        """Nothing: the distribution is fixed."""


class FairPaths:
    """As many paths an update as a choice has options, so that each option is trained once.

    Strict fairness: Chu et al. 2019, "FairNAS", arXiv 1907.01845. Each choice deals its options
    from a shuffled deck of its own; where choices have several numbers of options, an update has
    as many paths as the largest, and the smaller decks are dealt on into the next update, so that
    the counts of two options of a choice never differ by more than one.

    Args:
        space: of the supernet.
        seed: of the shuffles.
    """

    def __init__(self, space: Space, *, seed: int = 0) -> None:
        self.space = space
        self.rng = np.random.default_rng(seed)
        self._decks: list[list[int]] = [[] for _ in space.choices]

    def _deal(self, place: int) -> int:
        if not self._decks[place]:
            self._decks[place] = self.rng.permutation(
                len(self.space.choices[place].options)
            ).tolist()
        return self._decks[place].pop()

    def draw(self, done: float) -> Sequence[Path]:
        """One path for each option of the largest choice."""
        count = max(len(choice.options) for choice in self.space.choices)
        places = range(len(self.space.choices))
        return [Path(self.space.canonical([self._deal(p) for p in places])) for _ in range(count)]

    def learn(self, supernet: Supernet, paths: Sequence[Path], losses: Sequence[float]) -> None:
        """Nothing."""


class SandwichPaths:
    """The largest subnet, the smallest, and random ones between.

    The rule of `learn.sandwich` (Yu & Huang 2019, arXiv 1903.05134) on genotypes. The largest
    comes first, so that `train_supernet(..., distil=True)` teaches the others by its outputs.

    Args:
        space: whose options are in rising order of size, in every choice.
        between: random paths an update.
        seed: of the draws.
    """

    def __init__(self, space: Space, *, between: int = 2, seed: int = 0) -> None:
        self.space, self.between = space, between
        self.rng = np.random.default_rng(seed)
        self.largest = space.canonical([len(choice.options) - 1 for choice in space.choices])
        self.smallest = space.canonical([0] * len(space.choices))

    def draw(self, done: float) -> Sequence[Path]:
        """2 + between paths, the largest first."""
        middle = [self.space.sample(self.rng) for _ in range(self.between)]
        return [Path(genotype) for genotype in (self.largest, self.smallest, *middle)]

    def learn(self, supernet: Supernet, paths: Sequence[Path], losses: Sequence[float]) -> None:
        """Nothing."""


class SortedPaths:
    """One of a chain of nested subnets an update: every choice moves up together.

    Sorted training: Valipour et al. 2023, "SortedNet", arXiv 2309.00255. Member i of the chain
    takes in each choice the option at share i / (length - 1) of its range.

    Args:
        space: whose options are in rising order of size, in every choice.
        length: of the chain; None: the most options that a choice has.
        count: members an update, drawn with replacement.
        seed: of the draws.
    """

    def __init__(
        self, space: Space, *, length: int | None = None, count: int = 1, seed: int = 0
    ) -> None:
        most = length or max(len(choice.options) for choice in space.choices)
        self.rng, self.count = np.random.default_rng(seed), count
        self.chain = [
            space.canonical(
                [round(at / max(most - 1, 1) * (len(c.options) - 1)) for c in space.choices]
            )
            for at in range(most)
        ]

    def draw(self, done: float) -> Sequence[Path]:
        """Members of the chain."""
        return [Path(self.chain[at]) for at in self.rng.integers(len(self.chain), size=self.count)]

    def learn(self, supernet: Supernet, paths: Sequence[Path], losses: Sequence[float]) -> None:
        """Nothing."""
