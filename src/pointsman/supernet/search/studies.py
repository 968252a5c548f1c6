"""Where a history is kept: an SQLite file that is checked before use, or a PostgreSQL database.

A study is opened by one process at a time, so that two that start together do not both lay out an
empty database. Who is alive is asked of the system, not of clocks: a process holds a lock of its
own while it works (a locked file beside the SQLite file, an advisory lock in PostgreSQL), and the
lock goes when the process does, however it ends.
"""

import sqlite3
from collections.abc import Iterator
from contextlib import closing, contextmanager, suppress
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol

from filelock import FileLock, Timeout

from pointsman.errors import InputError, reason

if TYPE_CHECKING:
    from optuna.storages import RDBStorage
    from sqlalchemy import Connection, Engine

PATIENCE = 60.0  # seconds to wait for another process that writes
SETUP = 6_216_114_127  # number of the lock under which a PostgreSQL study is laid out
HEADER = b"SQLite format 3\x00"


class Presence(Protocol):
    """Tells the processes of one study apart by number, and which of them are still there."""

    def enter(self, owner: int) -> None:
        """This process works under this number from now on."""

    def alive(self, owner: int) -> bool:
        """Whether the process with this number is still there."""

    def leave(self) -> None:
        """This process is done."""


class FilePresence:
    """Of processes that share a file system.

    Args:
        database: the SQLite file; locks lie in a folder beside it, which goes with the last one.
    """

    def __init__(self, database: Path) -> None:
        self.folder = database.with_name(database.name + ".workers")
        self._own: FileLock | None = None

    def _lock(self, owner: int) -> FileLock:
        return FileLock(self.folder / f"{owner}.lock", timeout=0)

    def enter(self, owner: int) -> None:
        """Lock a file of that name; called while no other process enters."""
        self.folder.mkdir(exist_ok=True)
        self._own = self._lock(owner)
        self._own.acquire()
        for path in self.folder.glob("*.lock"):
            if path.stem != str(owner):
                self.alive(int(path.stem))  # removes what a killed process left

    def alive(self, owner: int) -> bool:
        """Whether its file is locked."""
        path = self.folder / f"{owner}.lock"
        if not path.exists():
            return False
        lock = self._lock(owner)
        try:
            lock.acquire()
        except Timeout:
            return True
        path.unlink(missing_ok=True)
        lock.release()
        return False

    def leave(self) -> None:
        """Remove the lock, and the folder if it was the last."""
        if self._own is None:
            return
        Path(self._own.lock_file).unlink(missing_ok=True)
        self._own.release()
        self._own = None
        # Refused while another process has a lock in it, and gone if another was the last.
        with suppress(OSError):
            self.folder.rmdir()


class PostgresPresence:
    """Of processes that are connected to one PostgreSQL database, from whatever machine."""

    def __init__(self, engine: "Engine") -> None:
        self.engine = engine
        self._session: Connection | None = None

    def enter(self, owner: int) -> None:
        """Take an advisory lock in a session that stays open."""
        from sqlalchemy import text

        self._session = self.engine.connect().execution_options(isolation_level="AUTOCOMMIT")
        self._session.execute(text("SELECT pg_advisory_lock(:owner)"), {"owner": owner})

    def alive(self, owner: int) -> bool:
        """Whether its lock is taken."""
        from sqlalchemy import text

        with self.engine.connect() as session:
            free = session.execute(
                text("SELECT pg_try_advisory_xact_lock(:owner)"), {"owner": owner}
            ).scalar()
            return not free

    def leave(self) -> None:
        """Close the session, for good: the pool would keep it open with its lock."""
        if self._session is not None:
            self._session.invalidate()
            self._session.close()
            self._session = None


def is_postgres(store: str | Path) -> bool:
    """Whether a store is a PostgreSQL database and not a file."""
    return str(store).startswith(("postgresql://", "postgres://"))


@contextmanager
def opened(store: str | Path) -> Iterator[tuple["RDBStorage", Presence]]:
    """Optuna's storage and who works on it; inside the block no other process opens it.

    Args:
        store: path of an SQLite file, made if it is not there, or a postgresql:// URL.

    Raises:
        InputError: optuna or psycopg is not installed, the file is damaged or is no study, or the
            database cannot be reached.
    """
    if is_postgres(store):
        with _opened_postgres(str(store)) as found:
            yield found
    elif "://" in str(store):
        raise InputError(f"a study is an SQLite file or a postgresql:// URL, got {store}")
    else:
        with _opened_file(Path(store)) as found:
            yield found


@contextmanager
def _opened_file(path: Path) -> Iterator[tuple["RDBStorage", Presence]]:
    if not path.parent.is_dir():
        raise InputError(f"{path}: there is no folder {path.parent} for the study: make it first")
    try:
        with FileLock(path.with_name(path.name + ".lock"), timeout=PATIENCE):
            check_file(path)
            url = f"sqlite:///{path.resolve()}"
            yield _storage(url, path, {"connect_args": {"timeout": PATIENCE}}), FilePresence(path)
    except Timeout as error:
        raise InputError(f"{path}: another process keeps the study locked") from error
    except OSError as error:
        raise InputError(f"{path}: the study cannot be written ({error.strerror})") from error


@contextmanager
def _opened_postgres(url: str) -> Iterator[tuple["RDBStorage", Presence]]:
    _needed("optuna", "search")
    _needed("psycopg", "postgres")
    from sqlalchemy import create_engine, text
    from sqlalchemy.exc import SQLAlchemyError

    spelled = "postgresql+psycopg://" + url.split("://", 1)[1]
    shown = create_engine(spelled).url.render_as_string(hide_password=True)
    try:
        engine = create_engine(spelled)
        with engine.connect() as session, session.begin():
            session.execute(text("SELECT pg_advisory_xact_lock(:lock)"), {"lock": SETUP})
            yield _storage(spelled, shown, {"pool_pre_ping": True}), PostgresPresence(engine)
    except SQLAlchemyError as error:
        raise InputError(f"{shown}: the study cannot be reached ({reason(error)[:200]})") from error


def _storage(url: str, shown: str | Path, options: dict[str, Any]) -> "RDBStorage":
    _needed("optuna", "search")
    from optuna.exceptions import StorageInternalError
    from optuna.storages import RDBStorage
    from sqlalchemy.exc import SQLAlchemyError

    try:
        return RDBStorage(url, engine_kwargs=options)
    except (RuntimeError, SQLAlchemyError, StorageInternalError) as error:
        raise InputError(
            f"{shown}: optuna cannot use this study ({reason(error)[:200]}): take another file, or "
            "the version of optuna that wrote it"
        ) from error


def check_file(path: Path) -> None:
    """Refuse a file that is there and is no whole SQLite study; nothing is written to it.

    Raises:
        InputError: it is empty, of another format, truncated or damaged, or another database.
    """
    if not path.exists():
        return
    kept = "the file was left as it is; bring back a copy of it, or start a study in another file"
    with path.open("rb") as file:
        if file.read(len(HEADER)) != HEADER:
            raise InputError(f"{path}: this is no study (no SQLite file): {kept}")
    try:
        with closing(sqlite3.connect(path, timeout=PATIENCE)) as connection:
            said = connection.execute("PRAGMA quick_check(1)").fetchone()[0]
            tables = {row[0] for row in connection.execute("SELECT name FROM sqlite_master")}
    except sqlite3.DatabaseError as error:
        said, tables = reason(error), set()
    if said != "ok":
        raise InputError(f"{path}: the study is damaged ({' '.join(said.split())[:120]}): {kept}")
    if tables and "studies" not in tables:
        raise InputError(f"{path}: this is a database of something else than studies: {kept}")


def _needed(package: str, extra: str) -> None:
    from importlib.util import find_spec

    if find_spec(package) is None:
        raise InputError(
            f'{package} is not installed, which keeps studies: pip install "pointsman[{extra}]"'
        )
