"""Which set of weights a path trains: the one it does best with, all sets equally busy.

Javan et al. 2023, "Balanced mixture of supernets for learning the CNN pooling architecture",
arXiv 2306.11982. A table keeps, for every path and every set of weights, a moving average of the
accuracy on held-out data. A set is drawn by a softmax over the path's row, sharper as the training
goes on, after the probabilities were balanced so that every set gets the same share of the paths:
otherwise one set takes them all.

Legend: P paths, M sets of weights.
"""

from collections.abc import Callable, Sequence

import numpy as np
import torch
from torch import Tensor

from pointsman.errors import InputError
from pointsman.select.balanced import sinkhorn_plan
from pointsman.supernet.space import Genotype, Space
from pointsman.supernet.supernet import Supernet
from pointsman.supernet.training.paths import Path
from pointsman.supernet.training.weight_sets import WEIGHTS


class BalancedPaths:
    """One uniform path an update, with a set of weights drawn for it.

    Where we depart: the paper recomputes the factors of the balance once an epoch and reuses them
    in between; here the whole (small) table is balanced at each draw.

    Args:
        space: of `several_weights`, whose first choice is the set. The rest is enumerated.
        quality: of the subnet in force on held-out data, in [0, 1]; called once an update.
        sharpness: what the averages are multiplied by at the end, from 1 at the start.
        memory: of the moving average.
        balanced: False: the plain softmax, which may collapse.
        seed: of the draws.

    Raises:
        InputError: a space without a choice of weights.
    """

    def __init__(
        self,
        space: Space,
        quality: Callable[[Supernet], float],
        *,
        sharpness: float = 100.0,
        memory: float = 0.9,
        balanced: bool = True,
        seed: int = 0,
    ) -> None:
        if space.names[0] != WEIGHTS:
            raise InputError(
                f"the first choice is the set of weights, {WEIGHTS!r}, got {list(space.names)}: "
                "make the supernet by several_weights"
            )
        self.quality, self.sharpness, self.memory = quality, sharpness, memory
        self.balanced = balanced
        self.rng = np.random.default_rng(seed)
        whole = list(space.enumerate())
        self.paths = [genotype[1:] for genotype in whole if genotype[0] == 0]
        self.quality_PM = torch.ones(len(self.paths), len(space.choices[0].options))
        self.counts_PM = torch.zeros_like(self.quality_PM)
        self._drawn = (0, 0)

    def probabilities(self, done: float) -> Tensor:
        """(P, M) of the sets for each path, when this share of the training is done."""
        scores_PM = self.quality_PM * (1 + done * (self.sharpness - 1))
        if self.balanced:
            return sinkhorn_plan(scores_PM, iterations=20).exp()
        return scores_PM.softmax(dim=1)

    def draw(self, done: float) -> Sequence[Path]:
        """One path, led by its set."""
        at = int(self.rng.integers(len(self.paths)))
        row = self.probabilities(done)[at].double().numpy()
        taken = int(self.rng.choice(len(row), p=row / row.sum()))
        self._drawn = (at, taken)
        self.counts_PM[at, taken] += 1
        return [Path((taken, *self.paths[at]))]

    def learn(self, supernet: Supernet, paths: Sequence[Path], losses: Sequence[float]) -> None:
        """Judge the path that was trained, with its set."""
        known = self.quality_PM[self._drawn]
        fresh = self.quality(supernet)
        self.quality_PM[self._drawn] = self.memory * known + (1 - self.memory) * fresh

    def best_sets(self) -> dict[Genotype, int]:
        """For every path the set of weights with the best average."""
        best = self.quality_PM.argmax(dim=1).tolist()
        return dict(zip(self.paths, best, strict=True))
