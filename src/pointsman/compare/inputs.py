"""New inputs for a saved policy: files with or without labels."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np

from pointsman.compare.builtin import BUILTIN
from pointsman.compare.data import Array
from pointsman.compare.files import image_or_features, numbers, read_arrays, read_table
from pointsman.errors import InputError


def read_inputs(source: str, made_for: Mapping[str, Any]) -> Array:
    """Inputs of the kind and width that a policy was made for.

    Args:
        source: a built-in name or a file.
        made_for: the policy's description of its data: kind, shape, columns.

    Raises:
        InputError: no such file, or inputs of another kind or width.
    """
    if source in BUILTIN:
        data = BUILTIN[source]()
        return _checked(source, data.given.get("test", data.given["train"]).x, made_for)
    path = Path(source)
    if not path.is_file():
        raise InputError(f"{source}: there is no such file")
    if made_for["kind"] == "text":
        size = made_for["shape"][0]
        stream = np.frombuffer(path.read_bytes(), dtype=np.uint8)
        # A window ends with the byte to be predicted, which new text does not have: it is not read.
        windows = stream[: len(stream) // (size - 1) * (size - 1)].reshape(-1, size - 1)
        return np.column_stack([windows, np.zeros(len(windows), dtype=np.uint8)])
    if path.suffix.lower() in (".csv", ".parquet"):
        return _table(path, made_for)
    arrays = read_arrays(path)
    name = next((name for name in ("x", "x_test", "x_train") if name in arrays), None)
    if name is None:
        raise InputError(f"{path}: there is no array x, it has {', '.join(arrays) or 'nothing'}")
    return _checked(source, image_or_features(path, name, arrays[name])[0], made_for)


def _table(path: Path, made_for: Mapping[str, Any]) -> Array:
    frame = read_table(path)
    frame.columns = [str(name) for name in frame.columns]
    columns = list(made_for["columns"])
    missing = [name for name in columns if name not in frame.columns]
    if made_for["kind"] != "features" or missing or not columns:
        width = made_for["shape"][0]
        what = f"column {missing[0]!r} is missing" if missing else "it takes no table"
        raise InputError(
            f"{path}: this policy takes {made_for['kind']} with {width} features, {what} (the file "
            f"has {len(frame.columns)} columns)"
        )
    return numbers(path, frame[columns])


def _checked(source: str, x: Array, made_for: Mapping[str, Any]) -> Array:
    shape = tuple(made_for["shape"])
    if tuple(x.shape[1:]) != shape:
        raise InputError(
            f"{source}: this policy takes {made_for['kind']} of shape (n, "
            f"{', '.join(map(str, shape))}), got {tuple(x.shape)}"
        )
    return x
