"""Data from files: CSV and Parquet tables with a label column, and NPZ arrays."""

from dataclasses import replace
from pathlib import Path

import numpy as np

from pointsman.compare.arrays import read_npz
from pointsman.compare.builtin import BUILTIN
from pointsman.compare.data import Dataset
from pointsman.compare.tables import read_labelled
from pointsman.errors import InputError

LARGE = 1 << 30  # bytes; a larger file is read only if the user says so
SUFFIXES = (".csv", ".parquet", ".npz")


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
    if path.suffix.lower() not in SUFFIXES:
        raise InputError(
            f"{source} is neither a built-in data set ({', '.join(BUILTIN)}) nor a .csv, .parquet "
            "or .npz file"
        )
    if not path.is_file():
        raise InputError(f"{source}: there is no such file")
    if not large and rows is None:
        _refuse_unasked(path)
    read = read_npz if path.suffix.lower() == ".npz" else read_labelled
    return sample(read(path, target, rows, seed), rows, seed)


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
