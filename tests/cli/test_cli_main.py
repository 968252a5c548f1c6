"""`pointsman` itself: help at once, one line for an error."""

import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import click
import pytest

from pointsman import __version__
from pointsman.cli.main import COMMANDS, cli
from pointsman.errors import InputError


def python(code: str, **environment: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-c", code],
        capture_output=True,
        text=True,
        check=False,
        env={**os.environ, **environment},
    )


def test_help_lists_every_command_without_importing_any() -> None:
    code = (
        "import sys; sys.argv = ['pointsman', '--help']\n"
        "from pointsman.cli.main import main\n"
        "try: main()\n"
        "except SystemExit as stop: assert not stop.code\n"
        "heavy = {'torch', 'numpy', 'pandas', 'sklearn', 'matplotlib', 'rich'} & set(sys.modules)\n"
        "assert not heavy, heavy"
    )
    ran = python(code)
    assert ran.returncode == 0, ran.stderr
    for name, does in COMMANDS.items():
        assert f"  {name} " in ran.stdout
        assert does in ran.stdout


@pytest.mark.parametrize("name", COMMANDS)
def test_every_command_has_help(name: str, pointsman: Callable[..., Any]) -> None:
    for flag in ("--help", "-h"):
        ran = pointsman(name, flag)
        assert ran.code == 0
        assert ran.out.startswith(f"Usage: cli {name}")


def test_a_package_that_is_not_installed_is_named_with_its_extra(
    refused: Callable[..., str], monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    (tmp_path / "models.toml").touch()
    cached = [name for name in sys.modules if name.startswith(("pointsman.serve", "starlette"))]
    for name in cached:
        monkeypatch.delitem(sys.modules, name)
    monkeypatch.setitem(sys.modules, "starlette", None)
    said = refused("serve", tmp_path, "--models", tmp_path / "models.toml")
    assert said.endswith("which this needs: pip install 'pointsman[serve]'")


def test_the_version_is_told(pointsman: Callable[..., Any]) -> None:
    assert pointsman("--version").out == f"pointsman, version {__version__}\n"


@pytest.mark.parametrize("words", [["unknown"], ["--unknown"], ["compar", "digits"]])
def test_an_unknown_command_shows_the_usage(
    words: list[str], pointsman: Callable[..., Any]
) -> None:
    ran = pointsman(*words)
    assert ran.code == 2
    assert "Usage: " in ran.err


def test_an_error_is_one_line_whatever_it_quotes(
    refused: Callable[..., str], monkeypatch: pytest.MonkeyPatch
) -> None:
    @click.command("broken")
    def broken() -> None:
        raise InputError("a\nb\x1b[31mc\rdé")

    monkeypatch.setattr(type(cli), "get_command", lambda *_: broken)
    assert refused("broken") == "a b [31mc dé"


def test_other_errors_are_not_hidden(
    pointsman: Callable[..., Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    @click.command("broken")
    def broken() -> None:
        raise RuntimeError("ours")

    monkeypatch.setattr(type(cli), "get_command", lambda *_: broken)
    with pytest.raises(RuntimeError, match="ours"):
        pointsman("broken")


def test_a_reader_that_goes_away_is_no_error() -> None:
    code = (
        "import sys, os; import pointsman.cli.main as m; import click\n"
        "@click.command('many')\n"
        "def many():\n"
        "    for _ in range(100_000): click.echo('line')\n"
        "type(m.cli).get_command = lambda *_: many\n"
        "sys.argv = ['pointsman', 'many']; m.main()"
    )
    with subprocess.Popen(
        [sys.executable, "-c", code], stdout=subprocess.PIPE, stderr=subprocess.PIPE
    ) as run:
        assert run.stdout is not None
        assert run.stderr is not None
        assert run.stdout.readline() == b"line\n"
        run.stdout.close()
        assert b"Traceback" not in run.stderr.read()


def test_a_terminal_without_unicode_gets_the_table(finished_run: Any) -> None:
    code = (
        "import sys; from pointsman.cli.main import main\n"
        f"sys.argv = ['pointsman', 'show', {str(finished_run / 'run')!r}]; main()"
    )
    ran = python(code, PYTHONIOENCODING="ascii", PYTHONUTF8="0")
    assert ran.returncode == 0, ran.stderr
    assert "reference: mlp" in ran.stdout
    assert "> the pick   * cheapest of its way" in ran.stdout
    assert "?" not in ran.stdout


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="there is no /dev/full here")
def test_an_output_that_is_full_is_one_line() -> None:
    code = (
        "import pointsman.cli.main as m; import click, sys\n"
        "@click.command('some')\n"
        "def some(): click.echo('line')\n"
        "type(m.cli).get_command = lambda *_: some\n"
        "sys.argv = ['pointsman', 'some']; m.main()"
    )
    with Path("/dev/full").open("w") as full:
        ran = subprocess.run(
            [sys.executable, "-c", code],
            stdout=full,
            stderr=subprocess.PIPE,
            text=True,
            check=False,
        )
    assert ran.returncode == 2
    assert ran.stderr.startswith("pointsman: the output cannot be written (")
    assert ran.stderr.count("\n") == 1
