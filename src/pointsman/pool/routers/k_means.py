"""Clusters of queries, and what each model scored in each: Avengers' router.

Embedded queries are clustered by direction, and a query is given what its cluster's mean says
(the Avengers, 2505.19797: k-means and a table match trained routers). What is ours: means of small
clusters are drawn towards the model's own, and the number of clusters and how far they are drawn
are chosen by leaving training queries out in turn; the authors fix 64 clusters.

Legend: N queries, U distinct ones, M models, D features, C clusters.
"""

from typing import Any, Self

import numpy as np
import numpy.typing as npt

from pointsman.errors import InputError
from pointsman.pool.features.features import Features
from pointsman.pool.routers.arithmetic import dot
from pointsman.pool.routers.costs import Costs
from pointsman.pool.routers.design import directions
from pointsman.pool.routers.groups import Groups
from pointsman.pool.routers.router import Prediction
from pointsman.pool.routers.state import costs_of, written
from pointsman.pool.routers.table import Array, Indices, tabulate
from pointsman.pool.saving import Arrays, Plain


class KMeans:
    """k-means clusters and a shrunken table over them.

    Args:
        clusters: the numbers to choose among.
        seed: of the first centres.
    """

    name = "k-means"
    title = "k-means clusters"

    def __init__(
        self, *, clusters: tuple[int, ...] = (4, 8, 16, 32, 64, 128), seed: int = 0
    ) -> None:
        self.clusters = tuple(clusters)
        self.seed = seed

    def fit(self, features: Features, quality: Array, cost: Array) -> Self:
        """As `pointsman.pool.routers.router.Router` has it.

        Raises:
            InputError: no number of clusters, or one below 1.
        """
        if not self.clusters or min(self.clusters) < 1:
            raise InputError(f"clusters must be numbers from 1 on, got {self.clusters}")
        table = tabulate(features, quality)
        self.centre_ = table.features.dense.mean(axis=0)
        unit = directions(table.features, self.centre_)
        found = []
        for count in sorted({min(count, len(unit)) for count in self.clusters}):
            means = _means(unit, count, self.seed)
            groups = Groups(table, _nearest(unit, means), count)
            strength, error = groups.best_strength()
            found.append((error, count, means, groups.effect(strength)))
        _, _, self.means_, effect = min(found, key=lambda each: each[:2])
        self.table_ = (table.mean + table.trust() * effect)[:, table.model]
        self.costs_ = Costs().fit(features, cost)
        return self

    def predict(self, features: Features) -> Prediction:
        """As `pointsman.pool.routers.router.Router` has it."""
        row = _nearest(directions(features, self.centre_), self.means_)
        return Prediction(self.table_[row], self.costs_.predict(features))

    def to_state(self) -> tuple[dict[str, Any], dict[str, npt.NDArray[Any]]]:
        """As `pointsman.pool.saving.Saved` has it."""
        keywords = {"clusters": list(self.clusters), "seed": self.seed}
        learned = {"centre": self.centre_, "means": self.means_, "table": self.table_}
        return written(keywords, learned, self.costs_)

    @classmethod
    def from_state(cls, plain: Plain, arrays: Arrays) -> Self:
        """As `pointsman.pool.saving.Saved` has it."""
        self = cls(**plain["keywords"])
        self.centre_, self.means_ = np.asarray(arrays["centre"]), np.asarray(arrays["means"])
        self.table_ = np.asarray(arrays["table"])
        self.costs_ = costs_of(plain, arrays)
        return self


def _means(unit: npt.NDArray[np.float32], count: int, seed: int) -> Array:
    """(C, D) centres of the clusters."""
    from sklearn.cluster import KMeans as Clustering
    from threadpoolctl import threadpool_limits  # type: ignore[import-untyped]

    if unit.shape[1] == 0 or len(np.unique(unit, axis=0)) <= count:
        return np.unique(unit, axis=0).astype(np.float64)
    with threadpool_limits(1):  # threads add up their parts in any order
        clustering = Clustering(count, n_init=1, max_iter=50, random_state=seed).fit(unit)
    means: Array = clustering.cluster_centers_.astype(np.float64)
    return means


def _nearest(unit: npt.NDArray[np.float32], means: Array) -> Indices:
    """(N,) the nearest centre, the first of equally near ones."""
    half_square = (means * means).sum(axis=1) / 2
    nearest: Indices = (half_square - dot(unit.astype(np.float64), means)).argmin(axis=1)
    return nearest
