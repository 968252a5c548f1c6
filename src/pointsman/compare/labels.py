"""Labels of any kind as classes, for tables and arrays alike."""

from pathlib import Path

import numpy as np

from pointsman.compare.data import Array
from pointsman.errors import InputError

MOST_CLASSES = 1_000
FLOAT = np.finfo(np.float32)  # what features are kept as


def classes_of(path: Path, label: str, values: Array) -> tuple[Array, tuple[str, ...]]:
    """Labels (n,) of any kind as class indices (n,) int64, and the names of the classes.

    Raises:
        InputError: a label is missing, or there are so many that they are no classes.
    """
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
