"""`pointsman compare`: every bad input is one clear line, exit code 2, and nothing left behind."""

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest

from pointsman.compare.files import LARGE

pytestmark = pytest.mark.usefixtures("quick")


@pytest.fixture(autouse=True)
def here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """An empty working folder."""
    monkeypatch.chdir(tmp_path)
    return tmp_path


@pytest.fixture
def table(make_table: Callable[..., Any]) -> pd.DataFrame:
    frame: pd.DataFrame = make_table(rows=200)
    return frame


def files() -> set[str]:
    return {str(path) for path in Path().rglob("*")}


def holed(table: pd.DataFrame, cell: Any) -> pd.DataFrame:
    table = table.astype({"f3": object}) if isinstance(cell, str) else table
    table.loc[4, "f3"] = cell
    return table


TABLES: dict[str, tuple[Callable[[pd.DataFrame], pd.DataFrame], str]] = {
    "missing value": (lambda t: holed(t, np.nan), "column 'f3' has nan in data row 5"),
    "infinity": (lambda t: holed(t, np.inf), "column 'f3' has inf in data row 5"),
    "too large": (lambda t: holed(t, 1e200), "column 'f3' has 1e+200 in data row 5"),
    "text": (lambda t: holed(t, "red"), "column 'f3' has the text 'red' in data row 5"),
    "one class": (lambda t: t.assign(label=1), "found only '1' in the label column 'label'"),
    "ten rows": (lambda t: t.head(10), "at least 100 labelled rows"),
    "no rows": (lambda t: t.head(0), "at least 100 labelled rows"),
    "a rare class": (lambda t: t.assign(label=np.arange(200) // 197), "has 3: merge or leave"),
    "a number to predict": (lambda t: t.assign(label=t["f0"]), "looks like a number to predict"),
    "labels missing": (
        lambda t: t.assign(label=t["label"].where(t.index > 0)),
        "column 'label' has none in data row 1",
    ),
    "label alone": (lambda t: t[["label"]], "a table needs feature columns"),
}  # fmt: skip


@pytest.mark.parametrize("suffix", ["csv", "parquet"])
@pytest.mark.parametrize("what", TABLES)
def test_a_bad_table_is_refused(
    what: str, suffix: str, table: pd.DataFrame, refused: Callable[..., str]
) -> None:
    change, message = TABLES[what]
    bad = change(table)
    if suffix == "csv":
        bad.to_csv("bad.csv", index=False)
    else:
        if what == "text":
            bad = bad.assign(f3=bad["f3"].astype(str).str.replace("-", ""))
            message = "column 'f3' has the text 'red'"
        bad.to_parquet("bad.parquet")
    before = files()
    line = refused("compare", f"bad.{suffix}", "--out", "new/out")
    assert message in line
    assert line.startswith("bad")
    assert files() == before


def images(**changes: Any) -> dict[str, Any]:
    x = np.zeros((120, 8, 8, 3), np.uint8)
    return {"x_train": x, "y_train": np.arange(120) % 2, **changes}


@pytest.mark.parametrize(
    ("arrays", "message"),
    [
        (images(x_train=np.full((120, 2), np.nan)), "x_train has nan in row 0, column 0"),
        (images(x_train=np.full((120, 2), -np.inf)), "x_train has -inf in row 0, column 0"),
        (images(y_train=np.zeros(7)), "x_train and y_train must be equally long, got 120 and 7"),
        (images(x_train=np.zeros((120, 3, 32, 32), np.uint8)), "images are NHWC"),
        (images(y_train=np.zeros(120)), "at least two classes"),
        (images(x_test=np.zeros((2, 8, 8, 3), np.uint8), y_test=np.array([0, 9])), "class '9'"),
        (images(x_test=np.zeros((0, 8, 8, 3), np.uint8), y_test=np.zeros(0)), "has no rows"),
        (images(x_train=np.array([{}] * 120)), "plain arrays"),
        ({"x": np.zeros(3)}, "x_train is not there"),
    ],
)
def test_bad_arrays_are_refused(
    arrays: dict[str, Any], message: str, refused: Callable[..., str]
) -> None:
    np.savez("bad.npz", **arrays)
    assert message in refused("compare", "bad.npz")
    assert files() == {"bad.npz"}


def test_what_is_no_data_is_refused(refused: Callable[..., str]) -> None:
    Path("empty.csv").touch()
    Path("latin.csv").write_bytes("größe,y\n1,2\n".encode("latin-1"))
    Path("twice.csv").write_text("a,a,y\n1,2,3\n")
    Path("fake.npz").write_text("no archive")
    with Path("sparse.csv").open("wb") as file:
        file.truncate(2 * LARGE)
    before = files()
    for source, message in {
        "gone.csv": "there is no such file",
        "unknown": "neither a built-in data set (digits, mnist1d, text, known-routes)",
        "empty.csv": "not a table with a header line",
        "latin.csv": "is read as UTF-8",
        "twice.csv": "column names must differ, 'a' is there twice",
        "fake.npz": "cannot be read as an .npz file",
    }.items():
        assert message in refused("compare", source)
    line = refused("compare", "sparse.csv")
    for part in ("2.0 GiB", "memory", "minutes", "--rows", "--large"):
        assert part in line
    assert files() == before


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["--target", "f9"], "there is no column 'f9'; the columns are f0, f1"),
        (["--max-drop", 0], "--max-drop lies between 0 and 1, got 0"),
        (["--max-drop", 1], "--max-drop lies between 0 and 1, got 1"),
        (["--max-drop", -1], "--max-drop lies between 0 and 1, got -1"),
        (["--max-drop", "nan"], "--max-drop lies between 0 and 1, got nan"),
        (["--confidence", 1], "--confidence lies between 0 and 1, got 1"),
        (["--ways", "exits,magic"], "--ways takes one or more of exits,cascade,skips,moe,nested"),
        (["--ways", ","], "got none"),
        (["--ways", "moe, moe"], "--ways takes every way once"),
        (["--seed", -1], "--seed is a whole number from 0"),
        (["--rows", 0], "--rows takes a number of at least 1, got 0"),
        (["--rows", 50], "found 50: bring more rows"),
        (["--resume"], "there is no unfinished run to resume"),
        (["--out", "data.csv"], "results cannot be written there"),
        (["--out", "/dev/null/x"], "results cannot be written there"),
    ],
)
def test_a_bad_option_is_refused(
    words: list[object], message: str, table: pd.DataFrame, refused: Callable[..., str]
) -> None:
    table.to_csv("data.csv", index=False)
    content = Path("data.csv").read_bytes()
    assert message in refused("compare", "data.csv", *words)
    assert files() == {"data.csv"}
    assert Path("data.csv").read_bytes() == content


@pytest.mark.parametrize(
    "words",
    [
        ["data.csv", "--max-drop", "much"],
        ["data.csv", "--cost", "euros"],
        ["data.csv", "--unknown"],
        ["data.csv", "--rows", "3.5"],
        [],
        ["data.csv", "more.csv"],
    ],
)
def test_a_command_that_cannot_be_parsed_shows_its_usage(
    words: list[str], pointsman: Callable[..., Any]
) -> None:
    ran = pointsman("compare", *words)
    assert ran.code == 2
    assert "Usage: " in ran.err
    assert "Error: " in ran.err
    assert files() == set()


def test_a_comparison_prints_its_table_and_where_the_rest_is(
    table: pd.DataFrame, pointsman: Callable[..., Any]
) -> None:
    table.to_csv("my [red] data.csv", index=False)
    ran = pointsman("compare", "my [red] data.csv", "--max-drop", 0.2)
    assert ran.code == 0
    assert "reference: mlp" in ran.out
    assert "The pick, " in ran.out
    assert "my [red] data: 200 rows of features, label column 'label'" in ran.err
    folder = Path("pointsman-my [red] data")
    assert f"report: {folder}/report.html   policy: {folder}/policy" in ran.err
    found = json.loads((folder / "results.json").read_text())
    command = "pointsman compare 'my [red] data.csv' --max-drop 0.2"
    assert found["made_by"]["command"] == command


def test_json_is_results_json(table: pd.DataFrame, pointsman: Callable[..., Any]) -> None:
    table.to_csv("data.csv", index=False)
    ran = pointsman("compare", "data.csv", "--json", "--ways", " moe , cascade")
    assert ran.code == 0
    assert ran.out == Path("pointsman-data/results.json").read_text()
    assert [way["name"] for way in json.loads(ran.out)["ways"]] == ["dense", "moe", "cascade"]


def test_text_is_compared_in_bits_per_byte_by_networks_that_windows_leave_early(
    pointsman: Callable[..., Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("pointsman.compare.builtin.CONTEXT", 8)
    windows = {"train": 100, "validation": 10, "calibration": 10, "test": 10}
    monkeypatch.setattr("pointsman.compare.builtin.TEXT_WINDOWS", windows)
    ran = pointsman("compare", "text", "--ways", "exits")
    assert ran.code == 0
    assert "bits" in ran.out
    assert "Early exits of one network" in ran.out


def test_an_unfinished_run_waits_for_resume(
    table: pd.DataFrame,
    pointsman: Callable[..., Any],
    refused: Callable[..., str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    table.to_csv("data.csv", index=False)
    with monkeypatch.context() as patch:
        patch.setattr("pointsman.compare.run.answer_all", lambda *_: interrupt())
        ran = pointsman("compare", "data.csv", "--seed", 3)
    assert ran.code == 130
    assert "stopped; pointsman compare data.csv --seed 3 --resume continues" in ran.err
    again = refused("compare", "data.csv", "--seed", 3)
    assert "holds an unfinished run: add --resume to continue it" in again
    other = refused("compare", "data.csv", "--resume", "--max-drop", 0.5)
    assert "the unfinished run differs in max_drop, seed" in other
    assert "pointsman compare data.csv --seed 3" in other
    table.assign(f0=1.0).to_csv("data.csv", index=False)
    assert "differs in data" in refused("compare", "data.csv", "--resume", "--seed", 3)
    table.to_csv("data.csv", index=False)
    assert pointsman("compare", "./data.csv", "--resume", "--seed", 3, "--json").code == 0
    assert not Path("pointsman-data/unfinished").exists()


def interrupt() -> None:
    raise KeyboardInterrupt


def test_a_run_stopped_before_anything_is_kept_promises_nothing(
    table: pd.DataFrame, pointsman: Callable[..., Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    table.to_csv("data.csv", index=False)
    monkeypatch.setattr("pointsman.compare.run.fit", lambda *_, **__: interrupt())
    ran = pointsman("compare", "data.csv")
    assert ran.code == 130
    assert ran.err.endswith("stopped\n")
    assert files() == {"data.csv"}


def test_a_killed_run_can_be_resumed(table: pd.DataFrame, pointsman: Callable[..., Any]) -> None:
    table.to_csv("data.csv", index=False)
    code = (
        "import time, pointsman.compare.run as run; from pointsman.cli.main import main\n"
        "fit = run.fit\n"
        "def slow(*a, name, **k):\n"
        "    if name == 'mlp 64-64': print('now', flush=True); time.sleep(60)\n"
        "    return fit(*a, name=name, **k)\n"
        "run.fit = slow; main()"
    )
    words = [sys.executable, "-c", code, "compare", "data.csv", "--ways", "cascade"]
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    with subprocess.Popen(words, stdout=subprocess.PIPE, env=environment) as run:
        assert run.stdout is not None
        assert run.stdout.readline() == b"now\n"
        run.send_signal(signal.SIGKILL)
    left = sorted(path.name for path in Path("pointsman-data").rglob("*") if path.is_file())
    assert left == [".lock", "mlp_24.pt", "mlp_8.pt", "request.json"]
    ran = pointsman("compare", "data.csv", "--ways", "cascade", "--resume")
    assert ran.code == 0
    assert not list(Path("pointsman-data").glob(".*"))


def test_two_runs_do_not_share_a_folder(table: pd.DataFrame, refused: Callable[..., str]) -> None:
    from pointsman.compare.state import State

    table.to_csv("data.csv", index=False)
    start = time.monotonic()
    with State(Path("out")).claimed():
        assert "another run is writing here" in refused("compare", "data.csv", "--out", "out")
    assert time.monotonic() - start < 60
