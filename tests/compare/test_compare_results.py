"""results.json: what is in it, and what is refused when it is read."""

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from pointsman.compare.results import as_json, read
from pointsman.errors import InputError

NUMBER = (int, float)
POINT = {"knob": str, "quality": NUMBER, "cost": NUMBER}
# What schema version 1 promises: key → type, a mapping of the same, or a list of one such.
SCHEMA: dict[str, Any] = {
    "schema": {"name": str, "version": int},
    "made_by": {
        "pointsman": str, "torch": str, "python": str, "threads": int, "date": str,
        "seconds": NUMBER, "seed": int, "command": str,
    },
    "data": {
        "name": str, "kind": str, "classes": [str], "note": str,
        "inputs": {"train": int, "validation": int, "calibration": int, "test": int},
    },
    "metric": {"name": str, "worst": NUMBER, "best": NUMBER, "higher_is_better": bool},
    "reference": {"name": str, "quality": NUMBER, "cost": NUMBER, "unit": str},
    "ladder": [{"name": str, **POINT}],
    "ways": [
        {
            "name": str, "title": str, "points": [POINT],
            "metrics": {"hypervolume": NUMBER, "aiq": NUMBER},
        }
    ],
    "random": {"points": [POINT]},
    "oracle": {"quality": NUMBER, "cost": NUMBER},
    "pick": {
        "way": str, "quality": NUMBER, "cost": NUMBER, "knob": str, "saved": NUMBER,
        "max_drop": NUMBER, "confidence": NUMBER, "certified": bool, "shares": dict,
        "reference_ms": NUMBER, "measured_ms": NUMBER,
    },
    "certificate": {
        "certified": bool, "max_drop": NUMBER, "confidence": NUMBER, "method": str, "knob": str,
        "inputs": int, "tested": int, "accepted": int, "p_value": NUMBER,
        "promised_drop": NUMBER, "observed_drop": NUMBER, "by_method": dict, "words": str,
    },
    "trained": [
        {
            "name": str, "way": str, "parameters": int, "epochs": int, "tflops": NUMBER,
            "seconds": NUMBER,
        }
    ],
}  # fmt: skip


def fits(value: Any, expected: Any, where: str = "results") -> None:
    if isinstance(expected, Mapping):
        assert isinstance(value, dict), where
        for key, below in expected.items():
            assert key in value, f"{where}.{key}"
            fits(value[key], below, f"{where}.{key}")
    elif isinstance(expected, list):
        assert isinstance(value, list), where
        for at, one in enumerate(value):
            fits(one, expected[0], f"{where}[{at}]")
    else:
        assert isinstance(value, expected), where
        assert not isinstance(value, bool) or expected is bool, where


@pytest.fixture(scope="module")
def results(finished_run: Path) -> dict[str, Any]:
    found: dict[str, Any] = json.loads((finished_run / "run" / "results.json").read_text())
    return found


def test_results_follow_the_schema(results: dict[str, Any]) -> None:
    fits(results, SCHEMA)
    assert results["schema"] == {"name": "pointsman-results", "version": 1}
    assert results["truth"] is None
    assert (
        results["certificate"]["more_inputs"] is None or results["certificate"]["more_inputs"] >= 0
    )


def test_results_agree_with_themselves(results: dict[str, Any]) -> None:
    pick, reference = results["pick"], results["reference"]
    assert pick["saved"] == 1 - pick["cost"] / reference["cost"]
    assert sum(pick["shares"].values()) == pytest.approx(1, abs=5e-4)
    ways = {way["name"]: way["points"] for way in results["ways"]}
    assert list(ways) == ["dense", "exits", "cascade", "skips", "moe", "nested"]
    picked = next(point for point in ways[pick["way"]] if point["knob"] == pick["knob"])
    assert (picked["quality"], picked["cost"]) == (pick["quality"], pick["cost"])
    members = {member["name"]: member for member in results["ladder"]}
    assert members[reference["name"]]["quality"] == reference["quality"]
    assert members[reference["name"]]["cost"] == reference["cost"]
    for point in ways["dense"]:
        assert members[point["knob"]]["quality"] == pytest.approx(point["quality"], abs=1e-12)
        assert members[point["knob"]]["cost"] == pytest.approx(point["cost"], rel=1e-12)
    assert sum(results["data"]["inputs"].values()) == 400
    assert results["certificate"]["knob"] == f"{pick['way']}: {pick['knob']}"
    assert results["certificate"]["inputs"] == results["data"]["inputs"]["calibration"]
    assert results["certificate"]["certified"] == pick["certified"]
    assert pick["cost"] < reference["cost"]


def test_numbers_are_in_their_ranges(results: dict[str, Any]) -> None:
    points = [point for way in results["ways"] for point in way["points"]] + results["ladder"]
    assert all(0 <= point["quality"] <= 1 and point["cost"] > 0 for point in points)
    assert results["oracle"]["quality"] >= results["reference"]["quality"]
    assert results["oracle"]["cost"] <= max(member["cost"] for member in results["ladder"])
    for way in results["ways"]:
        assert 0 <= way["metrics"]["hypervolume"] <= 1
        assert 0 <= way["metrics"]["aiq"] <= 1
        at_reference = way["metrics"]["cost_at_reference_quality"]
        best = max(point["quality"] for point in way["points"])
        assert (at_reference is None) == (best < results["reference"]["quality"])
    budget = max(one["tflops"] for one in results["trained"] if one["way"] == "ladder")
    assert all(one["tflops"] <= 1.5 * budget or one["epochs"] == 1 for one in results["trained"])


def test_all_files_are_there_and_nothing_else(finished_run: Path) -> None:
    names = sorted(path.name for path in (finished_run / "run").iterdir())
    assert names == ["frontier.png", "frontier.svg", "policy", "report.html", "results.json"]


def test_the_file_holds_what_as_json_gives(finished_run: Path) -> None:
    file = finished_run / "run" / "results.json"
    assert as_json(read(file)) == as_json(read(file.parent)) == file.read_text()


def test_numbers_of_numpy_become_plain_and_nan_is_refused() -> None:
    assert json.loads(as_json({"a": np.float64(0.5), "b": np.int32(3)})) == {"a": 0.5, "b": 3}
    with pytest.raises(ValueError, match=r"not JSON compliant"):
        as_json({"a": float("nan")})
    with pytest.raises(TypeError, match=r"set has no place in results.json"):
        as_json({"a": set()})


@pytest.mark.parametrize(
    ("text", "what"),
    [
        ("", "this is not a results.json"),
        ("[]", "this is not a results.json"),
        ('{"schema": 3}', "this is not a results.json"),
        ('{"schema": {"name": "pointsman-results"}}', "this is not a results.json"),
        ('{"schema": {"name": "other", "version": 1}}', "its schema is 'other' version 1"),
        ('{"schema": {"name": "pointsman-results", "version": "1"}}', "version '1'"),
        ('{"schema": {"name": "pointsman-results", "version": 1}, "a": NaN}', "not a results.json"),
        ('{"schema": {"name": "pointsman-results", "version": 2}}', "install a newer pointsman"),
        ("[" * 100_000, "this is not a results.json"),
        ("\xff", "this is not a results.json"),
    ],
)
def test_what_are_no_results_is_refused(text: str, what: str, tmp_path: Path) -> None:
    (tmp_path / "results.json").write_bytes(text.encode("latin-1"))
    for path in (tmp_path, tmp_path / "results.json"):
        with pytest.raises(InputError, match=what):
            read(path)


def test_results_that_are_not_there_are_refused(tmp_path: Path) -> None:
    for path in (tmp_path, tmp_path / "gone", Path("/dev/null/x")):
        with pytest.raises(InputError, match=r"cannot be read"):
            read(path)
