"""What a run keeps on disk while it works, so that it can be cut off and continued."""

import json
import shutil
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

from filelock import FileLock, Timeout

from pointsman.errors import InputError
from pointsman.writing import write_atomically

FOLDER, REQUEST, LOCK = "unfinished", "request.json", ".lock"


class State:
    """The folder of an unfinished run, inside the folder of its results.

    It holds what was asked for, and one checkpoint for each network begun. It is removed when the
    results are written.
    """

    def __init__(self, out: Path) -> None:
        self.out, self.folder = out, out / FOLDER

    @contextmanager
    def claimed(self) -> Iterator["State"]:
        """Hold the folder of the results alone.

        Raises:
            InputError: it cannot be written, or another run holds it.
        """
        made = [folder for folder in (self.out, *self.out.parents) if not folder.exists()]
        try:
            self.out.mkdir(parents=True, exist_ok=True)
            lock = FileLock(self.out / LOCK)
            lock.acquire(timeout=0)
        except Timeout as error:
            raise InputError(
                f"{self.out}: another run is writing here: wait for it, or choose another --out"
            ) from error
        except OSError as error:
            raise InputError(
                f"{self.out}: results cannot be written there ({error.strerror}): "
                "choose another --out"
            ) from error
        try:
            yield self
        finally:
            if self.begun() and not self._holds_work():
                self.finish()
            with suppress(OSError):  # before its release, or it could be another run's by then
                (self.out / LOCK).unlink(missing_ok=True)
            lock.release()
            with suppress(OSError):  # of the folders made here, those that stayed empty
                for folder in made:
                    folder.rmdir()

    def begin(self, request: Mapping[str, Any], *, resume: bool) -> None:
        """Start a run, or continue one that asked for the same.

        Raises:
            InputError: an unfinished run is there and may not be thrown away, or there is none to
                continue, or it asked for something else.
        """
        file = self.folder / REQUEST
        if self.begun() and (resume or self._holds_work()):
            if not resume:
                raise InputError(
                    f"{self.out} holds an unfinished run: add --resume to continue it, or remove "
                    f"{self.folder} to start anew"
                )
            try:
                earlier = dict(json.loads(file.read_bytes()))
            except (OSError, ValueError, TypeError) as error:
                raise InputError(
                    f"{file}: the unfinished run is damaged: remove {self.folder} to start anew"
                ) from error
            # the command is only shown: --json or another spelling of a path changes no result
            changed = [key for key in request if earlier.get(key) != request[key]]
            changed = [key for key in changed if key != "command"]
            if changed:
                raise InputError(
                    f"{self.out}: the unfinished run differs in {', '.join(changed)}: repeat its "
                    f"options ({earlier.get('command', 'unknown')}), or choose another --out"
                )
            return
        if resume:
            raise InputError(
                f"{self.out}: there is no unfinished run to resume: leave out --resume"
            )
        foreign = [path for path in self.folder.glob("*") if path.suffix != ".part"]
        if foreign and not self.begun():
            raise InputError(
                f"{self.folder} is there and was not made by pointsman compare: choose another "
                "--out"
            )
        try:
            self.finish()
            self.folder.mkdir(parents=True)
            write_atomically(file, json.dumps(request, indent=1))
        except OSError as error:
            raise InputError(
                f"{self.folder}: the run cannot be kept there ({error.strerror}): choose another "
                "--out"
            ) from error

    def checkpoint(self, name: str) -> Path:
        """Where the network of this name keeps its state."""
        return self.folder / (name.replace(" ", "_").replace("/", "_") + ".pt")

    def begun(self) -> bool:
        """Whether a run began here and did not finish."""
        return (self.folder / REQUEST).exists()

    def _holds_work(self) -> bool:
        return any(self.folder.glob("*.pt"))

    def finish(self) -> None:
        """Remove what only an unfinished run needs."""
        shutil.rmtree(self.folder, ignore_errors=True)
