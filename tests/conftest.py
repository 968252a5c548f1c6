"""Comparisons small enough for tests: few epochs, a short ladder, one thread, no chart."""

import shutil
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import pytest


@dataclass(frozen=True)
class Ran:
    """What a command line did."""

    code: int
    out: str
    err: str


@pytest.fixture
def pointsman(monkeypatch: pytest.MonkeyPatch) -> Callable[..., Ran]:
    """Runs the command in this process; an exception that escapes it fails the test."""
    from click.testing import CliRunner

    from pointsman.cli.main import cli

    def run(*words: object) -> Ran:
        asked = [str(word) for word in words]
        monkeypatch.setattr("sys.argv", ["pointsman", *asked])
        result = CliRunner().invoke(cli, asked, catch_exceptions=False)
        return Ran(result.exit_code, result.stdout, result.stderr)

    return run


@pytest.fixture
def refused(pointsman: Callable[..., Ran]) -> Callable[..., str]:
    """Runs a command that must be refused in exactly one line, which it gives."""

    def run(*words: object) -> str:
        ran = pointsman(*words)
        assert ran.code == 2, ran
        assert ran.out == ""
        assert ran.err.count("\n") == 1, ran.err
        assert ran.err.startswith("pointsman: "), ran.err
        return ran.err.removeprefix("pointsman: ").rstrip("\n")

    return run


@pytest.fixture(scope="session")
def make_table() -> Callable[..., Any]:
    """Makes a pandas table of features f0, f1, ... and a column label that follows them."""
    import numpy as np
    import pandas as pd

    def make(rows: int = 400, features: int = 6, classes: int = 3, seed: int = 0) -> Any:
        rng = np.random.default_rng(seed)
        x = rng.normal(size=(rows, features))
        weights = rng.normal(size=(features, classes))
        y = (x @ weights + 0.3 * rng.normal(size=(rows, classes))).argmax(axis=1)
        y[: 10 * classes] = np.arange(10 * classes) % classes  # no class is rare
        table = pd.DataFrame(x, columns=[f"f{i}" for i in range(features)])
        return table.assign(label=y)

    return make


@pytest.fixture(scope="session")
def make_images() -> Callable[..., Any]:
    """Makes uint8 images (n, side, side[, channels]) of three classes, told apart by a band."""
    import numpy as np

    def make(rows: int = 200, side: int = 8, channels: int = 0, seed: int = 0) -> tuple[Any, Any]:
        rng = np.random.default_rng(seed)
        y = np.arange(rows) % 3
        x = rng.integers(0, 255, size=(rows, side, side, *([channels] if channels else [])))
        for kind in range(3):
            x[y == kind, kind * side // 3 : (kind + 1) * side // 3] //= 4
        return x.astype(np.uint8), y

    return make


@pytest.fixture(scope="session")
def small_task() -> Callable[..., Any]:
    """`task_for`, but of few epochs, the three smallest networks and one thread."""
    from pointsman.compare.networks.task import task_for

    def small(data: Any, rows: int) -> Any:
        task = task_for(data, rows)
        return replace(task, epochs=3, threads=1, ladder=task.ladder[:3])

    return small


@pytest.fixture
def quick(monkeypatch: pytest.MonkeyPatch, small_task: Callable[..., Any]) -> None:
    """Comparisons take half a second: `small_task`, and neither chart nor page."""
    monkeypatch.setattr("pointsman.compare.run.task_for", small_task)
    monkeypatch.setattr("pointsman.compare.results.chart.save", lambda *_: None)
    monkeypatch.setattr("pointsman.compare.results.report.write", lambda *_: None)


@pytest.fixture(scope="session")
def finished_run(
    tmp_path_factory: pytest.TempPathFactory,
    make_table: Callable[..., Any],
    small_task: Callable[..., Any],
) -> Iterator[Path]:
    """A folder with data.csv and, in run/, all that one whole comparison of it wrote."""
    from pointsman.compare import Request, compare, load

    folder = tmp_path_factory.mktemp("finished")
    make_table().to_csv(folder / "data.csv", index=False)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("pointsman.compare.run.task_for", small_task)
        compare(load(str(folder / "data.csv")), Request(max_drop=0.2), folder / "run")
    yield folder
    shutil.rmtree(folder, ignore_errors=True)


@pytest.fixture
def own_run(finished_run: Path, tmp_path: Path) -> Path:
    """A copy of the finished folder that a test may damage."""
    return Path(shutil.copytree(finished_run, tmp_path / "own"))
