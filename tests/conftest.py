"""What many tests share: the command, comparisons small enough, a throw-away PostgreSQL server."""

import os
import pwd
import shutil
import subprocess
import tempfile
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any
from urllib.parse import quote

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
    """Comparisons take half a second: `small_task`, few subnets, and neither chart nor page."""
    monkeypatch.setattr("pointsman.compare.networks.nested.EVALUATIONS", 4)
    monkeypatch.setattr("pointsman.compare.networks.nested.SEARCH_ROWS", 50)
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


def _postgres() -> Path | None:
    """The newest folder that has a PostgreSQL server's programs in it."""
    found = sorted(
        Path("/usr/lib/postgresql").glob("*/bin/postgres"), key=lambda p: float(p.parts[4])
    )
    if found:
        return found[-1].parent
    on_path = shutil.which("postgres")
    return Path(on_path).parent if on_path else None


@pytest.fixture(scope="session")
def postgres_server() -> Iterator[Path]:
    """The folder of the socket of a PostgreSQL server that ends with the tests."""
    pytest.importorskip("psycopg", reason="psycopg is not installed")
    programs = _postgres()
    if programs is None:
        pytest.skip("there is no PostgreSQL server on this machine")
    user: dict[str, Any] = {}
    if os.getuid() == 0:  # the server refuses to run as root
        names = {entry.pw_name for entry in pwd.getpwall()}
        who = pwd.getpwnam("postgres" if "postgres" in names else "nobody")
        user = {"user": who.pw_uid, "group": who.pw_gid}
    folder = Path(tempfile.mkdtemp(prefix="pg-", dir="/tmp"))  # a socket's path must be short
    if user:
        os.chown(folder, user["user"], user["group"])

    def call(program: str, *words: str) -> None:
        subprocess.run(
            [programs / program, *words], check=True, cwd=folder, stdout=subprocess.DEVNULL, **user
        )

    data = str(folder / "data")
    call("initdb", "-D", data, "-U", "pointsman", "-A", "trust", "-E", "UTF8", "--no-sync")
    options = f"-k {folder} -c listen_addresses='' -c fsync=off -c max_connections=50"
    call("pg_ctl", "-D", data, "-w", "-l", str(folder / "log"), "-o", options, "start")
    yield folder
    call("pg_ctl", "-D", data, "-w", "-m", "immediate", "stop")
    shutil.rmtree(folder, ignore_errors=True)


@pytest.fixture
def postgres_url(postgres_server: Path) -> Iterator[str]:
    """A fresh database on that server."""
    import psycopg

    def url(database: str) -> str:
        return f"postgresql://pointsman@/{database}?host={quote(str(postgres_server), safe='')}"

    name = f"t{os.urandom(6).hex()}"
    with psycopg.connect(url("postgres"), autocommit=True) as connection:
        connection.execute(f"CREATE DATABASE {name}")
    yield url(name)
    with psycopg.connect(url("postgres"), autocommit=True) as connection:
        connection.execute(f"DROP DATABASE {name} WITH (FORCE)")
