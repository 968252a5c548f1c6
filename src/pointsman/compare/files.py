"""Data from files: CSV and Parquet tables with a label column, and NPZ arrays."""

import csv
import warnings
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np

from pointsman.compare.builtin import BUILTIN
from pointsman.compare.data import Array, Dataset, Kind, Part
from pointsman.errors import InputError

LABEL_NAMES = ("label", "target", "class", "y")
LARGE = 1 << 30  # bytes; a larger file is read only if the user says so
ROWS_AT_ONCE = 200_000
MISSING = ("na", "n/a", "nan", "null", "none", "")
MOST_CLASSES = 1_000
FLOAT = np.finfo(np.float32)


def load(
    source: str,
    *,
    target: str | None = None,
    rows: int | None = None,
    large: bool = False,
    seed: int = 0,
) -> Dataset:
    """A built-in data set by name, or a data set from a `.csv`, `.parquet` or `.npz` file.

    Args:
        source: the name or the path.
        target: the label column of a table; default: one named label, target, class or y, else the
            last column.
        rows: keep a uniform random sample of this many training rows.
        large: go ahead with a file of over 1 GiB.
        seed: of the sample.

    Raises:
        InputError: no such data, a file that cannot be read, a value that is not a finite number,
            labels missing, or a file that is too large to read unasked.
    """
    if rows is not None and rows < 1:
        raise InputError(f"--rows takes a number of at least 1, got {rows}")
    if source in BUILTIN:
        if target is not None:
            raise InputError(f"{source} is built in and has its own labels: leave out --target")
        return sample(BUILTIN[source](), rows, seed)
    path = Path(source)
    readers = {".csv": _table, ".parquet": _table, ".npz": _npz}
    if path.suffix.lower() not in readers:
        raise InputError(
            f"{source} is neither a built-in data set ({', '.join(BUILTIN)}) nor a .csv, .parquet "
            "or .npz file"
        )
    if not path.is_file():
        raise InputError(f"{source}: there is no such file")
    if not large and rows is None:
        _refuse_unasked(path)
    return sample(readers[path.suffix.lower()](path, target, rows, seed), rows, seed)


def sample(data: Dataset, rows: int | None, seed: int) -> Dataset:
    """The data set with a uniform random sample of its training rows, if it has more than that."""
    train = data.given["train"]
    if rows is None or len(train) <= rows:
        return data
    keep = np.sort(np.random.default_rng(seed).choice(len(train), rows, replace=False))
    given = {**data.given, "train": train.take(keep)}
    return replace(data, given=given)


def _refuse_unasked(path: Path) -> None:
    size = path.stat().st_size
    if size <= LARGE:
        return
    gigabytes = size / 2**30
    # A text table is parsed at about 60 MB/s into about as many bytes of numbers, held twice while
    # they are converted; arrays are read faster and held twice as well.
    minutes = size / (60e6 if path.suffix.lower() == ".csv" else 400e6) / 60
    raise InputError(
        f"{path} is {gigabytes:.1f} GiB: reading all of it takes about {2.5 * gigabytes:.0f} GiB "
        f"of memory and {max(minutes, 0.5):.1f} minutes before training starts; add --rows 100000 "
        "to work on a random sample, or --large to go ahead"
    )


# ── Tables ──────────────────────────────────────────────────────────────────────────────────────


def _table(path: Path, target: str | None, rows: int | None, seed: int) -> Dataset:
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
    y, classes = _classes(path, label, frame[label].to_numpy())
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
            f"{path}: this is not a table with a header line and as many cells in every row "
            f"({_reason(error)})"
        ) from error
    except (OSError, ValueError, TypeError, RuntimeError) as error:
        raise InputError(f"{path}: cannot be read as {path.suffix} ({_reason(error)})") from error
    # A frame that was saved with an index gets it back, so that it has fewer columns than the file.
    frame.columns = names if len(names) == frame.shape[1] else list(map(str, frame.columns))
    return frame


def _check_names(path: Path, names: list[str]) -> None:
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
    kept, keys = next(chunks), np.empty(0)
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
        for batch in parquet.ParquetFile(path).iter_batches(ROWS_AT_ONCE):
            yield batch.to_pandas()


def _header(path: Path) -> list[str]:
    """The names as they stand in the file: pandas makes equal ones different."""
    import pyarrow.parquet as parquet

    if path.suffix.lower() == ".parquet":
        return list(parquet.read_schema(path).names)
    with path.open(encoding="utf-8-sig", newline="") as file:
        row = next((row for row in csv.reader(file) if row), [])
    return [name.strip() for name in row]


def _reason(error: BaseException) -> str:
    return " ".join(str(error).split()) or type(error).__name__


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
            if isinstance(cell, str) and cell.strip().lower() not in MISSING:
                what, way_out = f"the text {cell[:40]!r}", "encode it as numbers or leave it out"
            elif isinstance(cell, str | int | float | None):
                what, way_out = f"{cell}", "fill in, rescale or leave out such rows"
            else:
                what, way_out = f"a {type(cell).__name__}", "encode it as numbers or leave it out"
            raise InputError(
                f"{path}: features must be finite numbers (up to {FLOAT.max:.1g}), column {name!r} "
                f"has {what} in data row {row + 1} ({int(bad.sum())} such cells in this column): "
                f"{way_out}"
            )
        columns.append(column)
    return np.column_stack(columns)


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


def _classes(path: Path, label: str, values: Array) -> tuple[Array, tuple[str, ...]]:
    import pandas as pd

    if values.dtype.kind == "S":
        values = np.char.decode(values, "utf-8", "replace")
    missing = np.asarray(pd.isna(values), dtype=bool)
    if missing.any():
        raise InputError(
            f"{path}: every row needs a label, column {label!r} has none in data row "
            f"{int(missing.argmax()) + 1} ({int(missing.sum())} such rows)"
        )
    try:
        found, y = np.unique(values, return_inverse=True)
    except TypeError:  # numbers and text mixed: compare as text
        found, y = np.unique(values.astype(str), return_inverse=True)
    if len(found) > MOST_CLASSES or (len(found) > 50 and len(found) > len(values) / 5):
        raise InputError(
            f"{path}: the label {label!r} has {len(found)} distinct values in {len(values)} rows, "
            "which looks like a number to predict or an identifier: name a class column with "
            "--target"
        )
    return y.astype(np.int64), tuple(str(value) for value in found)


# ── Arrays ──────────────────────────────────────────────────────────────────────────────────────


def _npz(path: Path, target: str | None, rows: int | None, seed: int) -> Dataset:
    if target is not None:
        raise InputError(f"{path}: an .npz file has its labels in y_train: leave out --target")
    arrays = read_arrays(path)
    missing = [name for name in ("x_train", "y_train") if name not in arrays]
    if missing:
        raise InputError(
            f"{path}: an .npz file holds x_train and y_train, {missing[0]} is not there; it has "
            + (", ".join(arrays) or "nothing")
        )
    if ("x_test" in arrays) != ("y_test" in arrays):
        raise InputError(f"{path}: x_test and y_test belong together, one of them is missing")
    x_train, kind = image_or_features(path, "x_train", arrays["x_train"])
    parts = {"train": x_train}
    if "x_test" in arrays:
        parts["test"], test_kind = image_or_features(path, "x_test", arrays["x_test"])
        if test_kind != kind or parts["test"].shape[1:] != x_train.shape[1:]:
            raise InputError(
                f"{path}: x_test must have the shape of x_train beyond its first dimension, got "
                f"{parts['test'].shape} and {x_train.shape}"
            )
    labels = {name: arrays[f"y_{name}"].reshape(-1) for name in parts}
    for name, x in parts.items():
        if len(labels[name]) != len(x):
            raise InputError(
                f"{path}: x_{name} and y_{name} must be equally long, got {len(x)} and "
                f"{len(labels[name])}"
            )
    y, classes = _classes(path, "y_train", np.concatenate(list(labels.values())))
    names = _class_names(arrays.get("classes"), classes)
    cut = np.split(y, np.cumsum([len(label) for label in labels.values()])[:-1])
    given = {name: Part(x, part) for (name, x), part in zip(parts.items(), cut, strict=True)}
    return Dataset(path.stem, kind, given, names)


def read_arrays(path: Path) -> dict[str, Array]:
    """Every array of an .npz file.

    Raises:
        InputError: it is not an .npz file of plain arrays.
    """
    try:
        with np.load(path, allow_pickle=False) as file:
            arrays = {name: file[name] for name in file.files}
    except Exception as error:  # bytes of unknown origin fail in a dozen ways
        raise InputError(
            f"{path}: cannot be read as an .npz file of plain arrays ({_reason(error)}): write it "
            "with numpy.savez"
        ) from error
    return {name: array for name, array in arrays.items() if isinstance(array, np.ndarray)}


def image_or_features(path: Path, name: str, x: Array) -> tuple[Array, Kind]:
    """NHWC uint8 images, or float32 features, with what kind they are.

    Raises:
        InputError: another number of dimensions, another dtype, or a value that is not finite.
    """
    if x.ndim in (3, 4) and x.dtype == np.uint8:
        images = x[..., None] if x.ndim == 3 else x
        if images.shape[-1] not in (1, 3, 4) or 0 in images.shape[1:]:
            raise InputError(
                f"{path}: images are NHWC with 1, 3 or 4 channels last, {name} has shape {x.shape}"
            )
        return images, "images"
    if x.ndim != 2 or x.shape[1] == 0 or x.dtype.kind not in "biuf":
        raise InputError(
            f"{path}: {name} must be numbers of shape (n, features) or uint8 images of shape "
            f"(n, H, W, C), got {x.dtype} of shape {x.shape}"
        )
    with np.errstate(over="ignore"):
        features = x.astype(np.float32)
    bad = ~np.isfinite(features)
    if bad.any():
        row, column = np.argwhere(bad)[0]
        raise InputError(
            f"{path}: features must be finite numbers (up to {FLOAT.max:.1g}), {name} has "
            f"{x[row, column]} in row {row}, column {column} ({int(bad.sum())} such values): fill "
            "in, rescale or leave out such rows"
        )
    return features, "features"


def _class_names(given: Array | None, found: tuple[str, ...]) -> tuple[str, ...]:
    """Names for numeric labels 0..C-1 where the file brings them."""
    if given is None or found != tuple(str(i) for i in range(len(given))):
        return found
    return tuple(str(name) for name in given)
