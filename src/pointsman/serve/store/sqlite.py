"""SQLite: one file, shared by the processes of one machine.

Write-ahead logging with one writer at a time. A commit is in the file before anybody hears of it,
so that it outlives the process however that ends. Whether it also outlives a loss of power is a
choice: by default the last commits before it may be lost (never more, and never half of one);
`?synchronous=full` in the URL waits for the disk at every commit.
"""

import sqlite3
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import Any
from urllib.parse import quote

from pointsman.errors import InputError, PointsmanError
from pointsman.serve.store.operations import Steps
from pointsman.serve.store.records import StoreError
from pointsman.serve.store.schema import APPLICATION, VERSION, steps_from
from pointsman.serve.store.writer import Operation

WAIT = 20.0  # seconds to wait for another process's transaction
CHECKED = 64 * 2**20  # bytes up to which a file is checked whole when it is opened
NUMBER = "INTEGER PRIMARY KEY"


class SQLite:
    """A store in one file.

    Args:
        path: of the file, which is made if it is not there; None keeps everything in memory.
        full: wait for the disk at every commit.
    """

    def __init__(self, path: Path | None, full: bool = False) -> None:
        self.path = path
        self.full = full
        self._connection: sqlite3.Connection | None = None

    def open(self) -> None:
        """Open the file, and bring its tables to the newest version.

        Raises:
            InputError: it is no store of ours, is damaged, or is of a newer version.
            StoreError: it cannot be opened or written.
        """
        place = self.path or "the store in memory"
        try:
            self._connection = _connect(self.path)
            self._check()
            self._execute("PRAGMA journal_mode = WAL")
            self._execute(f"PRAGMA synchronous = {'FULL' if self.full else 'NORMAL'}")
            self._migrate()
        except sqlite3.Error as error:
            self.close()
            raise _in_words(error, place) from error
        except PointsmanError:
            self.close()
            raise

    def run(self, operations: list[Operation]) -> list[Any]:
        """Run operations in one transaction: see `Engine`."""
        try:
            reads = all(operation.reads for operation in operations)
            self._execute("BEGIN" if reads else "BEGIN IMMEDIATE")
            results = [self._one(operation.steps) for operation in operations]
            self._execute("COMMIT")
        except Exception as error:
            with suppress(sqlite3.Error):
                self._execute("ROLLBACK")
            locked = getattr(error, "sqlite_errorcode", 0) & 0xFF == sqlite3.SQLITE_BUSY
            if len(operations) > 1 and not locked:  # only what fails by itself is to fail
                return [self.run([operation])[0] for operation in operations]
            if isinstance(error, sqlite3.Error):
                error = _in_words(error, self.path or "the store in memory")
            return [error] * len(operations)
        return results

    def close(self) -> None:
        """Close the file."""
        if self._connection is not None:
            with suppress(sqlite3.Error):
                self._connection.close()
            self._connection = None

    def _one(self, make: Callable[[], Steps[Any]]) -> Any:
        assert self._connection is not None
        execute = self._connection.execute
        steps = make()
        try:
            asked = next(steps)
            while True:
                asked = steps.send(execute(*asked).fetchall())
        except StopIteration as stop:
            return stop.value
        except PointsmanError as refusal:  # before anything was written: the others go on
            return refusal

    def _execute(self, statement: str) -> list[tuple[Any, ...]]:
        assert self._connection is not None
        return self._connection.execute(statement).fetchall()

    def _check(self) -> None:
        """Whether this is a store of ours, and whole."""
        ((tables,),) = self._execute("SELECT COUNT(*) FROM sqlite_master")
        ((application,),) = self._execute("PRAGMA application_id")
        ((version,),) = self._execute("PRAGMA user_version")
        if tables and application != APPLICATION:
            raise InputError(
                f"{self.path} is a database of something else: give another file for the store"
            )
        if version > VERSION:
            raise InputError(
                f"{self.path} is a store of version {version}, newer than {VERSION}, the newest"
                " that is known here: update pointsman"
            )
        if self.path is not None and tables and self.path.stat().st_size <= CHECKED:
            ((found,),) = self._execute("PRAGMA quick_check(1)")
            if found != "ok":
                raise InputError(f"{self.path} is damaged: restore it from a copy")

    def _migrate(self) -> None:
        """Make the tables, or bring older ones up to date; several processes may try at once."""
        self._execute("BEGIN IMMEDIATE")
        try:
            ((version,),) = self._execute("PRAGMA user_version")
            for statement in steps_from(version, NUMBER):
                self._execute(statement)
            self._execute(f"PRAGMA application_id = {APPLICATION}")
            self._execute(f"PRAGMA user_version = {VERSION}")
            self._execute("COMMIT")
        except BaseException:
            with suppress(sqlite3.Error):
                self._execute("ROLLBACK")
            raise


def _connect(path: Path | None) -> sqlite3.Connection:
    if path is None:
        return sqlite3.connect(":memory:", isolation_level=None, cached_statements=256)
    if path.is_dir():
        raise InputError(f"{path} is a folder: give a file for the store")
    if not path.parent.is_dir():
        raise InputError(f"there is no folder {path.parent}: make it, or give another path")
    return sqlite3.connect(
        f"file:{quote(str(path))}",
        uri=True,
        timeout=WAIT,
        isolation_level=None,
        cached_statements=256,
    )


def _in_words(error: sqlite3.Error, place: Path | str) -> PointsmanError:
    """What went wrong, and the way out."""
    code = getattr(error, "sqlite_errorcode", 0) & 0xFF
    if code == sqlite3.SQLITE_NOTADB:
        return InputError(f"{place} is not a store (SQLite): give another file")
    if code == sqlite3.SQLITE_CORRUPT:
        return InputError(f"{place} is damaged: restore it from a copy")
    if code in (sqlite3.SQLITE_FULL, sqlite3.SQLITE_IOERR):
        return StoreError(f"{place} cannot be written ({error}): free space on its disk")
    if code in (sqlite3.SQLITE_READONLY, sqlite3.SQLITE_CANTOPEN, sqlite3.SQLITE_PERM):
        return StoreError(f"{place} cannot be written ({error}): check its permissions")
    if code == sqlite3.SQLITE_BUSY:
        return StoreError(f"{place} was locked for {WAIT:.0f} s by another process: end that one")
    return StoreError(f"{place} failed ({error})")
