"""What a router may look at before any model is called.

Legend: N queries, D dense features, V sparse ones.
"""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any, Protocol, Self

import numpy as np
import numpy.typing as npt

from pointsman.errors import InputError
from pointsman.pool.log import Log

Dense = npt.NDArray[np.float32]


@dataclass(frozen=True, eq=False)
class Features:
    """Queries as numbers.

    Args:
        dense: (N, D) float32, such as embeddings or reduced TF-IDF.
        sparse: (N, V) scipy CSR matrix in float32, such as TF-IDF, or None where there is none.
        length: (N,) characters of each query.
        task: (N,) texts naming the task of each query, "" where it is not known; None: none known.
    """

    dense: Dense
    sparse: Any
    length: npt.NDArray[np.float32]
    task: npt.NDArray[np.object_] | None = None

    def __post_init__(self) -> None:
        if self.dense.ndim != 2:
            raise InputError(f"features must be (queries, features), got {self.dense.shape}")
        n = len(self.dense)
        rows = {"length": len(self.length)}
        if self.sparse is not None:
            rows["sparse"] = self.sparse.shape[0]
        if self.task is not None:
            rows["task"] = len(self.task)
        for name, found in rows.items():
            if found != n:
                raise InputError(f"{name} must have one row for each of {n} queries, got {found}")

    def __len__(self) -> int:
        """Number of queries N."""
        return len(self.dense)

    def take(self, rows: npt.ArrayLike) -> "Features":
        """Some queries only: indices or a mask."""
        at = np.asarray(rows)
        return replace(
            self,
            dense=self.dense[at],
            sparse=None if self.sparse is None else self.sparse[at],
            length=self.length[at],
            task=None if self.task is None else self.task[at],
        )


class Encoder(Protocol):
    """Turns queries into features; learned on the training part of a log only.

    An encoder keeps its keywords in the constructor and what it learned in names that end in `_`.
    """

    def fit(self, log: Log) -> Self:
        """Learn the vocabulary, the weights and the reduction from the queries of a log."""
        ...

    def transform(self, log: Log) -> Features:
        """Features of every query of a log."""
        ...

    def encode(self, queries: Sequence[str], tasks: Sequence[str] | None = None) -> Features:
        """Features of a few queries, as they come to a server: fast for a single one."""
        ...
