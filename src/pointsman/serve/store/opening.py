"""Opening a store by its URL."""

import time
from collections.abc import Callable
from pathlib import Path
from urllib.parse import parse_qs, unquote, urlsplit

from pointsman.errors import InputError
from pointsman.serve.store.sqlite import SQLite
from pointsman.serve.store.store import Store
from pointsman.serve.store.writer import Engine


async def open_store(
    url: str, *, create: bool = True, clock: Callable[[], float] = time.time
) -> Store:
    """Open a store, making it if it is not there.

    Args:
        url: "sqlite:///relative.db", "sqlite:////absolute/path.db" (with `?synchronous=full` to
            outlive a loss of power), "postgresql://user@host/database", or "memory:", which ends
            with the process.
        create: make a SQLite file that is not there.
        clock: seconds since 1970.

    Raises:
        InputError: no such kind of URL, no store of ours, one that is damaged or of a newer
            version, or none at all with `create` off.
        StoreError: it cannot be reached or written.
    """
    store = Store(_engine(url, create), clock)
    await store.open()
    return store


def _engine(url: str, create: bool) -> Engine:
    """The database that a URL names."""
    parts = urlsplit(url)
    if parts.scheme in ("postgresql", "postgres"):
        from pointsman.serve.store.postgres import PostgreSQL

        return PostgreSQL(url)
    if url == "memory:":
        return SQLite(None)
    path = sqlite_path(url)
    options = parse_qs(parts.query, keep_blank_values=True)
    synchronous = options.pop("synchronous", ["normal"])[-1]
    if options or synchronous not in ("normal", "full"):
        raise InputError(
            f"sqlite knows only ?synchronous=normal or full, got {parts.query!r}: leave it out"
        )
    if not create and not path.exists():
        raise InputError(
            f"there is no store at {path}: the gateway makes one, and so does keys add"
        )
    return SQLite(path, full=synchronous == "full")


def sqlite_path(url: str) -> Path:
    """The file that a URL names: sqlite:///relative.db or sqlite:////absolute/path.db.

    Raises:
        InputError: it is no such URL.
    """
    parts = urlsplit(url)
    if parts.scheme != "sqlite" or parts.netloc or len(parts.path) < 2 or parts.fragment:
        raise InputError(
            "the store must be sqlite:///PATH, postgresql://USER@HOST/DATABASE or memory:,"
            f" got {_without_password(url)!r}"
        )
    return Path(unquote(parts.path[1:]))


def _without_password(url: str) -> str:
    before, at, after = url.rpartition("@")
    scheme, slashes, user = before.partition("://")
    return f"{scheme}{slashes}{user.partition(':')[0]}{at}{after}" if at else url
