"""An evaluation log: queries, and what each model of a pool scored and cost on them.

Missing cells are NaN and stay so: a model that was not asked is neither right nor wrong, and it is
not free.

Legend: N queries, M models.
"""

import unicodedata
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np
import numpy.typing as npt

from pointsman.errors import InputError

Array = npt.NDArray[np.float64]
Texts = npt.NDArray[np.object_]


@dataclass(frozen=True, eq=False)
class Log:
    """Queries with the quality and the cost of each model's answer.

    Args:
        queries: (N,) texts.
        models: the M names, all different.
        quality: (N, M) in [0, 1], higher is better; NaN where the model was not scored.
        cost: (N, M), not negative, what the call spent; NaN where it is not known.
        unit: of every cost, such as "US$".
        latency: (N, M) seconds, NaN where not known, or None.
        signals: name to (N, M): what is known once a model has answered, such as a confidence, a
            margin, the agreement of several samples or the score of a verifier; higher is surer,
            NaN where not known.
        signal_cost: name to (N, M) in `unit`: what obtaining the signal spends beside the call,
            such as that of a judge; a signal without an entry is free.
        groups: name to (N,) texts: whom or what a query belongs to, such as "task" or "user".
        vectors: (N, D) embeddings that the log brings along, or None.
        name: of the log.
        note: how it was read, in words.

    Raises:
        InputError: shapes that do not match, equal model names, a quality outside [0, 1], a cost
            that is negative or infinite, or a model without a single scored query.
    """

    queries: Texts
    models: tuple[str, ...]
    quality: Array
    cost: Array
    unit: str = "US$"
    latency: Array | None = None
    signals: Mapping[str, Array] = field(default_factory=dict)
    signal_cost: Mapping[str, Array] = field(default_factory=dict)
    groups: Mapping[str, Texts] = field(default_factory=dict)
    vectors: npt.NDArray[np.float32] | None = None
    name: str = "log"
    note: str = ""

    def __post_init__(self) -> None:
        object.__setattr__(self, "queries", _texts(self.queries))
        object.__setattr__(self, "models", tuple(self.models))
        shape = (len(self.queries), len(self.models))
        if min(shape) == 0:
            raise InputError(f"a log needs at least one query and one model, got {shape}")
        if len(set(self.models)) < len(self.models):
            raise InputError(f"models must have different names, got {', '.join(self.models)}")
        for name in ("quality", "cost", "latency"):
            if getattr(self, name) is not None:
                object.__setattr__(self, name, _cells(getattr(self, name), name, shape))
        for kind in ("signals", "signal_cost"):
            given = getattr(self, kind)
            object.__setattr__(self, kind, {n: _cells(v, n, shape) for n, v in given.items()})
        self._check_values()
        for name, column in self.groups.items():
            if len(column) != shape[0]:
                raise InputError(f"group {name!r} must be ({shape[0]},), got ({len(column)},)")
        if self.vectors is not None and (self.vectors.ndim != 2 or len(self.vectors) != shape[0]):
            raise InputError(f"vectors must be ({shape[0]}, D), got {self.vectors.shape}")

    def __len__(self) -> int:
        """Number of queries N."""
        return len(self.queries)

    def take(self, rows: npt.ArrayLike) -> "Log":
        """Some queries only: indices or a mask over the N queries."""
        at = np.asarray(rows)
        return replace(
            self,
            queries=self.queries[at],
            quality=self.quality[at],
            cost=self.cost[at],
            latency=None if self.latency is None else self.latency[at],
            signals={name: cells[at] for name, cells in self.signals.items()},
            signal_cost={name: cells[at] for name, cells in self.signal_cost.items()},
            groups={name: column[at] for name, column in self.groups.items()},
            vectors=None if self.vectors is None else self.vectors[at],
        )

    def model(self, name: str) -> int:
        """Column of a model.

        Raises:
            InputError: there is no such model.
        """
        if name not in self.models:
            raise InputError(f"there is no model {name!r}: the log has {', '.join(self.models)}")
        return self.models.index(name)

    def complete(self) -> npt.NDArray[np.bool_]:
        """(N,) whether quality and cost of every model are known: there a policy can be tried."""
        unknown = np.isnan(self.quality) | np.isnan(self.cost)
        known: npt.NDArray[np.bool_] = np.logical_not(unknown.any(axis=1))
        return known

    def mean_cost(self) -> Array:
        """(M,) mean of the known costs of each model; infinity where none is known."""
        known = ~np.isnan(self.cost)
        total = np.where(known, self.cost, 0.0).sum(axis=0)
        mean: Array = np.divide(
            total, known.sum(axis=0), out=np.full(len(self.models), np.inf), where=known.any(axis=0)
        )
        return mean

    def mean_quality(self) -> Array:
        """(M,) mean of the known qualities of each model."""
        mean: Array = np.nanmean(self.quality, axis=0)
        return mean

    def identity(self) -> npt.NDArray[np.int64]:
        """(N,) a number for each query: equal exactly where texts are, but for case and spaces.

        Numbers run from 0 in order of appearance. Equal queries must never stand in two parts.
        """
        seen: dict[str, int] = {}
        return np.array(
            [seen.setdefault(_normal(query), len(seen)) for query in self.queries], dtype=np.int64
        )

    def _check_values(self) -> None:
        wrong = (self.quality < 0) | (self.quality > 1) | np.isinf(self.quality)
        if wrong.any():
            row, column = (int(at) for at in np.argwhere(wrong)[0])
            raise InputError(
                f"qualities must lie in [0, 1], {self.models[column]!r} has "
                f"{self.quality[row, column]:g} in query {row} ({int(wrong.sum())} such values): "
                "rescale them"
            )
        wrong = (self.cost < 0) | np.isinf(self.cost)
        if wrong.any():
            row, column = (int(at) for at in np.argwhere(wrong)[0])
            raise InputError(
                f"costs must be finite and not negative, {self.models[column]!r} has "
                f"{self.cost[row, column]:g} in query {row} ({int(wrong.sum())} such values)"
            )
        unscored = np.isnan(self.quality).all(axis=0)
        if unscored.any():
            raise InputError(
                f"model {self.models[int(unscored.argmax())]!r} has no quality in any query: "
                "leave its column out"
            )


def _texts(values: Any) -> Texts:
    column = np.empty(len(values), dtype=object)
    column[:] = [str(value) for value in values]
    return column


def _normal(query: str) -> str:
    return " ".join(unicodedata.normalize("NFKC", query).casefold().split())


def _cells(values: Any, name: str, shape: tuple[int, int]) -> Array:
    cells = np.array(values, dtype=np.float64)
    if cells.shape != shape:
        raise InputError(f"{name} must be (queries, models) = {shape}, got {cells.shape}")
    cells.setflags(write=False)
    return cells
