"""What can be done to the store, as steps of SQL that every engine runs alike.

An operation is a generator: it yields a statement with its arguments, and receives the rows. So an
engine is free to run many operations in one transaction, and even to send the same step of all of
them at once. An operation that refuses raises before it has written anything, and so costs the
others of its transaction nothing.

Amounts here are whole nano-dollars, moments are seconds since 1970.
"""

import json
from collections.abc import Generator, Mapping
from typing import Any, TypeVar

from pointsman.errors import InputError
from pointsman.serve.store.records import SERVED, Row

Result = TypeVar("Result")
Rows = list[tuple[Any, ...]]
Steps = Generator[tuple[str, tuple[Any, ...]], Rows, Result]

HOUR = 3600  # seconds
RESERVED, SETTLED, RELEASED = 0, 1, 2
UNLIMITED = 2**63 - 1

_ROOM = f"""UPDATE spending SET reserved = reserved + ?, requests = requests + 1
    WHERE key_id = ? AND period = ? AND settled + reserved + ? <=
        (SELECT COALESCE(budget, {UNLIMITED}) FROM keys WHERE id = ? AND revoked IS NULL)
    RETURNING 1"""
_OPEN_PERIOD = """INSERT INTO spending (key_id, period, settled, reserved, requests)
    VALUES (?, ?, 0, 0, 0) ON CONFLICT DO NOTHING"""
_RESERVE = """INSERT INTO ledger (request, key_id, period, amount, state, process, reserved_at)
    VALUES (?, ?, ?, ?, 0, ?, ?) ON CONFLICT DO NOTHING RETURNING 1"""
_SETTLE = """UPDATE ledger SET state = 1, cost = ?, ended_at = ? WHERE request = ? AND state = 0
    RETURNING key_id, period, amount"""
_SETTLE_LATE = """UPDATE ledger SET state = 1, cost = ?, ended_at = ?
    WHERE request = ? AND state = 2 RETURNING key_id, period, 0"""
_COUNT = """UPDATE spending SET settled = settled + ?, reserved = reserved - ?
    WHERE key_id = ? AND period = ?"""
_COUNT_HOUR = """INSERT INTO hours (key_id, hour, settled, requests) VALUES (?, ?, ?, 1)
    ON CONFLICT (key_id, hour) DO UPDATE SET settled = hours.settled + excluded.settled,
    requests = hours.requests + 1"""
_RELEASE = """UPDATE ledger SET state = 2, cost = 0, ended_at = ? WHERE request = ? AND state = 0
    RETURNING key_id, period, amount"""
_STATE = "SELECT state, cost FROM ledger WHERE request = ?"


def reserve(
    key: int,
    period: str,
    amount: int,
    request: str,
    process: str,
    now: float,
    again: bool = False,
) -> Steps[bool]:
    """Set money aside; False where it would go over the budget, or the key is not in use.

    With `again`, a reservation that this process has for the request is taken for the one asked
    for: the transaction that made it was committed, and the connection lost before that was heard.

    Raises:
        InputError: the request has a reservation already.
    """
    if not (yield _RESERVE, (request, key, period, amount, process, now)):
        found = yield "SELECT process, amount FROM ledger WHERE request = ?", (request,)
        if again and found == [(process, amount)]:
            return True
        raise InputError(f"request {request} has a reservation already: every request needs its id")
    room = (amount, key, period, amount, key)
    if (yield _ROOM, room):
        return True
    yield _OPEN_PERIOD, (key, period)  # the first request of a period finds no row to count in
    if (yield _ROOM, room):
        return True
    yield "DELETE FROM ledger WHERE request = ?", (request,)
    return False


def settle(
    request: str, cost: int, now: float, row: Row | None = None, others: tuple[str, ...] = ()
) -> Steps[bool]:
    """Replace what was set aside by what it cost; False where that was done before.

    A cost that arrives after its reservation was released is counted all the same. A `row` goes
    into the served log, and what is set aside for `others` is given back, in the same transaction.

    Raises:
        InputError: nothing was ever reserved for the request, or it was settled at another cost.
    """
    found = (yield _SETTLE, (cost, now, request)) or (yield _SETTLE_LATE, (cost, now, request))
    if found:
        key, period, amount = found[0]
        yield _COUNT, (cost, amount, key, period)
        yield _COUNT_HOUR, (key, int(now // HOUR), cost)
    else:
        before = yield _STATE, (request,)
        if not before:
            raise InputError(
                f"nothing is reserved for request {request}: reserve before you settle"
            )
        if before[0][1] != cost:
            raise InputError(f"request {request} was settled before, at another cost")
    for other in others:
        yield from release(other, now)
    if row is not None:
        yield from log_served(row)
    return bool(found)


def release(request: str, now: float) -> Steps[bool]:
    """Give back what was set aside; False where nothing is set aside any more."""
    found = yield _RELEASE, (now, request)
    if not found:
        return False
    key, period, amount = found[0]
    yield _COUNT, (0, amount, key, period)
    return True


def spent(key: int, period: str) -> Steps[tuple[int, int]]:
    """What the key settled and what it has set aside in the period."""
    found = yield (
        "SELECT settled, reserved FROM spending WHERE key_id = ? AND period = ?",
        (key, period),
    )
    return (found[0][0], found[0][1]) if found else (0, 0)


def paid(since: float) -> Steps[dict[int, tuple[int, int]]]:
    """What each key settled in the hours since a moment, and in how many requests."""
    found = yield (
        "SELECT key_id, CAST(SUM(settled) AS BIGINT), CAST(SUM(requests) AS BIGINT) FROM hours"
        " WHERE hour >= ? GROUP BY key_id",
        (int(since // HOUR),),
    )
    return {key: (settled, requests) for key, settled, requests in found}


_LATER = "CASE WHEN full_at > ? THEN full_at ELSE ? END"


def allow(key: int, seconds: float, capacity: float, now: float) -> Steps[tuple[bool, float]]:
    """Take from the bucket of a key, which refills with time.

    The bucket is kept as the one moment at which it will be full again (the generic cell rate
    algorithm, ITU-T I.371), so that a single update takes and checks.

    Args:
        key: id of the key.
        seconds: that the bucket needs to refill what is taken.
        capacity: seconds that an empty bucket needs to be full.
        now: this moment.

    Returns:
        Whether it was taken, and if not, the seconds until there is enough.
    """
    yield "INSERT INTO rates (key_id, full_at) VALUES (?, ?) ON CONFLICT DO NOTHING", (key, now)
    taken = yield (
        f"""UPDATE rates SET full_at = {_LATER} + ?
            WHERE key_id = ? AND {_LATER} + ? <= ? RETURNING 1""",
        (now, now, seconds, key, now, now, seconds, now + capacity),
    )
    if taken:
        return True, 0.0
    found = yield "SELECT full_at FROM rates WHERE key_id = ?", (key,)
    return False, max(found[0][0], now) + seconds - capacity - now


_SERVE = (
    f"INSERT INTO served ({', '.join(SERVED)}) VALUES ({', '.join('?' * len(SERVED))})"
    " ON CONFLICT DO NOTHING"
)


def log_served(row: Row) -> Steps[None]:
    """Add a row to the served log; a second row of the same id is ignored."""
    yield _SERVE, tuple(_cell(row.get(column)) for column in SERVED)


def feedback(request: str, quality: float, key: int | None, now: float) -> Steps[Row | None]:
    """Write the quality of a served answer, the last word counts; None if it is not there.

    The moment is that of the first word, so that those who learn from it hear of a row once.
    """
    whose, args = ("", ()) if key is None else (" AND key = ?", (key,))
    found = yield (
        f"UPDATE served SET quality = ?, judged = COALESCE(judged, ?) WHERE id = ?{whose}"
        f" RETURNING {', '.join(SERVED)}",
        (quality, now, request, *args),
    )
    return served_row(found[0]) if found else None


def unheard(policy: str, most: int) -> Steps[list[Row]]:
    """Rows of a policy with feedback that nobody has learned from, the oldest feedback first."""
    found = yield (
        f"SELECT {', '.join(SERVED)} FROM served WHERE policy = ? AND judged IS NOT NULL"
        f" AND heard = 0 ORDER BY judged, id LIMIT {most:d}",
        (policy,),
    )
    return [served_row(cells) for cells in found]


def learned(name: str) -> Steps[tuple[int, str]]:
    """What was learned under a name, after its version; (0, "") where nothing was."""
    found = yield "SELECT version, body FROM learned WHERE name = ?", (name,)
    return (found[0][0], found[0][1]) if found else (0, "")


_LEARN_FIRST = """INSERT INTO learned (name, version, body) VALUES (?, 1, ?)
    ON CONFLICT DO NOTHING RETURNING 1"""
_LEARN = """UPDATE learned SET version = version + 1, body = ? WHERE name = ? AND version = ?
    RETURNING 1"""
AT_ONCE = 50  # rows that are marked by one statement
_HEARD = f"UPDATE served SET heard = 1 WHERE id IN ({', '.join('?' * AT_ONCE)})"


def learn(name: str, version: int, body: str, heard: tuple[str, ...]) -> Steps[bool]:
    """Put what was learned in the place of this version, and mark the rows that it comes from.

    False, and nothing is changed, where somebody else has learned since.
    """
    if version:
        done = yield _LEARN, (body, name, version)
    else:
        done = yield _LEARN_FIRST, (name, body)
    if not done:
        return False
    for start in range(0, len(heard), AT_ONCE):
        some = heard[start : start + AT_ONCE]
        yield _HEARD, (*some, *some[-1:] * (AT_ONCE - len(some)))
    return True


def served(request: str) -> Steps[Row | None]:
    """The row of one request in the served log, or None."""
    found = yield f"SELECT {', '.join(SERVED)} FROM served WHERE id = ?", (request,)
    return served_row(found[0]) if found else None


def _cell(value: Any) -> Any:
    """As a database keeps it: mappings as JSON, texts without what UTF-8 and PostgreSQL refuse."""
    if isinstance(value, Mapping):
        return json.dumps({str(name): float(share) for name, share in value.items()})
    if isinstance(value, str):
        return value.encode("utf-8", "replace").decode().replace("\0", "\ufffd")
    if value is None or isinstance(value, int):
        return value
    return None if value != value else float(value)  # NaN is a missing cell; numpy becomes float


def served_row(cells: tuple[Any, ...]) -> Row:
    """A row of the served log as a mapping."""
    row = dict(zip(SERVED, cells, strict=True))
    for name in ("propensities", "context"):
        if row[name] is not None:
            row[name] = json.loads(row[name])
    return row
