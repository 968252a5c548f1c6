"""Data in: what a data set is, and its four disjoint parts."""

import hashlib
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Literal

import numpy as np
from sklearn.model_selection import train_test_split

from pointsman.errors import InputError

Kind = Literal["features", "images", "text"]
Array = np.ndarray[Any, Any]

PARTS = ("train", "validation", "calibration", "test")
# Of n rows, the lesser of share * n and some + more * n leaves: small sets need a large share to
# promise anything, while in large ones further rows train more than they sharpen an estimate.
SHARES = {
    "test": (0.25, 1_000, 0.15),
    "calibration": (0.35, 500, 0.15),
    "validation": (0.2, 300, 0.05),
}
LEAST_ROWS, LEAST_ROWS_A_CLASS = 100, 8


@dataclass(frozen=True, eq=False)
class Part:
    """Inputs and labels that belong together.

    x is (n, d) float32 features, (n, H, W, C) uint8 images or (n, L + 1) uint8 text windows;
    y is (n,) int64 class indices, all zero for text, whose targets are its own next bytes.
    group, where the data set knows it, is the branch that each input needs.
    """

    x: Array
    y: Array
    group: Array | None = None

    def __len__(self) -> int:
        return len(self.x)

    def take(self, rows: Array) -> "Part":
        """The given rows, in that order."""
        return Part(self.x[rows], self.y[rows], None if self.group is None else self.group[rows])


@dataclass(frozen=True, eq=False)
class Dataset:
    """A data set as it came: whole, or with some of its parts already separate.

    given holds "train" (everything that is not otherwise given) and, if the source separates them,
    "validation", "calibration" and "test".
    """

    name: str
    kind: Kind
    given: Mapping[str, Part]
    classes: tuple[str, ...] = ()
    columns: tuple[str, ...] = ()
    note: str = ""
    stratify: bool = True
    source: Mapping[str, Any] = field(default_factory=dict)

    def fingerprint(self) -> str:
        """A digest of every value, by which a resumed run knows its data."""
        digest = hashlib.sha256(self.kind.encode())
        for name, part in sorted(self.given.items()):
            digest.update(name.encode())
            digest.update(np.ascontiguousarray(part.x).data)
            digest.update(np.ascontiguousarray(part.y).data)
        return digest.hexdigest()

    def example_shape(self) -> tuple[int, ...]:
        """The shape of one input."""
        return tuple(self.given["train"].x.shape[1:])


def split(data: Dataset, seed: int) -> dict[str, Part]:
    """The four disjoint parts, stratified by class; a given part is kept as it is.

    Raises:
        InputError: too few rows, in all or of one class, or only one class.
    """
    _check_size(data)
    parts = dict(data.given)
    for name, (share, some, more) in SHARES.items():
        if name in parts:
            continue
        rest = parts["train"]
        # every class takes at least one place in each part
        size = max(round(min(share * len(rest), some + more * len(rest))), len(data.classes))
        stay, leave = train_test_split(
            np.arange(len(rest)),
            test_size=size,
            random_state=seed,
            stratify=rest.y if data.stratify else None,
        )
        parts["train"], parts[name] = rest.take(np.sort(stay)), rest.take(np.sort(leave))
    return {name: parts[name] for name in PARTS}


def _check_size(data: Dataset) -> None:
    train = data.given["train"]
    empty = [name for name, part in data.given.items() if len(part) == 0 and name != "train"]
    if empty:
        raise InputError(
            f"{data.name}: the part {empty[0]} is given but has no rows: fill it or leave it out"
        )
    if len(train) < LEAST_ROWS:
        raise InputError(
            f"{data.name}: compare needs at least {LEAST_ROWS} labelled rows to train, validate, "
            f"calibrate and test on different ones, found {len(train)}: bring more rows"
        )
    if data.kind == "text":
        return
    counts = np.bincount(train.y, minlength=len(data.classes))
    target = data.source.get("target")
    where = "" if target is None else f" in the label column {target!r}"
    other = "" if target is None else ", or name another label column with --target"
    if np.count_nonzero(counts) < 2:
        raise InputError(
            f"{data.name}: at least two classes are needed to classify, found only "
            f"{data.classes[int(counts.argmax())]!r}{where}: bring rows of another class{other}"
        )
    if counts.min() < LEAST_ROWS_A_CLASS:
        rarest = int(counts.argmin())
        raise InputError(
            f"{data.name}: every class needs at least {LEAST_ROWS_A_CLASS} rows to appear in every "
            f"part, class {data.classes[rarest]!r}{where} has {counts[rarest]}: merge or leave out "
            "rare classes"
        )
