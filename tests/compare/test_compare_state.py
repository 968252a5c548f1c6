"""What a run keeps on disk: one at a time, whole or not at all, and only the same goes on."""

import subprocess
import sys
from pathlib import Path

import pytest

from pointsman.compare.state import LOCK, State
from pointsman.errors import InputError

ASKED = {"data": "abc", "seed": 0, "command": "pointsman compare d"}


def begun(out: Path, *, resume: bool = False, **changes: object) -> State:
    with State(out).claimed() as state:
        state.begin({**ASKED, **changes}, resume=resume)
        state.checkpoint("mlp 8").write_bytes(b"work")
    return state


def test_a_run_that_did_nothing_leaves_nothing(tmp_path: Path) -> None:
    with State(tmp_path / "a" / "b").claimed() as state:
        state.begin(ASKED, resume=False)
        assert state.folder.exists()
    assert list(tmp_path.iterdir()) == []


def test_a_folder_that_was_there_stays(tmp_path: Path) -> None:
    (tmp_path / "mine").mkdir()
    with State(tmp_path / "mine").claimed():
        pass
    assert list(tmp_path.iterdir()) == [tmp_path / "mine"]


def test_an_unfinished_run_is_not_thrown_away(tmp_path: Path) -> None:
    begun(tmp_path / "out")
    with pytest.raises(InputError, match=r"holds an unfinished run: add --resume .*or remove"):
        begun(tmp_path / "out")
    begun(tmp_path / "out", resume=True)
    state = begun(tmp_path / "out", resume=True, command="pointsman compare d --json")
    state.finish()
    begun(tmp_path / "out")


@pytest.mark.parametrize("change", [{"seed": 1}, {"data": "xyz"}, {"seed": 2, "data": "q"}])
def test_other_options_do_not_continue_a_run(change: dict[str, object], tmp_path: Path) -> None:
    begun(tmp_path / "out")
    names = ", ".join(sorted(change))
    with pytest.raises(InputError, match=rf"differs in {names}: repeat its options \(pointsman"):
        begun(tmp_path / "out", resume=True, **change)
    assert (tmp_path / "out" / "unfinished" / "mlp_8.pt").exists()


def test_there_must_be_a_run_to_resume(tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"no unfinished run to resume: leave out --resume"):
        begun(tmp_path / "new" / "out", resume=True)
    assert list(tmp_path.iterdir()) == []


def test_a_run_killed_before_its_first_checkpoint_is_no_obstacle(tmp_path: Path) -> None:
    folder = begun(tmp_path / "out").folder
    (folder / "mlp_8.pt").unlink()
    begun(tmp_path / "out")
    (folder / "mlp_8.pt").unlink()
    begun(tmp_path / "out", resume=True)


def test_a_folder_of_another_making_is_left_alone(tmp_path: Path) -> None:
    (tmp_path / "unfinished").mkdir()
    (tmp_path / "unfinished" / "novel.txt").write_text("mine")
    with pytest.raises(InputError, match=r"unfinished is there and was not made by pointsman"):
        begun(tmp_path)
    with State(tmp_path).claimed():
        pass
    assert (tmp_path / "unfinished" / "novel.txt").read_text() == "mine"


@pytest.mark.parametrize("content", [b"", b"[1]", b"\xff{", b"7"])
def test_a_damaged_request_is_named(content: bytes, tmp_path: Path) -> None:
    folder = begun(tmp_path / "out").folder
    (folder / "request.json").write_bytes(content)
    with pytest.raises(InputError, match=r"request.json: the unfinished run is damaged: remove"):
        begun(tmp_path / "out", resume=True)


def test_two_runs_do_not_share_a_folder(tmp_path: Path) -> None:
    out = tmp_path / "out"
    with State(out).claimed():
        with pytest.raises(InputError, match=r"another run is writing here: wait for it"):
            begun(out)
        # nor does another process: the lock is the system's
        code = "import sys, filelock; filelock.FileLock(sys.argv[1]).acquire(timeout=0)"
        words = [sys.executable, "-c", code, str(out / LOCK)]
        other = subprocess.run(words, capture_output=True, text=True, check=False)
        assert "Timeout" in other.stderr
    begun(out)
    assert sorted(path.name for path in out.iterdir()) == ["unfinished"]


def test_a_lock_left_by_a_killed_run_does_not_hold(tmp_path: Path) -> None:
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / ".lock").touch()
    begun(tmp_path / "out")


def test_what_cannot_be_a_folder_is_refused(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("mine")
    for out in (tmp_path / "file", tmp_path / "file" / "below", Path("/dev/null/x")):
        with pytest.raises(InputError, match=r"cannot be written there .*choose another --out"):
            begun(out)
    assert (tmp_path / "file").read_text() == "mine"
