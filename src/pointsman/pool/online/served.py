"""The served log as columns, and reading one from a file.

Legend: N rows, M models.
"""

import json
import math
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from pointsman.errors import InputError
from pointsman.pool.online.bandit import Array

Row = Mapping[str, Any]


@dataclass(frozen=True, eq=False)
class Served:
    """Rows of a served log that can be looked back on.

    Args:
        queries: N texts.
        tasks: N names, "" where there is none.
        chosen: (N,) column of the model that was asked first.
        propensity: (N,) with which it was.
        propensities: (N, M) of every model to be asked first and its answer given, NaN in rows
            that do not have them.
        outright: (N,) bool, whether the answer was given whatever it was; False where it was
            judged first, and the quality may be that of another model's answer.
        quality: (N,) by feedback, NaN where there is none.
        cost: (N,) NaN where it is not known.
        left_out: why rows were left out, in words, to how many.
    """

    queries: tuple[str, ...]
    tasks: tuple[str, ...]
    chosen: npt.NDArray[np.int64]
    propensity: Array
    propensities: Array
    outright: npt.NDArray[np.bool_]
    quality: Array
    cost: Array
    left_out: Mapping[str, int]

    def __len__(self) -> int:
        """Number of rows N."""
        return len(self.queries)


def read_jsonl(path: Path) -> Iterator[Row]:
    """The rows of a file with one JSON object a line; blank lines are left aside.

    Raises:
        InputError: the file cannot be read, or a line is no JSON object.
    """
    try:
        with path.open(encoding="utf-8") as file:
            for number, line in enumerate(file, 1):
                if not line.strip():
                    continue
                try:
                    row = json.loads(line)
                except ValueError as error:
                    raise InputError(
                        f"{path}, line {number}: no JSON ({error}): one object a line is wanted"
                    ) from error
                if not isinstance(row, dict):
                    raise InputError(f"{path}, line {number}: a JSON object is wanted")
                yield row
    except OSError as error:
        raise InputError(f"{path}: cannot be read ({error.strerror})") from error
    except UnicodeDecodeError as error:
        raise InputError(f"{path}: is not UTF-8 text ({error.reason})") from error


def columns(rows: Iterable[Row], models: Sequence[str]) -> Served:
    """The rows of which something can be said, with how many were left out and why.

    Raises:
        InputError: no row is left, or a row has a propensity, quality or cost that is none.
    """
    place = {name: at for at, name in enumerate(models)}
    kept: list[Row] = []
    left_out: dict[str, int] = {}
    for row in rows:
        why = _unusable(row, place)
        if why:
            left_out[why] = left_out.get(why, 0) + 1
        else:
            kept.append(row)
    if not kept:
        reasons = "; ".join(f"{count:,} {why}" for why, count in left_out.items())
        raise InputError(f"the served log has no row to replay ({reasons or 'it is empty'})")
    return Served(
        queries=tuple(row["query"] for row in kept),
        tasks=tuple(str(row.get("task") or "") for row in kept),
        chosen=np.array([place[row["model"]] for row in kept], dtype=np.int64),
        propensity=np.array([_number(row, "propensity", 0.0, 1.0) for row in kept]),
        propensities=np.array([_every(row, place) for row in kept]),
        outright=np.array([row.get("how") != "cascade" for row in kept]),
        quality=np.array([_number(row, "quality", 0.0, 1.0) for row in kept]),
        cost=np.array([_number(row, "cost", 0.0, math.inf) for row in kept]),
        left_out=left_out,
    )


def _unusable(row: Row, place: Mapping[str, int]) -> str:
    """Why nothing can be said of a row; empty where something can."""
    if not isinstance(row.get("query"), str):
        return "without the text of the query: serve with texts logged"
    if row.get("model") not in place:
        return "answered by a model that the policy does not have"
    if row.get("propensity") is None:
        return "without a propensity, as requests for one model by name are"
    return ""


def _number(row: Row, name: str, low: float, high: float) -> float:
    """A cell as a number; NaN where there is none."""
    cell = row.get(name)
    if cell is None:
        return math.nan
    try:
        value = float(cell)
    except (TypeError, ValueError):
        value = math.inf
    if math.isnan(value):
        return value
    if not low <= value <= high or math.isinf(value) or (name == "propensity" and value == 0):
        raise InputError(
            f"request {row.get('id')!r}: {name} must lie in [{low:g}, {high:g}]"
            f"{' and above 0' if name == 'propensity' else ''}, got {cell!r}"
        )
    return value


def _every(row: Row, place: Mapping[str, int]) -> list[float]:
    """Propensities of all models, from a mapping or its JSON; NaN where they are not given."""
    found = row.get("propensities")
    if isinstance(found, str):
        try:
            found = json.loads(found)
        except ValueError:
            found = None
    if not isinstance(found, Mapping):
        return [math.nan] * len(place)
    return [_number({"id": row.get("id"), "p": found.get(m, 0.0)}, "p", 0.0, 1.0) for m in place]
