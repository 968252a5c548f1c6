"""Keys, totals and processes: the operations that people and the status page ask for."""

import json
import os
import socket
from typing import Any

from pointsman.errors import InputError
from pointsman.serve.store.money import dollars
from pointsman.serve.store.operations import HOUR, Rows, Steps
from pointsman.serve.store.records import Key, Process, Reservation, Total

_KEY = "id, name, rate_per_minute, budget, period, points, floor, created, revoked"


def _key(cells: tuple[Any, ...]) -> Key:
    number, name, rate, budget, period, points, floor, created, revoked = cells
    return Key(
        id=number,
        name=name,
        rate_per_minute=rate,
        budget=None if budget is None else dollars(budget),
        period=period,
        points=None if points is None else tuple(json.loads(points)),
        floor=floor,
        created=created,
        revoked=revoked,
    )


def find_key(hashed: str) -> Steps[Key | None]:
    """The key of this hash if it is in use."""
    found = yield f"SELECT {_KEY} FROM keys WHERE hash = ? AND revoked IS NULL", (hashed,)
    return _key(found[0]) if found else None


def key_of(number: int) -> Steps[Key | None]:
    """The key of this id, in use or not."""
    found = yield f"SELECT {_KEY} FROM keys WHERE id = ?", (number,)
    return _key(found[0]) if found else None


def keys() -> Steps[list[Key]]:
    """Every key that ever was, in order of age."""
    found = yield f"SELECT {_KEY} FROM keys WHERE id <> 0 ORDER BY id", ()
    return [_key(cells) for cells in found]


def add_key(key: Key, hashed: str, budget: int | None) -> Steps[Key]:
    """Write a key down; its id is given by the store.

    Raises:
        InputError: a key of that name is in use.
    """
    if (yield "SELECT 1 FROM keys WHERE name = ? AND revoked IS NULL", (key.name,)):
        raise InputError(
            f"a key named {key.name!r} is in use: choose another name, or revoke it first"
        )
    points = None if key.points is None else json.dumps(key.points)
    found = yield (
        "INSERT INTO keys (name, hash, rate_per_minute, budget, period, points, floor, created)"
        f" VALUES (?, ?, ?, ?, ?, ?, ?, ?) RETURNING {_KEY}",
        (
            key.name,
            hashed,
            key.rate_per_minute,
            budget,
            key.period,
            points,
            key.floor,
            key.created,
        ),
    )
    return _key(found[0])


def revoke_key(which: str, now: float) -> Steps[Key]:
    """Put a key, by its name or its id, out of use for good.

    Raises:
        InputError: no key of that name or id is in use.
    """
    number = int(which) if which.isascii() and which.isdecimal() and len(which) < 19 else -1
    found: Rows = yield (
        "UPDATE keys SET revoked = ? WHERE id <> 0 AND revoked IS NULL AND"
        " (name = ? OR (id = ? AND NOT EXISTS"
        "  (SELECT 1 FROM keys other WHERE other.name = ? AND other.revoked IS NULL)))"
        f" RETURNING {_KEY}",
        (now, which, number, which),
    )
    if not found:
        raise InputError(f"no key {which!r} is in use: `pointsman keys list` shows those that are")
    return _key(found[0])


def totals(keys_and_periods: list[tuple[int, str]] | None = None) -> Steps[list[Total]]:
    """What was spent, for every key and period or for those asked for."""
    found = yield (
        "SELECT key_id, period, settled, reserved, requests FROM spending ORDER BY key_id, period",
        (),
    )
    wanted = None if keys_and_periods is None else set(keys_and_periods)
    return [
        Total(key, period, dollars(settled), dollars(reserved), requests)
        for key, period, settled, reserved, requests in found
        if wanted is None or (key, period) in wanted
    ]


def open_reservations() -> Steps[list[tuple[Reservation, str]]]:
    """What is set aside and not settled, oldest first, each with the id of its process."""
    found = yield (
        "SELECT l.request, l.key_id, l.amount, l.reserved_at, l.process, p.name FROM ledger l"
        " LEFT JOIN processes p ON p.id = l.process WHERE l.state = 0"
        " ORDER BY l.reserved_at, l.request",
        (),
    )
    return [
        (Reservation(request, key, dollars(amount), since, name or "?", False), process)
        for request, key, amount, since, process, name in found
    ]


def differences() -> Steps[list[tuple[int, str]]]:
    """Keys and periods whose totals are not the sums of their requests: never any.

    Periods whose requests were pruned are not looked at: their totals are all that is kept.
    """
    found = yield (
        """SELECT s.key_id, s.period FROM spending s LEFT JOIN (
            SELECT key_id, period, COUNT(*) AS requests,
                SUM(CASE WHEN state = 1 THEN cost ELSE 0 END) AS settled,
                SUM(CASE WHEN state = 0 THEN amount ELSE 0 END) AS reserved
            FROM ledger GROUP BY key_id, period
        ) l ON l.key_id = s.key_id AND l.period = s.period
        WHERE s.pruned = 0 AND (s.settled <> COALESCE(l.settled, 0)
            OR s.reserved <> COALESCE(l.reserved, 0)
            OR s.requests <> COALESCE(l.requests, 0))
        ORDER BY s.key_id, s.period""",
        (),
    )
    return [(key, period) for key, period in found]


PRUNED = 2000  # at once, so that nobody waits long
_OLD = f"FROM ledger WHERE state <> 0 AND ended_at < ? ORDER BY request LIMIT {PRUNED}"
_OLD_ROWS = f"FROM served WHERE time < ? ORDER BY time, id LIMIT {PRUNED}"


def prune(before: float) -> Steps[tuple[int, int]]:
    """Drop `PRUNED` requests that ended before a moment, of the ledger and of the served log.

    Totals stay as they are, and so does what is set aside.

    Returns:
        How many were dropped of each.
    """
    yield (
        "UPDATE spending SET pruned = 1 WHERE (key_id, period) IN"
        f" (SELECT key_id, period FROM (SELECT key_id, period, request {_OLD}) old)",
        (before,),
    )
    entries = yield f"SELECT COUNT(*) FROM (SELECT request {_OLD}) old", (before,)
    yield f"DELETE FROM ledger WHERE request IN (SELECT request {_OLD})", (before,)
    yield "DELETE FROM hours WHERE hour < ?", (int(before // HOUR),)
    rows = yield f"SELECT COUNT(*) FROM (SELECT id {_OLD_ROWS}) old", (before,)
    yield f"DELETE FROM served WHERE id IN (SELECT id {_OLD_ROWS})", (before,)
    return entries[0][0], rows[0][0]


_PROCESS = "id, name, started, beat, ended, state, metrics"


def processes() -> Steps[list[Process]]:
    """Those that use the store or have used it, oldest first."""
    found = yield f"SELECT {_PROCESS} FROM processes ORDER BY started, id", ()
    return [Process(*cells) for cells in found]


SILENT = 30.0  # seconds without a sign of life after which a process counts as dead


def beat(process: Process) -> Steps[None]:
    """Say that a process lives, and what it wants others to know."""
    yield (
        f"INSERT INTO processes ({_PROCESS}) VALUES (?, ?, ?, ?, ?, ?, ?)"
        " ON CONFLICT (id) DO UPDATE SET beat = excluded.beat, ended = excluded.ended,"
        " state = excluded.state, metrics = excluded.metrics",
        (
            process.id,
            process.name,
            process.started,
            process.beat,
            process.ended,
            process.state,
            process.metrics,
        ),
    )


def forget_processes(before: float) -> Steps[None]:
    """Drop those that ended long ago and owe nothing."""
    yield (
        "DELETE FROM processes WHERE beat < ? AND NOT EXISTS"
        " (SELECT 1 FROM ledger l WHERE l.process = processes.id AND l.state = 0)",
        (before,),
    )


def lives(process: Process, now: float) -> bool:
    """Whether a process is there: it has not ended, was heard of lately, and runs if it is here."""
    if process.ended is not None or now - process.beat > SILENT:
        return False
    host, _, number = process.name.rpartition(":")
    if host != socket.gethostname():
        return True
    try:
        os.kill(int(number), 0)
    except ProcessLookupError:
        return False
    except OSError:  # it runs as somebody else
        return True
    return True
