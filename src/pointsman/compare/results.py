"""What a comparison found, as results.json: schema version 1, described in docs/report.md."""

import json
import platform
import shutil
from collections.abc import Mapping, Sequence
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, Protocol

import numpy as np
import torch

from pointsman import __version__
from pointsman.compare.metric import Metric
from pointsman.errors import InputError
from pointsman.frontier import Frontier, Pick, Point, aiq, chart, report
from pointsman.writing import write_atomically

SCHEMA, VERSION = "pointsman-results", 1
RESULTS, REPORT, POLICY = "results.json", "report.html", "policy"
MADE = (POLICY, "frontier.png", "frontier.svg", REPORT, RESULTS)


class Kept(Protocol):
    """A policy that can be written into a folder of its own."""

    def save(self, folder: Path) -> Any:
        """Write it there."""


def assemble(
    *,
    data: Mapping[str, Any],
    request: Any,
    metric: Metric,
    unit: str,
    ladder: Sequence[Point],
    reference: Point,
    fronts: Sequence[Frontier],
    ways: Sequence[str],
    random: Sequence[Point],
    oracle: Point,
    pick: Pick,
    used: Mapping[str, Any],
    trained: Sequence[Mapping[str, Any]],
    words: str | None = None,
) -> dict[str, Any]:
    """The results as plain JSON values. All qualities and costs are means over the test part.

    `data` holds name, kind, inputs per part, classes and note; `words` stand instead of the
    certificate's own.
    """
    way, knob = str(pick.knob).split(": ", 1)
    front = fronts[list(ways).index(way)]
    picked = next(point for point in front.points if point.knob == pick.knob)
    sent_on = used.get("sent_on")
    return {
        "schema": {"name": SCHEMA, "version": VERSION},
        "made_by": {
            "pointsman": __version__,
            "torch": torch.__version__,
            "python": platform.python_version(),
            "threads": torch.get_num_threads(),
            "date": datetime.now(UTC).isoformat(timespec="seconds"),
            "seconds": 0.0,
            "seed": request.seed,
            "command": request.command,
        },
        "data": dict(data),
        "metric": {
            "name": metric.name,
            "worst": metric.worst,
            "best": metric.best,
            "higher_is_better": metric.best > metric.worst,
        },
        "reference": {
            "name": reference.knob,
            "quality": reference.quality,
            "cost": reference.cost,
            "unit": unit,
        },
        "ladder": [{"name": point.knob, **_point(point)} for point in ladder],
        "ways": [
            {
                "name": name,
                "title": front.name,
                "points": [_point(point, strip=f"{name}: ") for point in front.points],
                "metrics": _metrics(front, reference, ladder),
            }
            for name, front in zip(ways, fronts, strict=True)
        ],
        "random": {"points": [_point(point) for point in random]},
        "oracle": {"quality": oracle.quality, "cost": oracle.cost},
        "pick": {
            "way": way,
            "knob": knob,
            "quality": picked.quality,
            "cost": picked.cost,
            "saved": 1 - picked.cost / reference.cost,
            "max_drop": request.max_drop,
            "confidence": request.confidence,
            "certified": pick.certificate.certified,
            **{key: value for key, value in used.items() if key != "sent_on"},
        },
        "certificate": {**pick.certificate.to_dict(), "words": words or pick.certificate.words()},
        "trained": list(trained),
        "truth": None if sent_on is None else {"sent_on": sent_on},
    }


def _point(point: Point, strip: str = "") -> dict[str, Any]:
    knob = str(point.knob).removeprefix(strip)
    return {"knob": knob, "quality": point.quality, "cost": point.cost}


def _metrics(front: Frontier, reference: Point, ladder: Sequence[Point]) -> dict[str, Any]:
    """Area metrics over one range of cost for all ways: from the cheapest member to the reference.

    hypervolume is the share of the rectangle between that range and the qualities 0 to 1.
    """
    low, high = min(point.cost for point in ladder), reference.cost
    found: dict[str, Any] = {
        "hypervolume": front.hypervolume(worst_quality=0.0, worst_cost=high) / high,
        "cost_at_reference_quality": None,
        "aiq": None,
    }
    if high > low:
        found["aiq"] = aiq(front, min_cost=low, max_cost=high)
    if max(point.quality for point in front.points) >= reference.quality:
        found["cost_at_reference_quality"] = front.cost_at(reference.quality)
    return found


def write(found: Mapping[str, Any], policy: Kept, out: Path) -> None:
    """Write the page, the chart, the policy and the results: all beside, then moved in, or nothing.

    Raises:
        InputError: the folder cannot be written.
    """
    fresh = out / ".part"
    try:
        shutil.rmtree(fresh, ignore_errors=True)
        fresh.mkdir(parents=True)
        policy.save(fresh / POLICY)
        chart.save(found, fresh)
        report.write(found, fresh / REPORT)
        write_atomically(fresh / RESULTS, as_json(found))
        shutil.rmtree(out / POLICY, ignore_errors=True)
        for made in sorted(fresh.iterdir(), key=lambda path: path.name == RESULTS):
            made.replace(out / made.name)
    except OSError as error:
        raise InputError(f"{out}: results cannot be written there ({error.strerror})") from error
    finally:
        shutil.rmtree(fresh, ignore_errors=True)


def refuse_foreign(out: Path) -> None:
    """Keep what others wrote under the names of results.

    Raises:
        InputError: such a file or folder is there, and no results that explain it.
    """
    there = [name for name in MADE if (out / name).exists()]
    if there:
        try:
            read(out)
        except InputError as error:
            raise InputError(
                f"{out}: {there[0]} is there and was not written by pointsman compare: choose "
                "another --out"
            ) from error


def as_json(found: Mapping[str, Any]) -> str:
    """The results as text; NumPy numbers become plain ones, and NaN is refused."""
    return json.dumps(found, indent=1, allow_nan=False, default=_plain) + "\n"


def _refuse_constant(word: str) -> Any:
    raise ValueError(f"JSON has no {word}")


def _plain(value: Any) -> Any:
    if isinstance(value, np.generic):
        return value.item()
    raise TypeError(f"{type(value).__name__} has no place in results.json")


def read(path: Path) -> dict[str, Any]:
    """The results of an earlier run, from results.json or the folder that holds it.

    Raises:
        InputError: the file is not there, not results, or of a newer version.
    """
    file = path / RESULTS if path.is_dir() else path
    try:
        found = json.loads(file.read_bytes(), parse_constant=_refuse_constant)
        schema = found["schema"]
        name, version = schema["name"], schema["version"]
    except OSError as error:
        raise InputError(f"{file}: cannot be read ({error.strerror})") from error
    except (ValueError, KeyError, TypeError, RecursionError) as error:
        raise InputError(
            f"{file}: this is not a results.json of pointsman compare: run compare again"
        ) from error
    if name != SCHEMA or type(version) is not int:
        raise InputError(
            f"{file}: this is not a results.json of pointsman compare, its schema is {name!r} "
            f"version {version!r}"
        )
    if version > VERSION:
        raise InputError(
            f"{file}: the results have version {version}, this pointsman reads up to {VERSION}: "
            "install a newer pointsman"
        )
    result: dict[str, Any] = found
    return result
