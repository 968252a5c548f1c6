"""What a router learns from, in an order of its own: distinct queries and distinct models.

Rows that are equal in every feature are one query that was tried several times; columns that are
equal in every cell are one model under several names. What is left is sorted by its bytes. Whatever
is fitted on such a table, sums and random draws included, depends to the last bit neither on the
order of a log's rows nor on that of its models, and treats equal models equally.

Legend: N queries of the log, M of its models, U distinct queries, L distinct models, D features.
"""

import hashlib
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from pointsman.errors import InputError
from pointsman.pool.features.features import Features

# Cells: a model with as many known keeps half of what is learned about its deviations.
PRIOR = 20.0

Array = npt.NDArray[np.float64]
Indices = npt.NDArray[np.int64]


@dataclass(frozen=True, eq=False)
class Table:
    """Cells of a log, gathered by distinct query and distinct model.

    Args:
        features: of the U distinct queries for which any cell is known.
        deviation: (U, L) mean of the known cells less the model's mean; 0 where none is known.
        count: (U, L) number of known cells behind it, 0 where none is.
        mean: (L,) of all known cells of each model.
        model: (M,) column of each model of the log.
    """

    features: Features
    deviation: Array
    count: Array
    mean: Array
    model: Indices

    def __len__(self) -> int:
        """Number of distinct queries U."""
        return len(self.features)

    def total(self) -> Array:
        """(L,) number of known cells of each model."""
        total: Array = self.count.sum(axis=0)
        return total

    def trust(self) -> Array:
        """(L,) how much of the deviations learned for a model to keep, by its known cells.

        What is shared among models (a neighbourhood, a factor, a strength) is mostly chosen on
        those with many cells; this holds for one with few, too.
        """
        total = self.total()
        trust: Array = total / (total + PRIOR)
        return trust

    def error(self, expected: Array, rows: npt.ArrayLike | None = None) -> float:
        """Sum over the known cells of the squared error of expected deviations.

        Args:
            expected: (rows, L) deviations.
            rows: of the table, indices or mask; all unless given.
        """
        at = slice(None) if rows is None else np.asarray(rows)
        return float((self.count[at] * (self.deviation[at] - expected) ** 2).sum())


def tabulate(features: Features, cells: npt.ArrayLike, what: str = "quality") -> Table:
    """Gathers the cells of a log by distinct query and distinct model.

    Args:
        features: of N queries.
        cells: (N, M), NaN where unknown; rows without a known cell are left out.
        what: the cells are, for errors.

    Raises:
        InputError: cells of another shape, infinite cells or features, or a model without any
            known cell.
    """
    values = _checked(features, cells, what)
    keep = ~np.isnan(values).all(axis=1)
    if not keep.all():
        features, values = features.take(keep), values[keep]
    keys = _keys(features)
    _, first, group = np.unique(keys, return_index=True, return_inverse=True)
    sums, count = _gathered(values, group.reshape(-1), len(first))
    column, model = _distinct_columns(sums, count)
    sums, count = sums[:, column], count[:, column]
    mean = sums.sum(axis=0) / count.sum(axis=0)
    average = np.divide(sums, count, out=np.tile(mean, (len(first), 1)), where=count > 0)
    return Table(features.take(first), average - mean, count, mean, model)


def folds(n: int, parts: int, seed: int) -> Indices:
    """(n,) a part for each row, parts of equal size; at most one part for each row."""
    order = np.random.default_rng(seed).permutation(n)
    part: Indices = np.empty(n, dtype=np.int64)
    part[order] = np.arange(n) % max(1, min(parts, n))
    return part


def _checked(features: Features, cells: npt.ArrayLike, what: str) -> Array:
    values = np.asarray(cells, dtype=np.float64)
    if values.ndim != 2 or len(values) != len(features) or values.shape[1] == 0:
        raise InputError(
            f"{what} must be (queries, models) with {len(features)} rows, got {values.shape}"
        )
    if np.isinf(values).any():
        raise InputError(f"{what} must be finite, or NaN where unknown, got infinite cells")
    unknown = np.isnan(values).all(axis=0)
    if unknown.any():
        raise InputError(
            f"the model in column {int(unknown.argmax())} has no known {what} in "
            f"{len(values)} training queries: leave it out, or add queries it answered"
        )
    if not np.isfinite(features.dense).all():
        raise InputError("features must be finite, got NaN or infinity: see the encoder")
    return values


def _keys(features: Features) -> npt.NDArray[np.void]:
    """(U,) the bytes of everything that is known of a query."""
    n = len(features)
    dense = np.ascontiguousarray(features.dense + np.float32(0.0))  # -0.0 is 0.0
    parts = [
        dense.view(np.uint8).reshape(n, -1),
        np.ascontiguousarray(features.length).view(np.uint8).reshape(n, -1),
    ]
    if features.task is not None:
        names = np.array([str(name) for name in features.task])
        code = np.unique(names, return_inverse=True)[1].reshape(-1).astype(">i8")
        parts.append(code.view(np.uint8).reshape(n, 8))
    if features.sparse is not None:
        parts.append(_digests(features.sparse))
    key = np.ascontiguousarray(np.concatenate(parts, axis=1))
    return key.view(np.dtype((np.void, key.shape[1]))).reshape(n)


def _digests(sparse: object) -> npt.NDArray[np.uint8]:
    ordered = sparse.tocsr().sorted_indices()  # type: ignore[attr-defined]
    digests = [
        hashlib.blake2b(
            ordered.indices[start:stop].astype(np.int64).tobytes()
            + ordered.data[start:stop].tobytes(),
            digest_size=16,
        ).digest()
        for start, stop in zip(ordered.indptr[:-1], ordered.indptr[1:], strict=True)
    ]
    return np.frombuffer(b"".join(digests), dtype=np.uint8).reshape(len(digests), 16)


def _gathered(values: Array, group: Indices, groups: int) -> tuple[Array, Array]:
    """(U, M) sum and number of the known cells; equal sums whatever the order of the rows."""
    sums, count = np.zeros((groups, values.shape[1])), np.zeros((groups, values.shape[1]))
    for column in range(values.shape[1]):
        known = np.flatnonzero(~np.isnan(values[:, column]))
        order = known[np.lexsort((values[known, column], group[known]))]
        sums[:, column] = np.bincount(group[order], values[order, column], minlength=groups)
        count[:, column] = np.bincount(group[order], minlength=groups)
    return sums, count


def _distinct_columns(sums: Array, count: Array) -> tuple[Indices, Indices]:
    both = np.ascontiguousarray(np.concatenate([sums, count]).T + 0.0)
    keys = both.view(np.dtype((np.void, both.shape[1] * both.itemsize))).reshape(-1)
    _, first, inverse = np.unique(keys, return_index=True, return_inverse=True)
    return first.astype(np.int64), inverse.reshape(-1).astype(np.int64)
