"""Tables: CSV and Parquet files with a label column."""

import csv
import warnings
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np

from pointsman.compare.data import Array, Dataset, Part
from pointsman.compare.labels import FLOAT, classes_of
from pointsman.errors import InputError, reason

LABEL_NAMES = ("label", "target", "class", "y")
ROWS_AT_ONCE = 200_000
MISSING = ("na", "n/a", "nan", "null", "none", "")


def read_labelled(path: Path, target: str | None, rows: int | None, seed: int) -> Dataset:
    """The data set of a table; see `pointsman.compare.files.load`.

    Raises:
        InputError: as `read_table` and `numbers`, or no such label column, or no feature.
    """
    frame = read_table(path, rows, seed)
    columns = list(frame.columns)
    label = _label_column(path, columns, target)
    features = [name for name in columns if name != label]
    if not features:
        raise InputError(
            f"{path}: a table needs feature columns beside the label {label!r}, it has only that: "
            "are its columns separated by commas?"
        )
    x = numbers(path, frame[features])
    y, classes = classes_of(path, label, frame[label].to_numpy())
    name, part = path.stem, Part(x, y)
    return Dataset(
        name,
        "features",
        {"train": part},
        classes,
        tuple(features),
        note=f"label column {label!r}",
        source={"target": label},
    )


def read_table(path: Path, rows: int | None = None, seed: int = 0) -> Any:
    """A pandas frame of a CSV or Parquet file; with `rows`, of a uniform sample of its rows.

    Raises:
        InputError: the file is empty, not of its format, or not UTF-8, or two of its columns have
            one name.
    """
    import pandas as pd

    try:
        names = _header(path)
        _check_names(path, names)
        frame = _sampled(_chunks(path, rows), rows, seed)
    except InputError:
        raise
    except UnicodeDecodeError as error:
        raise InputError(
            f"{path}: a .csv file is read as UTF-8, which this is not ({error.reason}): save it "
            "as UTF-8"
        ) from error
    except (
        csv.Error,
        pd.errors.EmptyDataError,
        pd.errors.ParserError,
        pd.errors.ParserWarning,
    ) as error:
        raise InputError(
            f"{path}: this is not a table with a header line and as many cells in every row, "
            f"separated by commas ({reason(error)})"
        ) from error
    except (OSError, ValueError, TypeError, RuntimeError) as error:
        raise InputError(f"{path}: cannot be read as {path.suffix} ({reason(error)})") from error
    # A frame that was saved with an index gets it back, so that it has fewer columns than the file.
    frame.columns = names if len(names) == frame.shape[1] else list(map(str, frame.columns))
    return frame


def _check_names(path: Path, names: list[str]) -> None:
    if not names:
        raise InputError(f"{path}: this is not a table with a header line, it has no columns")
    if len(set(names)) != len(names):
        twice = next(name for name in names if names.count(name) > 1)
        raise InputError(
            f"{path}: column names must differ, {twice!r} is there twice: rename one of them"
        )
    if "" in names:
        raise InputError(
            f"{path}: every column needs a name, column {names.index('') + 1} has none (a saved "
            "row number is no feature): name it or leave it out"
        )


def _sampled(chunks: Iterator[Any], rows: int | None, seed: int) -> Any:
    import pandas as pd

    rng = np.random.default_rng(seed)
    kept = next(chunks)
    if rows is None:
        return kept
    keys = rng.random(len(kept))
    while True:
        # Keeping the rows with the smallest random keys is a uniform sample of the stream.
        order = np.sort(np.argsort(keys, kind="stable")[:rows])
        kept, keys = kept.iloc[order].reset_index(drop=True), keys[order]
        chunk = next(chunks, None)
        if chunk is None:
            return kept
        kept = pd.concat([kept, chunk], ignore_index=True)
        keys = np.concatenate([keys, rng.random(len(chunk))])


def _chunks(path: Path, rows: int | None) -> Iterator[Any]:
    """The whole table at once, or where only `rows` are wanted, a part of it at a time."""
    import pandas as pd
    import pyarrow.parquet as parquet

    if path.suffix.lower() == ".csv":
        with warnings.catch_warnings():
            # Rows longer than the header would be cut, or shift every column by one.
            warnings.simplefilter("error", pd.errors.ParserWarning)
            # Only an empty cell is missing: a class may well be called "None" or "NA".
            how: Any = {"index_col": False, "keep_default_na": False, "na_values": [""]}
            if rows is None:
                yield pd.read_csv(path, low_memory=False, **how)
            else:
                yield from pd.read_csv(path, low_memory=False, chunksize=ROWS_AT_ONCE, **how)
    elif rows is None:
        yield parquet.read_table(path).to_pandas()
    else:
        file = parquet.ParquetFile(path)
        yield file.schema_arrow.empty_table().to_pandas()  # a file of no rows has no batches
        for batch in file.iter_batches(ROWS_AT_ONCE):
            yield batch.to_pandas()


def _header(path: Path) -> list[str]:
    """The names as they stand in the file: pandas makes equal ones different."""
    import pyarrow.parquet as parquet

    if path.suffix.lower() == ".parquet":
        return list(parquet.read_schema(path).names)
    with path.open(encoding="utf-8-sig", newline="") as file:
        row = next((row for row in csv.reader(file) if row), [])
    return [name.strip() for name in row]


def _label_column(path: Path, columns: list[str], target: str | None) -> str:
    if target is None:
        named = [name for name in columns if name.lower() in LABEL_NAMES]
        return named[0] if named else columns[-1]
    if target not in columns:
        shown = ", ".join(columns[:12]) + (", …" if len(columns) > 12 else "")
        raise InputError(f"{path}: there is no column {target!r}; the columns are {shown}")
    return target


def numbers(path: Path, frame: Any) -> Array:
    """The columns of a frame as finite float32 (n, columns).

    Raises:
        InputError: naming the first cell that is missing, infinite or not a number.
    """
    if all(isinstance(dtype, np.dtype) and dtype.kind in "biuf" for dtype in frame.dtypes):
        with np.errstate(over="ignore"):
            found: Array = np.ascontiguousarray(frame.astype(np.float32).to_numpy())
        if np.isfinite(found).all():
            return found
    columns = []
    for name in frame.columns:
        column = _numeric(frame[name])
        bad = ~np.isfinite(column)
        if bad.any():
            row = int(bad.argmax())
            cell = frame[name].iloc[row]
            what, way_out = _in_words(cell)
            raise InputError(
                f"{path}: features must be finite numbers (up to {FLOAT.max:.1g}), column {name!r} "
                f"has {what} in data row {row + 1} ({int(bad.sum())} such cells in this column): "
                f"{way_out}"
            )
        columns.append(column)
    return np.column_stack(columns)


def _in_words(cell: Any) -> tuple[str, str]:
    """A cell that is no finite number, and what to do about it."""
    import pandas as pd

    if isinstance(cell, str) and cell.strip().lower() not in MISSING:
        return f"the text {cell[:40]!r}", "encode it as numbers or leave it out"
    if isinstance(cell, str | int | float | None) or cell is pd.NA:
        return f"{cell}", "fill in, rescale or leave out such rows"
    return f"a {type(cell).__name__}", "encode it as numbers or leave it out"


def _numeric(column: Any) -> Array:
    """A column as float32, NaN where a cell is no number."""
    import pandas as pd

    none = np.full(len(column), np.nan, dtype=np.float32)
    if column.dtype.kind in "mM":  # dates and durations have no zero and no unit
        return none
    try:
        found = pd.to_numeric(column, errors="coerce").to_numpy(np.float64, na_value=np.nan)
    except (TypeError, ValueError):  # lists and other objects
        return none
    with np.errstate(over="ignore"):
        return np.asarray(found, dtype=np.float32)
