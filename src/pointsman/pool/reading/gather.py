"""The rows of a log file as checked columns, in pieces, and of very long files a sample of queries.

The sample is uniform over the different queries and keeps all rows of each: those whose hashes are
smallest (a bottom-k sketch), so one pass in bounded memory is enough, and the order of the rows
does not matter.

Legend: n rows of the file that are kept.
"""

from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from pointsman.pool.reading import names
from pointsman.pool.reading.files import LogFile
from pointsman.pool.reading.layout import Layout
from pointsman.pool.reading.values import Array, checked, texts, vectors

Hashes = npt.NDArray[np.uint64]


@dataclass
class Gathered:
    """Columns of the rows that are kept, and what was left out.

    Args:
        columns: column name to (n,): texts as objects, numbers as float64.
        vectors: (n, D) float32, or None.
        rows: of the whole file.
        queries: different ones in the whole file.
        unasked: rows left out because they have no query, and
        unnamed: because they have no model.
        sampled: whether some queries were left out for their number.
    """

    columns: dict[str, npt.NDArray[Any]]
    vectors: npt.NDArray[np.float32] | None
    rows: int
    queries: int
    unasked: int
    unnamed: int
    sampled: bool

    def __len__(self) -> int:
        """Rows that are kept."""
        return len(next(iter(self.columns.values())))


@dataclass
class _Sketch:
    """The smallest of all hashes seen, at most `size` different ones."""

    size: int
    smallest: Hashes = field(default_factory=lambda: np.empty(0, dtype=np.uint64))
    seen: list[Hashes] = field(default_factory=list)

    def kept(self, hashes: Hashes) -> npt.NDArray[np.bool_]:
        """Which rows may still be among the smallest."""
        new = np.unique(hashes)
        self.seen.append(new)
        self.smallest = np.union1d(self.smallest, new)[: self.size]
        return self.within(hashes)

    def within(self, hashes: Hashes) -> npt.NDArray[np.bool_]:
        if len(self.smallest) < self.size:
            return np.ones(len(hashes), dtype=np.bool_)
        within: npt.NDArray[np.bool_] = hashes <= self.smallest[-1]
        return within

    def different(self) -> int:
        """Number of different hashes seen."""
        return len(np.unique(np.concatenate(self.seen))) if self.seen else 0


def gather(
    file: LogFile, layout: Layout, *, low: float, high: float, size: int, seed: int
) -> Gathered:
    """Read, check and, beyond `size` different queries, sample the rows of a log.

    Raises:
        InputError: naming the first cell that breaks a rule.
    """
    sketch, pieces, hashed, vectored = _Sketch(size), [], [], []
    rows = unasked = unnamed = 0
    for chunk in file.chunks(layout.columns(), layout.texts()):
        piece = _converted(file.path, chunk, layout, rows, low, high)
        asked = _there(piece, layout.key or layout.query)
        known = _there(piece, layout.model)
        unasked += int((~asked).sum())
        unnamed += int((asked & ~known).sum())
        keep = np.flatnonzero(asked & known)
        hashes = _hashes(piece, layout, rows, seed)[keep]
        within = sketch.kept(hashes)
        keep, hashes = keep[within], hashes[within]
        pieces.append({name: column[keep] for name, column in piece.items()})
        hashed.append(hashes)
        if layout.vector is not None:
            cells = chunk[layout.vector].iloc[keep]
            vectored.append(vectors(file.path, layout.vector, cells, rows))
        rows += len(chunk)
    last = [sketch.within(hashes) for hashes in hashed]
    columns = {
        name: np.concatenate([piece[name][at] for piece, at in zip(pieces, last, strict=True)])
        for name in pieces[0]
    }
    different = sketch.different()
    found = [v[at] for v, at in zip(vectored, last, strict=True) if len(v)] if vectored else None
    return Gathered(
        columns,
        np.concatenate(found) if found else None,
        rows,
        different,
        unasked,
        unnamed,
        sampled=different > size,
    )


def _converted(
    path: Path, chunk: Any, layout: Layout, start: int, low: float, high: float
) -> dict[str, npt.NDArray[Any]]:
    found: dict[str, npt.NDArray[Any]] = {name: texts(chunk[name]) for name in layout.texts()}
    for column, role in layout.numeric().items():
        wrong, rule = _rule(role, low, high)
        values = checked(path, column, chunk[column], start, wrong, rule)
        if role == names.QUALITY and (low, high) != (0.0, 1.0):
            values = np.clip((values - low) / (high - low), 0.0, 1.0)  # rounding may overshoot
        found[column] = values
    return found


def _rule(role: str, low: float, high: float) -> tuple[Callable[[Array], Any], str]:
    if role == names.QUALITY:
        return lambda values: (values < low) | (values > high), (
            f"a quality lies in [{low:g}, {high:g}], but {{where}}: give the range of the scores "
            "with --quality-range LOW,HIGH"
        )
    if role.startswith(names.SIGNAL) and not role.startswith(names.SIGNAL_COST):
        return lambda values: np.zeros(len(values), dtype=bool), (
            "a signal is a finite number, but {where}: correct it or leave the cell empty"
        )
    what = {names.LATENCY: "latency", names.MILLISECONDS: "latency"}.get(role, role)
    return lambda values: values < 0, (
        f"a {what.removeprefix('signal ')} is finite and not negative, but {{where}}: correct it, "
        "or leave the cell empty if it is not known"
    )


def _there(piece: dict[str, npt.NDArray[Any]], column: str | None) -> npt.NDArray[np.bool_]:
    if column is None:
        return np.ones(len(next(iter(piece.values()))), dtype=np.bool_)
    return np.array([cell is not None for cell in piece[column]], dtype=np.bool_)


def _hashes(piece: dict[str, npt.NDArray[Any]], layout: Layout, start: int, seed: int) -> Hashes:
    """(n,) of what tells queries apart; where nothing does, of the number of the row."""
    import pandas as pd

    n = len(next(iter(piece.values())))
    column = layout.key or layout.query
    values = np.array([str(start + row) for row in range(n)] if column is None else piece[column])
    key = f"{seed:016d}"[-16:]
    return pd.util.hash_array(values.astype(object), hash_key=key).astype(np.uint64)
