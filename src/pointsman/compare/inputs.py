"""New inputs for a saved policy: files with or without labels."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np

from pointsman.compare.arrays import image_or_features, read_arrays
from pointsman.compare.builtin import BUILTIN
from pointsman.compare.data import Array
from pointsman.compare.tables import numbers, read_table
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
        return _checked(source, data.given.get("test", data.given["train"]).x, data.kind, made_for)
    path = Path(source)
    if not path.is_file():
        raise InputError(f"{source}: there is no such file")
    if made_for["kind"] == "text":
        size = made_for["shape"][0]
        stream = np.frombuffer(_bytes(path), dtype=np.uint8)
        if len(stream) < size - 1:
            raise InputError(
                f"{path}: this policy takes text in windows of {size - 1} bytes, the file has only "
                f"{len(stream)}: give a longer one"
            )
        # A window ends with the byte to be predicted, which new text does not have: it is not read.
        windows = stream[: len(stream) // (size - 1) * (size - 1)].reshape(-1, size - 1)
        return np.column_stack([windows, np.zeros(len(windows), dtype=np.uint8)])
    if path.suffix.lower() in (".csv", ".parquet"):
        return _table(path, made_for)
    arrays = read_arrays(path)
    name = next((name for name in ("x", "x_test", "x_train") if name in arrays), None)
    if name is None:
        raise InputError(f"{path}: there is no array x, it has {', '.join(arrays) or 'nothing'}")
    return _checked(source, *image_or_features(path, name, arrays[name]), made_for)


def _bytes(path: Path) -> bytes:
    try:
        return path.read_bytes()
    except OSError as error:
        raise InputError(f"{path}: cannot be read ({error.strerror})") from error


def _table(path: Path, made_for: Mapping[str, Any]) -> Array:
    frame = read_table(path)
    columns = list(made_for["columns"])
    if not columns:
        raise InputError(
            f"{path}: this policy takes {made_for['kind']} of shape {_shape(made_for)} and knows "
            "no columns: give an .npz file with the array x"
        )
    missing = [name for name in columns if name not in frame.columns]
    if missing:
        raise InputError(
            f"{path}: this policy takes {len(columns)} columns, {missing[0]!r} is missing "
            f"({len(missing)} such columns): give a table like the one it was made for"
        )
    return numbers(path, frame[columns])


def _shape(made_for: Mapping[str, Any]) -> str:
    return f"(n, {', '.join(map(str, made_for['shape']))})"


def _checked(source: str, x: Array, kind: str, made_for: Mapping[str, Any]) -> Array:
    if kind != made_for["kind"] or list(x.shape[1:]) != list(made_for["shape"]):
        raise InputError(
            f"{source}: this policy takes {made_for['kind']} of shape {_shape(made_for)}, got "
            f"{kind} of shape {tuple(x.shape)}: give inputs like those it was made for"
        )
    return x
