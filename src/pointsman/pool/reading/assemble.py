"""Checked columns to cells: the rows of a wide log as they are, those of a long one side by side.

Legend: n rows of the file, N queries, M models.
"""

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from pointsman.errors import InputError
from pointsman.pool.reading import names
from pointsman.pool.reading.gather import Gathered
from pointsman.pool.reading.layout import Layout
from pointsman.pool.reading.names import shown
from pointsman.pool.reading.values import Array
from pointsman.pool.reading.wide import MOST_MODELS

Objects = npt.NDArray[np.object_]


@dataclass
class Cells:
    """A log before its costs are known.

    Args:
        queries: (N,) texts; of a log without texts what else tells its queries apart.
        models: M names.
        cells: role to (N, M), NaN where the log says nothing.
        groups: name to (N,) texts, "" where missing.
        vectors: (N, D), or None.
        averaged: scores that were averaged with another one of the same query and model.
        reworded: queries (of a long log with a column of query numbers) that have several texts.
        unscored: queries left out because no model has a score, or the query no text.
    """

    queries: Objects
    models: tuple[str, ...]
    cells: dict[str, Array]
    groups: dict[str, Objects]
    vectors: npt.NDArray[np.float32] | None
    averaged: int = 0
    reworded: int = 0
    unscored: int = 0

    def scored(self) -> "Cells":
        """Without the queries that no model has a score for, or whose text alone is missing."""
        known = ~np.isnan(self.cells[names.QUALITY]).all(axis=1)
        known = known & (self.queries != "")
        if known.all():
            return self
        return Cells(
            self.queries[known],
            self.models,
            {role: cells[known] for role, cells in self.cells.items()},
            {name: column[known] for name, column in self.groups.items()},
            None if self.vectors is None else self.vectors[known],
            self.averaged,
            self.reworded,
            int((~known).sum()),
        )


def assembled(path: Path, layout: Layout, rows: Gathered) -> Cells:
    """The cells of a log.

    Raises:
        InputError: no row is left, fewer than two models, or a model that does not occur.
    """
    if len(rows) == 0:
        why = (
            "it has a header and no rows"
            if rows.rows == 0
            else (
                f"column {layout.query!r} is empty in all {rows.rows:,} rows"
                if rows.unasked
                else f"column {layout.model!r} is empty in all {rows.rows:,} rows"
            )
        )
        raise InputError(f"{path}: a log needs queries: {why}")
    return (_wide if layout.model is None else _long)(path, layout, rows)


def _wide(path: Path, layout: Layout, rows: Gathered) -> Cells:
    nothing = np.full(len(rows), np.nan)
    cells = {
        role: np.column_stack(
            [rows.columns[by_model[m]] if m in by_model else nothing for m in layout.models]
        )
        for role, by_model in layout.cells.items()
    }
    groups = {name: _named(rows.columns[column]) for name, column in layout.groups.items()}
    told = layout.query or layout.key
    numbered = np.array([f"row {row + 1}" for row in range(len(rows))], dtype=object)
    queries = numbered if told is None else _named(rows.columns[told])
    return Cells(queries, layout.models, cells, groups, rows.vectors)


def _long(path: Path, layout: Layout, rows: Gathered) -> Cells:
    import pandas as pd

    models = _models(path, layout, rows)
    column = {model: at for at, model in enumerate(models)}
    asked = pd.Series(rows.columns[str(layout.model)]).map(column).fillna(-1).to_numpy(np.int64)
    kept = np.flatnonzero(asked >= 0)
    key = layout.key or layout.query
    if key is None:
        raise InputError(
            f"{path}: a long log needs a column that says which answers belong to one query: its "
            "text, or a number called 'query id'"
        )
    query, keys = pd.factorize(rows.columns[key][kept])
    n, m = len(keys), len(models)
    place = query * m + asked[kept]
    cells = {}
    for role, by_model in layout.cells.items():
        values = rows.columns[by_model[""]][kept]
        cells[role] = _means(place, values, n * m).reshape(n, m)
    scores = rows.columns[layout.cells[names.QUALITY][""]][kept]
    scored = place[~np.isnan(scores)]
    first = np.full(n, len(kept))
    np.minimum.at(first, query, np.arange(len(kept)))
    first = kept[first]
    groups = {name: _named(rows.columns[column][first]) for name, column in layout.groups.items()}
    vectors = None if rows.vectors is None else rows.vectors[first]
    queries, reworded = _named(np.asarray(keys, dtype=object)), 0
    if layout.query is not None:
        text = rows.columns[layout.query][kept]
        said = np.array([words is not None for words in text], dtype=bool)
        queries[:] = ""
        # Assigned backwards, so that the first text of a query stands.
        queries[query[said][::-1]] = text[said][::-1]
        reworded = len(np.unique(query[said & (text != queries[query])]))
    averaged = len(scored) - len(np.unique(scored))
    return Cells(queries, models, cells, groups, vectors, averaged, reworded)


def _models(path: Path, layout: Layout, rows: Gathered) -> tuple[str, ...]:
    found = list(dict.fromkeys(rows.columns[str(layout.model)]))
    absent = [model for model in layout.models if model not in found]
    if absent:
        raise InputError(
            f"{path}: --models names {absent[0]!r}, which column {layout.model!r} does not have: "
            f"it has {shown(found)}"
        )
    models = layout.models or tuple(found)
    if len(models) > MOST_MODELS:
        raise InputError(
            f"{path}: column {layout.model!r} has {len(models):,} different values, beginning with "
            f"{shown(models, 3)}; at most {MOST_MODELS} models can be compared: name them with "
            "--models"
        )
    if len(models) < 2:
        raise InputError(
            f"{path}: at least two models are needed to route between, column {layout.model!r} "
            f"has only {models[0]!r}: add rows of another one"
        )
    return models


def _means(place: npt.NDArray[Any], values: Array, size: int) -> Array:
    """(size,) mean of the known values of each place, NaN where there is none."""
    known = ~np.isnan(values)
    count = np.bincount(place[known], minlength=size)
    total = np.bincount(place[known], weights=values[known], minlength=size)
    means: Array = np.divide(total, count, out=np.full(size, np.nan), where=count > 0)
    return means


def _named(column: Objects) -> Objects:
    """Texts, "" where missing."""
    named = np.empty(len(column), dtype=object)
    named[:] = ["" if cell is None else cell for cell in column]
    return named
