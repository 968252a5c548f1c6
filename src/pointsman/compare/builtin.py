"""Data sets that are always there: bundled, generated, or read from the running Python."""

import sysconfig
from collections.abc import Callable
from pathlib import Path

import numpy as np
from sklearn.datasets import load_digits

from pointsman.compare.data import Array, Dataset, Part

CONTEXT = 128  # bytes of text that a language model sees
TEXT_WINDOWS = {"train": 10_000, "validation": 1_000, "calibration": 2_000, "test": 2_000}


def digits() -> Dataset:
    """8x8 handwritten digits, 1,797 rows of 64 features, bundled with scikit-learn."""
    bundle = load_digits()
    whole = Part(bundle.data.astype(np.float32), bundle.target.astype(np.int64))
    columns = tuple(str(name) for name in bundle.feature_names)
    return Dataset("digits", "features", {"train": whole}, _numbered(10), columns)


def mnist1d(rows: int = 8_000, length: int = 40, seed: int = 0) -> Dataset:
    """One-dimensional digits in the style of MNIST-1D (Greydanus 2020, arXiv 2011.14439).

    Ten smooth templates of our own, one a class, are stretched, scaled, sheared, moved and buried
    in smooth noise: easy to draw, hard for small networks.
    """
    rng = np.random.default_rng(seed)
    grid = np.linspace(0, 1, 12)
    templates = np.stack(
        [
            np.interp(grid, np.linspace(0, 1, 6), np.random.default_rng(100 + c).normal(size=6))
            for c in range(10)
        ]
    )
    templates /= np.abs(templates).max(axis=1, keepdims=True)
    y = rng.permutation(np.arange(rows) % 10)
    position = np.arange(length)[None, :]
    span = rng.uniform(12, 26, size=(rows, 1))
    start = rng.uniform(0, 1, size=(rows, 1)) * (length - span)
    place = (position - start) / span  # 0..1 inside the pattern
    inside = (place >= 0) & (place <= 1)
    cell = np.clip(place, 0, 1) * 11
    low = np.minimum(cell.astype(int), 10)
    shape = templates[y]
    left = np.take_along_axis(shape, low, axis=1)
    right = np.take_along_axis(shape, low + 1, axis=1)
    signal = (left + (right - left) * (cell - low)) * inside
    signal = signal * rng.uniform(0.6, 1.6, size=(rows, 1))
    signal += rng.normal(0, 0.3, size=(rows, 1)) * (position / length - 0.5)
    noise = rng.normal(size=(rows, length + 4))
    smooth = np.stack([noise[:, i : i + length] for i in range(5)]).mean(axis=0)
    x = (signal + 0.35 * smooth + 0.02 * noise[:, :length]).astype(np.float32)
    columns = tuple(f"t{i}" for i in range(length))
    return Dataset("mnist1d", "features", {"train": Part(x, y)}, _numbered(10), columns)


def known_routes(rows: int = 8_000, seed: int = 0) -> Dataset:
    """A task whose best routing is known: seven inputs in ten are easy, and say so.

    Feature 0 tells the group. Easy inputs (-1) take the sign of a sum, which the smallest network
    gets right; hard ones (+1) take the sign of a product of three features, which needs a larger.
    """
    rng = np.random.default_rng(seed)
    hard = rng.random(rows) < 0.3
    signs = rng.choice([-1.0, 1.0], size=(rows, 9))
    x = signs * rng.uniform(0.3, 1.5, size=(rows, 9))
    easy_label = x[:, 0] + x[:, 1] > 0
    hard_label = x[:, 2] * x[:, 3] * x[:, 4] > 0
    y = np.where(hard, hard_label, easy_label).astype(np.int64)
    x = np.column_stack([np.where(hard, 1.0, -1.0), x]).astype(np.float32)
    columns = ("group", *(f"x{i}" for i in range(9)))
    part = Part(x, y, hard.astype(np.int64))
    return Dataset(
        "known-routes",
        "features",
        {"train": part},
        ("negative", "positive"),
        columns,
        note="30% of the inputs need a larger network, and feature 'group' says which",
    )


def text(seed: int = 0) -> Dataset:
    """Windows of the running Python's own library sources: bytes in, the next byte out.

    Training windows come from other files than the rest; the held-out windows are shuffled before
    they are parted, so that calibration and test are exchangeable.
    """
    library = Path(sysconfig.get_path("stdlib"))
    files = sorted(path for path in library.rglob("*.py") if "site-packages" not in path.parts)
    rng = np.random.default_rng(seed)
    files = [files[i] for i in rng.permutation(len(files))]
    held = len(files) // 5
    held_out = _windows(files[:held], CONTEXT + 1)
    training = _windows(files[held:], CONTEXT + 1)
    held_out = held_out[rng.permutation(len(held_out))]
    training = training[rng.permutation(len(training))][: TEXT_WINDOWS["train"]]
    given, start = {"train": _text_part(training)}, 0
    for name in ("validation", "calibration", "test"):
        given[name] = _text_part(held_out[start : start + TEXT_WINDOWS[name]])
        start += TEXT_WINDOWS[name]
    note = f"{len(training) * (CONTEXT + 1) / 1e6:.1f} MB of library sources to train on"
    return Dataset("text", "text", given, note=note, stratify=False)


BUILTIN: dict[str, Callable[[], Dataset]] = {
    "digits": digits,
    "mnist1d": mnist1d,
    "text": text,
    "known-routes": known_routes,
}


def _numbered(count: int) -> tuple[str, ...]:
    return tuple(str(i) for i in range(count))


def _windows(files: list[Path], size: int) -> Array:
    stream = b"\n".join(path.read_bytes() for path in files)
    usable = len(stream) // size * size
    return np.frombuffer(stream[:usable], dtype=np.uint8).reshape(-1, size)


def _text_part(windows: Array) -> Part:
    return Part(np.ascontiguousarray(windows), np.zeros(len(windows), dtype=np.int64))
