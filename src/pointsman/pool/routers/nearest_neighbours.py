"""The nearest known queries: a model will do on this one as it did on those like it.

Mean quality of the k nearest training queries by cosine (2505.12601: a tuned kNN matches or beats
learned routers). What is ours:

- A neighbour weighs 1 - distance / distance of the (k+1)-th, so that it makes no difference which
  of several equally distant queries made the list; equal queries are one neighbour.
- The mean is drawn towards the model's own as if `strength` further cells of that mean were there.
- k and strength are chosen on training queries that are left out in turn.
- Above `exact` queries an approximate index answers (hierarchical navigable small worlds,
  1603.09320, by `usearch`), built in canonical order by one thread and kept with the router.

Legend: N queries, U distinct ones, K neighbours, L distinct models, M models, D features.
"""

from typing import Any, Self

import numpy as np
import numpy.typing as npt

from pointsman.errors import InputError
from pointsman.pool.features.features import Features
from pointsman.pool.routers.costs import Costs
from pointsman.pool.routers.design import directions
from pointsman.pool.routers.router import Prediction
from pointsman.pool.routers.state import costs_of, written
from pointsman.pool.routers.table import Array, Indices, Table, folds, tabulate
from pointsman.pool.saving import Arrays, Plain

NEIGHBOURS = (5, 10, 20, 40, 80, 160, 320)
STRENGTHS = (0.3, 1.0, 3.0, 10.0, 30.0, 100.0)
LEFT_OUT = 2_000  # queries that k and strength are chosen on, drawn where there are more
CELLS_AT_ONCE = 1 << 21


class NearestNeighbours:
    """k nearest neighbours by cosine, over an index that grows with the logarithm of the log.

    Args:
        neighbours: the k to choose among.
        exact: compare with every query up to this many; beyond, search the index.
        seed: of the draw of queries that k is chosen on.
    """

    name = "nearest-neighbours"
    title = "Nearest neighbours"

    def __init__(
        self, *, neighbours: tuple[int, ...] = NEIGHBOURS, exact: int = 4_000, seed: int = 0
    ) -> None:
        self.neighbours = tuple(neighbours)
        self.exact = exact
        self.seed = seed

    def fit(self, features: Features, quality: Array, cost: Array) -> Self:
        """As `pointsman.pool.routers.router.Router` has it.

        Raises:
            InputError: no k, or one below 1.
        """
        if not self.neighbours or min(self.neighbours) < 1:
            raise InputError(f"neighbours must be numbers from 1 on, got {self.neighbours}")
        self.centre_ = tabulate(features, quality).features.dense.mean(axis=0)
        unit = directions(features, self.centre_)
        nothing = np.zeros(len(unit), dtype=np.float32)
        table = tabulate(Features(unit, None, nothing), quality)  # equal directions are one row
        self.mean_, self.model_, self.trust_ = table.mean, table.model, table.trust()
        self.deviation_ = np.ascontiguousarray((table.deviation * table.count).T)
        self.count_ = np.ascontiguousarray(table.count.T)
        self.index_ = _build(table.features.dense)
        self.k_, self.strength_ = self._choose(table)
        self.costs_ = Costs().fit(features, cost)
        return self

    def predict(self, features: Features) -> Prediction:
        """As `pointsman.pool.routers.router.Router` has it."""
        unit = directions(features, self.centre_)
        keys, distance = self._search(unit, self.k_ + 1)
        expected = np.empty((len(unit), len(self.mean_)))
        step = max(1, CELLS_AT_ONCE // (keys.shape[1] * len(self.mean_)))
        for start in range(0, len(unit), step):
            at = slice(start, start + step)
            sums, weight = self._sums(keys[at], distance[at], self.k_)
            expected[at] = (sums / (weight + self.strength_)).T
        quality = (self.mean_ + self.trust_ * expected)[:, self.model_]
        return Prediction(quality, self.costs_.predict(features))

    def to_state(self) -> tuple[dict[str, Any], dict[str, npt.NDArray[Any]]]:
        """As `pointsman.pool.saving.Saved` has it."""
        keywords = {"neighbours": list(self.neighbours), "exact": self.exact, "seed": self.seed}
        learned = {
            "centre": self.centre_,
            "mean": self.mean_,
            "trust": self.trust_,
            "model": self.model_,
            "deviation": self.deviation_,
            "count": self.count_,
            "index": np.frombuffer(bytes(self.index_.save()), dtype=np.uint8),
        }
        plain, arrays = written(keywords, learned, self.costs_)
        return {**plain, "k": self.k_, "strength": self.strength_}, arrays

    @classmethod
    def from_state(cls, plain: Plain, arrays: Arrays) -> Self:
        """As `pointsman.pool.saving.Saved` has it."""
        from usearch.index import Index

        self = cls(**plain["keywords"])
        self.k_, self.strength_ = plain["k"], plain["strength"]
        self.centre_, self.mean_ = np.asarray(arrays["centre"]), np.asarray(arrays["mean"])
        self.trust_ = np.asarray(arrays["trust"])
        self.model_, self.count_ = np.asarray(arrays["model"]), np.asarray(arrays["count"])
        self.deviation_ = np.asarray(arrays["deviation"])
        self.index_ = Index.restore(arrays["index"].tobytes())
        self.costs_ = costs_of(plain, arrays)
        return self

    def _search(self, unit: npt.NDArray[np.float32], k: int) -> tuple[Indices, Array]:
        """(N, K) rows of the k nearest and their distances, nearest first; K < k in small sets."""
        known = len(self.index_)
        k = min(k, known)
        exact = known <= self.exact
        if not exact:
            self.index_.expansion_search = max(64, 2 * k)
        # One thread: queries are found the same whatever the batch.
        found = self.index_.search(_at_least_one(unit), k, threads=1, exact=exact)
        keys = np.asarray(found.keys).astype(np.int64).reshape(len(unit), -1)
        distance = np.asarray(found.distances, dtype=np.float64).reshape(len(unit), -1)
        return keys, np.maximum(distance, 0.0)

    def _sums(self, keys: Indices, distance: Array, k: int) -> tuple[Array, Array]:
        """(L, N) weighted sums of deviations, and of cells, over the k nearest."""
        # Where every known query is a neighbour, weights fade towards the opposite direction.
        beyond = np.full((len(keys), 1), 2.0)
        radius = distance[:, k : k + 1] if keys.shape[1] > k else beyond
        near, distance = keys[:, :k], distance[:, :k]
        weight = np.maximum(1 - distance / np.maximum(radius, 1e-6), 0.0)
        weight = np.where(radius > 1e-6, weight, 0.0)
        return (self.deviation_[:, near] * weight).sum(-1), (self.count_[:, near] * weight).sum(-1)

    def _choose(self, table: Table) -> tuple[int, float]:
        """k and strength of least squared error on queries left out; the smoother of equals."""
        rows = np.arange(len(table))
        if len(rows) > LEFT_OUT:
            rows = np.flatnonzero(folds(len(rows), -(-len(rows) // LEFT_OUT), self.seed) == 0)
        ks = sorted({min(k, max(1, len(table) - 2)) for k in self.neighbours})
        keys, distance = self._search(table.features.dense[rows], ks[-1] + 2)
        keys, distance = _others(keys, distance, rows)
        errors = []
        for k in ks if keys.shape[1] else ():
            sums, weight = self._sums(keys, distance, k)
            for strength in STRENGTHS:
                error = table.error((sums / (weight + strength)).T, rows)
                errors.append((error, -k, -strength))
        if not errors:
            return 1, STRENGTHS[0]
        _, k, strength = min(errors)
        return -k, -strength


def _build(unit: npt.NDArray[np.float32]) -> Any:
    from usearch.index import Index

    # Inner product of unit vectors; unlike the cosine it is defined at the centre, too. A row
    # without features gets one that says nothing.
    index = Index(ndim=max(1, unit.shape[1]), metric="ip", dtype="f32")
    index.add(np.arange(len(unit)), _at_least_one(unit), threads=1)
    return index


def _at_least_one(unit: npt.NDArray[np.float32]) -> npt.NDArray[np.float32]:
    return unit if unit.shape[1] else np.zeros((len(unit), 1), dtype=np.float32)


def _others(keys: Indices, distance: Array, rows: Indices) -> tuple[Indices, Array]:
    """The neighbours of each row without itself; without the last one where it was not found."""
    own = keys == rows[:, None]
    own[~own.any(axis=1), -1] = True
    shape = (len(rows), keys.shape[1] - 1)
    return keys[~own].reshape(shape), distance[~own].reshape(shape)
