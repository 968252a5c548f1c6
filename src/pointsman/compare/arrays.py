"""Arrays: NPZ files with x_train and y_train."""

import math
import zipfile
from pathlib import Path
from typing import IO, Any

import numpy as np

from pointsman.compare.data import Array, Dataset, Kind, Part
from pointsman.compare.labels import FLOAT, classes_of
from pointsman.errors import InputError, reason

SAMPLED = ("x_train", "y_train")
BYTES_AT_ONCE = 1 << 24


def read_npz(path: Path, target: str | None, rows: int | None, seed: int) -> Dataset:
    """The data set of an .npz file; see `pointsman.compare.files.load`.

    Raises:
        InputError: as `read_arrays` and `image_or_features`, or arrays that do not belong together.
    """
    if target is not None:
        raise InputError(f"{path}: an .npz file has its labels in y_train: leave out --target")
    arrays = read_arrays(path, rows, seed)
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
    y, classes = classes_of(path, "y_train", np.concatenate(list(labels.values())))
    names = _named(arrays.get("classes"), classes)
    cut = np.split(y, np.cumsum([len(label) for label in labels.values()])[:-1])
    given = {name: Part(x, part) for (name, x), part in zip(parts.items(), cut, strict=True)}
    return Dataset(path.stem, kind, given, names)


def read_arrays(path: Path, rows: int | None = None, seed: int = 0) -> dict[str, Array]:
    """Every array of an .npz file; with `rows`, of x_train and y_train a uniform sample of rows.

    Raises:
        InputError: it is not an .npz file of plain arrays.
    """
    arrays: dict[str, Any] = {}
    try:
        with np.load(path, allow_pickle=False) as file, zipfile.ZipFile(path) as archive:
            keep = _drawn(archive, rows, seed)
            for name in file.files:
                sampled = keep is not None and name in SAMPLED
                arrays[name] = _rows_of(archive, name, keep) if sampled else file[name]
    except Exception as error:  # bytes of unknown origin fail in a dozen ways
        raise InputError(
            f"{path}: cannot be read as an .npz file of plain arrays ({reason(error)}): write it "
            "with numpy.savez"
        ) from error
    return {name: array for name, array in arrays.items() if isinstance(array, np.ndarray)}


def _drawn(archive: zipfile.ZipFile, rows: int | None, seed: int) -> Array | None:
    """Which rows to read, ascending; None for all, as where they are not so many."""
    if rows is None or not {f"{name}.npy" for name in SAMPLED} <= set(archive.namelist()):
        return None
    lengths = set()
    for name in SAMPLED:
        with archive.open(f"{name}.npy") as stream:
            shape, by_column, dtype = _header(stream)
        if by_column or dtype.hasobject or not shape:
            return None
        lengths.add(shape[0])
    if len(lengths) > 1 or min(lengths) <= rows:
        return None
    return np.sort(np.random.default_rng(seed).choice(min(lengths), rows, replace=False))


def _rows_of(archive: zipfile.ZipFile, name: str, keep: Array | None) -> Array:
    """Some rows of an array, of which no more than a few megabytes are in memory at once."""
    assert keep is not None
    with archive.open(f"{name}.npy") as stream:
        shape, _, dtype = _header(stream)
        size = dtype.itemsize * math.prod(shape[1:])
        step = max(1, BYTES_AT_ONCE // max(1, size))
        parts = []
        for start in range(0, shape[0], step):
            stop = min(start + step, shape[0])
            block = np.frombuffer(stream.read((stop - start) * size), dtype)
            first, last = np.searchsorted(keep, (start, stop))
            parts.append(block.reshape(stop - start, *shape[1:])[keep[first:last] - start])
    return np.concatenate(parts)


def _header(stream: IO[bytes]) -> tuple[tuple[int, ...], bool, np.dtype[Any]]:
    version = np.lib.format.read_magic(stream)
    if version == (1, 0):
        return np.lib.format.read_array_header_1_0(stream)
    return np.lib.format.read_array_header_2_0(stream)


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


def _named(given: Array | None, found: tuple[str, ...]) -> tuple[str, ...]:
    """Names for numeric labels 0..C-1 where the file brings them, all different."""
    if given is None or given.ndim != 1 or found != tuple(map(str, range(len(given)))):
        return found
    names = tuple(str(name) for name in given)
    return names if len(set(names)) == len(names) else found
