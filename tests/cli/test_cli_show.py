"""`pointsman show`: the table of an earlier run."""

import json
import random
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest


def test_the_table_is_printed_again(finished_run: Path, pointsman: Callable[..., Any]) -> None:
    folder = finished_run / "run"
    ran = pointsman("show", folder)
    assert (ran.code, ran.err) == (0, "")
    results = json.loads((folder / "results.json").read_text())
    assert f"reference: {results['reference']['name']}" in ran.out
    for way in results["ways"]:
        assert way["title"] in ran.out
    assert pointsman("show", folder / "results.json").out == ran.out


def test_json_prints_the_file(finished_run: Path, pointsman: Callable[..., Any]) -> None:
    folder = finished_run / "run"
    assert pointsman("show", folder, "--json").out == (folder / "results.json").read_text()


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda text: text.replace('"version": 1', '"version": 7', 1), "install a newer pointsman"),
        (lambda text: text[:-30], "this is not a results.json"),
        (lambda text: "{}", "this is not a results.json"),
        (lambda text: text.replace("pointsman-results", "else"), "its schema is 'else'"),
        (lambda text: text.replace('"ways"', '"weighs"'), "ways"),
    ],
)
def test_results_that_cannot_be_read_are_refused(
    change: Callable[[str], str], message: str, own_run: Path, refused: Callable[..., str]
) -> None:
    file = own_run / "run" / "results.json"
    file.write_text(change(file.read_text()))
    assert message in refused("show", file)


def test_a_file_that_is_not_there_is_refused(tmp_path: Path, refused: Callable[..., str]) -> None:
    assert "cannot be read" in refused("show", tmp_path)
    assert "cannot be read" in refused("show", "/dev/null/x")


def leaves(value: Any, path: tuple[Any, ...] = ()) -> list[tuple[Any, ...]]:
    if not isinstance(value, dict | list):
        return [path]
    below = value.items() if isinstance(value, dict) else enumerate(value)
    return [path, *(leaf for key, part in below for leaf in leaves(part, (*path, key)))]


def test_any_damage_is_refused_or_shown_but_never_breaks(
    own_run: Path, pointsman: Callable[..., Any]
) -> None:
    file = own_run / "run" / "results.json"
    results = json.loads(file.read_text())
    rng = random.Random(0)
    for path in rng.sample(leaves(results)[1:], 60):
        damaged = json.loads(json.dumps(results))
        part = damaged
        for key in path[:-1]:
            part = part[key]
        part[path[-1]] = rng.choice([None, "text", -1, [], {}, 1e308, True])
        file.write_text(json.dumps(damaged))
        ran = pointsman("show", file)  # an exception that escapes would fail here
        assert ran.code in (0, 2), (path, ran)
        assert ran.code == 0 or ran.err.count("\n") == 1
