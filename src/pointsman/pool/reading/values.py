"""Cells of a log as numbers and texts: what is missing stays missing."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from pointsman.errors import InputError
from pointsman.pool.turns import last_turn

Array = npt.NDArray[np.float64]

MISSING = ("", "na", "n/a", "nan", "null", "none", "-")
VERDICTS = {
    **dict.fromkeys(("true", "yes", "correct", "right", "pass", "passed"), 1.0),
    **dict.fromkeys(("false", "no", "incorrect", "wrong", "fail", "failed"), 0.0),
}


def numbers(column: Any) -> tuple[Array, int | None]:
    """A column as float64 (n,), and the first row whose cell is no number, if there is one.

    Verdicts such as true, "wrong" and "pass" are 1 and 0; empty cells and words such as "n/a" are
    NaN; so is what is no number.
    """
    values, strange = _parsed(column)
    return values, int(strange[0]) if len(strange) else None


def is_number_column(column: Any) -> bool:
    """Whether at least half of the cells that are there are numbers or verdicts.

    A slip among them does not make them something else; it is refused when they are read.
    """
    try:
        return 2 * len(_parsed(column)[1]) <= int(column.notna().sum())
    except (TypeError, ValueError):
        return False


def _parsed(column: Any) -> tuple[Array, npt.NDArray[np.int64]]:
    """A column as float64, and the rows whose cells are no numbers."""
    import pandas as pd

    nothing = np.empty(0, dtype=np.int64)
    if isinstance(column.dtype, np.dtype) and column.dtype.kind in "biuf":
        return column.to_numpy(np.float64), nothing
    if column.dtype.kind in "mM":
        return np.full(len(column), np.nan), np.arange(len(column))
    found = pd.to_numeric(column, errors="coerce")
    values = np.array(found.to_numpy(np.float64, na_value=np.nan))
    rows = np.flatnonzero(np.isnan(values) & column.notna().to_numpy(bool))
    place, cells = pd.factorize(column.iloc[rows].astype(str).to_numpy(object))
    words = [str(cell).strip().lower() for cell in cells]
    values[rows] = np.array([VERDICTS.get(word, np.nan) for word in words] or [np.nan])[place]
    known = np.array([word in VERDICTS or word in MISSING for word in words] or [True])
    return values, rows[~known[place]]


def is_text_column(column: Any) -> bool:
    """Whether most of the cells that are there are texts or lists of messages."""
    cells = column.dropna()
    if isinstance(cells.dtype, np.dtype) and cells.dtype.kind in "biufmM":
        return False
    some = [cell for cell in cells.iloc[:200] if not (isinstance(cell, str) and not cell.strip())]
    texts = sum(isinstance(cell, str) or _is_chat(cell) for cell in some)
    return bool(some) and texts > len(some) / 2 and not is_number_column(cells.iloc[:200])


def checked(
    path: Path, name: str, column: Any, start: int, wrong: Callable[[Array], Any], rule: str
) -> Array:
    """A column as numbers (n,) that keep a rule.

    Args:
        path: of the file, for the error.
        name: of the column.
        column: a pandas series.
        start: number of rows of the file before it.
        wrong: true where a number breaks the rule.
        rule: in words, with `{value}` for the number that breaks it.

    Raises:
        InputError: naming the first cell that is no number or breaks the rule.
    """
    values, row = numbers(column)
    if row is not None:
        raise InputError(
            f"{path}: column {name!r} must hold numbers, true or false, data row {start + row + 1} "
            f"has {str(column.iloc[row])[:40]!r}: correct it, or leave the cell empty if it is "
            "missing"
        )
    broken = np.flatnonzero(np.isinf(values) | wrong(values))
    if len(broken):
        where = f"column {name!r} has {values[broken[0]]:g} in data row {start + broken[0] + 1}"
        raise InputError(f"{path}: {rule.format(where=where)}")
    return values


def texts(column: Any) -> npt.NDArray[np.object_]:
    """A column as texts (n,), of a chat the user's last turn; None where nothing is said."""
    found = np.empty(len(column), dtype=object)
    missing = column.isna().to_numpy(bool) if len(column) else np.zeros(0, dtype=bool)
    for row, cell in enumerate(column):
        if missing[row]:
            continue
        text = cell if isinstance(cell, str) else _said(cell)
        found[row] = text if text.strip() else None
    return found


def vectors(path: Path, name: str, column: Any, start: int) -> npt.NDArray[np.float32]:
    """A column of lists, or of JSON arrays in text, as (n, D).

    Raises:
        InputError: naming the first cell that is no list of finite numbers as long as the others.
    """
    rows: list[npt.NDArray[np.float32]] = []
    for row, cell in enumerate(column):
        try:
            vector = np.asarray(json.loads(cell) if isinstance(cell, str) else cell, np.float32)
        except (TypeError, ValueError):
            vector = np.empty(0, dtype=np.float32)
        width = len(rows[0]) if rows else None
        ok = vector.ndim == 1 and len(vector) and np.isfinite(vector).all()
        if not ok or width not in (None, len(vector)):
            what = f"{len(vector)} numbers" if ok else str(cell)[:40]
            raise InputError(
                f"{path}: every cell of the vector column {name!r} must be a list of finite "
                f"numbers, all of one length"
                + (f" (the first has {width})" if width is not None else "")
                + f", data row {start + row + 1} has {what}: correct it or leave the column out"
            )
        rows.append(vector)
    return np.array(rows, dtype=np.float32) if rows else np.zeros((0, 0), dtype=np.float32)


def _is_chat(cell: Any) -> bool:
    listed = isinstance(cell, list | np.ndarray)
    return listed and len(cell) > 0 and all(isinstance(turn, dict) for turn in cell)


def _said(cell: Any) -> str:
    """Of a list of chat messages what a gateway would route by, of anything else its text."""
    if not _is_chat(cell):
        return str(cell)
    return last_turn(_plain(cell))


def _plain(value: Any) -> Any:
    """Arrays, as Parquet files give them, as lists, all the way down."""
    if isinstance(value, dict):
        return {name: _plain(part) for name, part in value.items()}
    return [_plain(part) for part in value] if isinstance(value, list | np.ndarray) else value
