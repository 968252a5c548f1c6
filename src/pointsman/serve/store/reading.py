"""The served log, row by row, for those who look back: `pointsman replay`, notebooks."""

import sqlite3
from collections.abc import Iterator
from contextlib import closing
from urllib.parse import quote, urlsplit

from pointsman.errors import InputError
from pointsman.serve.store.opening import sqlite_path
from pointsman.serve.store.operations import served_row
from pointsman.serve.store.records import SERVED, Row, StoreError
from pointsman.serve.store.schema import APPLICATION, VERSION

OLDER = "holds a store of an older version: `pointsman keys list --store URL` brings it up to date"
_SERVED = f"SELECT {', '.join(SERVED)} FROM served WHERE time >= "


def read_served(url: str, since: float = 0.0) -> Iterator[Row]:
    """Rows of the served log (columns `SERVED`), oldest first, without holding all in memory.

    Reading disturbs no gateway that writes at the same time.

    Args:
        url: sqlite:///PATH or postgresql://USER@HOST/DATABASE, as `open_store` takes it.
        since: seconds since 1970; rows before are left out.

    Raises:
        InputError: there is no store of ours.
        StoreError: it cannot be read.
    """
    if urlsplit(url).scheme in ("postgresql", "postgres"):
        return _postgres(url, since)
    return _sqlite(url, since)


def _sqlite(url: str, since: float) -> Iterator[Row]:
    path = sqlite_path(url)
    if not path.is_file():
        raise InputError(f"there is no store at {path}")
    try:
        with closing(sqlite3.connect(f"file:{quote(str(path))}?mode=ro", uri=True)) as connection:
            if connection.execute("PRAGMA application_id").fetchone() != (APPLICATION,):
                raise InputError(f"{path} is no store of the gateway: give the one that it uses")
            if connection.execute("PRAGMA user_version").fetchone()[0] < VERSION:
                raise InputError(f"{path} {OLDER}")
            for cells in connection.execute(f"{_SERVED}? ORDER BY time, id", (since,)):
                yield served_row(cells)
    except sqlite3.Error as error:
        raise StoreError(f"{path} cannot be read ({error})") from error


def _postgres(url: str, since: float) -> Iterator[Row]:
    try:
        import psycopg
    except ImportError as error:
        raise InputError(
            "a postgresql:// store needs psycopg: pip install 'pointsman[postgres]'"
        ) from error
    try:
        with psycopg.connect(url, connect_timeout=10) as connection:
            connection.execute("SET search_path = pointsman")
            with connection.cursor(name="served") as cursor:
                cursor.itersize = 1000
                for cells in cursor.execute(f"{_SERVED}%s ORDER BY time, id", (since,)):
                    yield served_row(cells)
    except psycopg.errors.UndefinedColumn as error:
        raise InputError(f"this database {OLDER}") from error
    except psycopg.errors.UndefinedTable as error:
        raise InputError("this database has no store of the gateway in it") from error
    except psycopg.Error as error:
        said = " ".join(str(error).split())
        raise StoreError(f"PostgreSQL cannot be read ({said})") from error
