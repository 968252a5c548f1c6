"""Which column of a log holds what: recognised by names, and by values where names do not say."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from pointsman.errors import InputError
from pointsman.pool.reading import names as n
from pointsman.pool.reading import values
from pointsman.pool.reading.files import must_have
from pointsman.pool.reading.names import one_of, plain, shown, taken_apart
from pointsman.pool.reading.values import is_number_column, is_text_column
from pointsman.pool.reading.wide import Wide

LONG = ""  # stands for every model where they share a column


@dataclass(frozen=True)
class Layout:
    """Which column holds what.

    Args:
        query: the text of the query, None where the log has none.
        key: what tells queries apart, None: the text does (or, without it, the row).
        model: long logs: the name of the model; None: the log is wide.
        models: names of a wide log, or those wanted of a long one; empty: all that occur.
        cells: role (see `names.ROLES`) to model to column; in a long log the model is "".
        groups: name of a group to column.
        vector: embeddings, None where there are none.
        aside: columns that are not used.
    """

    query: str | None
    key: str | None
    model: str | None
    models: tuple[str, ...]
    cells: Mapping[str, Mapping[str, str]]
    groups: Mapping[str, str]
    vector: str | None
    aside: tuple[str, ...]

    def texts(self) -> list[str]:
        """Columns that are read as texts."""
        found = [self.query, self.key, self.model, *self.groups.values()]
        return list(dict.fromkeys(column for column in found if column is not None))

    def numeric(self) -> dict[str, str]:
        """Column to role, of all that hold numbers."""
        return {c: role for role, columns in self.cells.items() for c in columns.values()}

    def columns(self) -> list[str]:
        """All columns that are read."""
        vector = [] if self.vector is None else [self.vector]
        return list(dict.fromkeys([*self.texts(), *self.numeric(), *vector]))


def recognise(
    path: Path,
    head: Any,
    *,
    query: str | None = None,
    groups: Sequence[str] | None = None,
    models: Sequence[str] | None = None,
    priced: Sequence[str] = (),
    low: float = 0.0,
    high: float = 1.0,
) -> Layout:
    """What the columns of a log hold.

    A column that names a model beside each score makes it long; else it is wide, and its models are
    the columns "<model> score", or else the columns of numbers within the quality range.

    Args:
        path: of the file, for errors.
        head: pandas frame of its first rows.
        query, groups, models: as the user named them, see `read_log`.
        priced: models of the price file: columns of that name are models.
        low, high: the range of a quality.

    Raises:
        InputError: the columns do not make a log, or could mean several things.
    """
    columns = list(map(str, head.columns))
    long = one_of(columns, n.MODEL)
    if long is not None and _measured_by(head, columns, long):
        long = None
    asked = None if query is None else must_have(path, columns, query, "--query")
    vector = one_of(columns, n.VECTOR)
    key = one_of(columns, n.KEY)
    grouped = _groups(path, head, groups, taken={asked, key, long})
    taken = {long, vector, key, *grouped.values()}
    text = asked or _query_column(head, [c for c in columns if c not in taken], long is not None)
    free = [column for column in columns if column not in {*taken, text}]
    if long is not None:
        cells = _long_cells(path, free, head, long)
        found: tuple[str, ...] = tuple(models or ())
        if text is not None and key is not None and not _tells_queries(head, key):
            key = None
    else:
        key = key if text is None else None
        wide = Wide(path, head, free, models, priced, low, high)
        found, cells = wide.models, wide.cells
    if text is None and vector is None and not grouped:
        raise InputError(
            f"{path}: a log needs the text of its queries, and no column holds it: the columns are "
            f"{shown(columns, 12)}; name one with --query COLUMN"
        )
    used = {text, key, long, vector, *grouped.values()}
    used |= {column for by_model in cells.values() for column in by_model.values()}
    aside = tuple(column for column in columns if column not in used)
    return Layout(text, key, long, found, cells, grouped, vector, aside)


def _groups(
    path: Path, head: Any, asked: Sequence[str] | None, taken: set[str | None]
) -> dict[str, str]:
    """Group name to column; the first that names a task is called "task"."""
    columns = list(map(str, head.columns))
    if asked is None:
        known = {*n.TASK, *n.GROUP}
        found = [c for c in columns if plain(c) in known and c not in taken]
        found = [column for column in found if not _measured(head[column])]
    else:
        found = [must_have(path, columns, column, "--group") for column in asked]
    task = one_of(found, n.TASK)
    return {("task" if column == task else column): column for column in found}


def _measured(column: Any) -> bool:
    """Whether a column holds fractions, which tell nobody apart."""
    if not is_number_column(column):
        return False
    found = values.numbers(column)[0]
    return bool((found[np.isfinite(found)] % 1 != 0).any())


def _measured_by(head: Any, columns: list[str], model: str) -> bool:
    """Whether a column called model holds scores of a model of that name, in a wide log."""
    numeric = is_number_column(head[model]) and bool(head[model].notna().any())
    return numeric and one_of(columns, n.ROLES[n.QUALITY]) is None


def _tells_queries(head: Any, key: str) -> bool:
    """Whether a column numbers queries, and not the rows of a long log."""
    return plain(key) not in n.ROW_KEY or len(set(values.texts(head[key]))) < len(head)


def _query_column(head: Any, columns: list[str], long: bool) -> str | None:
    named = one_of(columns, n.QUERY) or one_of(columns, n.QUERY_TOO)
    if named is not None:
        return named
    texts = [c for c in columns if is_text_column(head[c]) and taken_apart(c).role is None]
    if len(texts) == 1 and not long and 2 * len(set(values.texts(head[texts[0]]))) > len(head):
        return texts[0]
    return None


def _long_cells(path: Path, columns: list[str], head: Any, model: str) -> dict[str, dict[str, str]]:
    """Role to column of a long log; where several columns say one role, the first word wins."""
    cells: dict[str, dict[str, str]] = {}
    for role, words in n.ROLES.items():
        column = one_of([c for c in columns if is_number_column(head[c])], words)
        if role != n.IGNORED and column is not None:
            cells[role] = {LONG: column}
    if n.QUALITY not in cells:
        texts = one_of(columns, n.ROLES[n.QUALITY])
        if texts is not None:  # there is one, and it holds something else: say what
            return {**cells, n.QUALITY: {LONG: texts}}
        raise InputError(
            f"{path}: a long log (column {model!r} names the models) needs a column with the score "
            f"of each answer, called {', '.join(n.ROLES[n.QUALITY][:4])} or so; the columns are "
            f"{shown(list(map(str, head.columns)), 12)}: rename the one that holds it"
        )
    return cells
