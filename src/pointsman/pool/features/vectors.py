"""Embeddings that the log brings along. Legend: N queries, D features."""

from collections.abc import Sequence
from typing import Any, Self

import numpy as np
import numpy.typing as npt

from pointsman.errors import InputError
from pointsman.pool.features.features import Dense, Features
from pointsman.pool.log import Log
from pointsman.pool.saving import Arrays, Plain


class VectorEncoder:
    """Takes the vectors of a log as they are; a request has to bring its own.

    Nothing is learned but their length D.
    """

    def fit(self, log: Log) -> Self:
        """Learn the length of a vector.

        Raises:
            InputError: the log has no vectors.
        """
        self.width_ = int(_vectors(log).shape[1])
        return self

    def transform(self, log: Log) -> Features:
        """The vectors of every query of a log.

        Raises:
            InputError: the log has none, of another length, or with values that are not finite.
        """
        return self.with_vectors(_vectors(log), log.queries, log.groups.get("task"))

    def with_vectors(
        self,
        vectors: npt.ArrayLike,
        queries: Sequence[str] | npt.NDArray[np.object_],
        tasks: Sequence[str] | npt.NDArray[np.object_] | None = None,
    ) -> Features:
        """Features of queries that come with (N, D) vectors.

        Raises:
            InputError: vectors of another length, or values that are not finite.
        """
        dense: Dense = np.asarray(vectors, dtype=np.float32)
        if dense.shape != (len(queries), self.width_):
            raise InputError(
                f"vectors must be (queries, {self.width_}) = ({len(queries)}, {self.width_}), "
                f"got {dense.shape}"
            )
        if not np.isfinite(dense).all():
            row = int((~np.isfinite(dense)).any(axis=1).argmax())
            raise InputError(f"vectors must be finite, query {row} has other values: repair them")
        return features_of(dense, queries, tasks)

    def encode(
        self,
        queries: Sequence[str] | npt.NDArray[np.object_],
        tasks: Sequence[str] | npt.NDArray[np.object_] | None = None,
    ) -> Features:
        """Not possible from text.

        Raises:
            InputError: always.
        """
        raise InputError(
            "this policy was fitted on vectors that came with the log, so each request has to "
            f"bring its own of length {self.width_}: send it along, or fit on text"
        )

    def to_state(self) -> tuple[dict[str, Any], dict[str, npt.NDArray[Any]]]:
        """See `Saved`."""
        return {"width": self.width_}, {}

    @classmethod
    def from_state(cls, plain: Plain, arrays: Arrays) -> Self:
        """See `Saved`."""
        self = cls()
        self.width_ = int(plain["width"])
        return self


def features_of(
    dense: Dense,
    queries: Sequence[str] | npt.NDArray[np.object_],
    tasks: Sequence[str] | npt.NDArray[np.object_] | None,
) -> Features:
    """Features that are dense only."""
    return Features(
        dense=dense,
        sparse=None,
        length=np.array([len(query) for query in queries], dtype=np.float32),
        task=None if tasks is None else np.array(tasks, dtype=object),
    )


def _vectors(log: Log) -> Dense:
    if log.vectors is None:
        raise InputError(
            f"{log.name} brings no vectors along: name a column that holds them, or encode the text"
        )
    return log.vectors
