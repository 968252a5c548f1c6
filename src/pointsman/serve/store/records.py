"""What the store hands out: keys, reservations, totals and served requests."""

import math
from dataclasses import dataclass
from typing import Any

from pointsman.errors import InputError, PointsmanError
from pointsman.serve.store.money import PERIODS, Period

ANONYMOUS = 0  # the key of requests without one, on a server that asks for none

Row = dict[str, Any]

SERVED = (
    "id",
    "time",
    "key",
    "query",
    "task",
    "point",
    "model",
    "answered",
    "how",
    "policy",
    "propensity",
    "propensities",
    "context",
    "predicted_quality",
    "predicted_cost",
    "cost",
    "latency",
    "quality",
)
"""Columns of the served log.

`id` of the request; `time` in seconds since 1970; `key`, the id of the key; `query`, None unless
the text is logged; `task` or None; `point` of the policy; `model` that was asked first; `answered`,
the model whose answer was given, which differs where a cascade went on; `how` the model was chosen
(see `HOW`; None where the request named it); `policy`, a digest of the one that decided;
`propensities`, a mapping from every model to the probability with which it was to be asked first
and its answer given whatever it is: what misses to one is what cascades have; `propensity` of what
was done, which is that of `model`, or in a cascade the probability of one that begins with `model`;
`context`, a mapping that a bandit decided by, or None; `predicted_quality`; `predicted_cost` and
`cost` in US$; `latency` in seconds; `quality`, None until there is feedback.
"""

HOW = ("policy", "cascade", "explored", "online", "alarm", "substitute")
"""Ways in which the model asked first is chosen.

"policy": its answer is given outright; "cascade": it is judged first; "explored": drawn evenly;
"online": by the bandit; "alarm": the reference, since the certificate does not hold; "substitute":
another than was chosen, since that one could not take the request or did not answer.
"""

NEEDED = ("id", "time", "key", "model")  # columns that every row has


class StoreError(PointsmanError):
    """The store cannot be read or written: its disk is full, or its server is away."""


@dataclass(frozen=True, slots=True)
class Key:
    """A key, without the secret, of which the store has only the hash.

    Args:
        id: number of the key.
        name: what people call it; no two keys that are in use share one.
        rate_per_minute: requests per minute, or None for no limit.
        budget: US$ per period, or None for no limit.
        period: over which the budget holds: "day", "month" (calendar, UTC) or "total".
        points: the points and models that it may ask for, or None for all.
        floor: the point below which its requests are never routed, or None.
        created: seconds since 1970.
        revoked: seconds since 1970, or None while it is in use.
    """

    id: int
    name: str
    rate_per_minute: float | None = None
    budget: float | None = None
    period: Period = "month"
    points: tuple[str, ...] | None = None
    floor: str | None = None
    created: float = 0.0
    revoked: float | None = None


@dataclass(frozen=True, slots=True)
class Reservation:
    """Money that is set aside for a request whose cost is not known yet.

    Args:
        request: id of the request.
        key: id of the key.
        amount: US$.
        since: seconds since 1970.
        process: the process that asked for it, as "host:pid".
        in_doubt: that process has ended without a word on the cost: the money stays counted until
            somebody settles or releases it.
    """

    request: str
    key: int
    amount: float
    since: float
    process: str
    in_doubt: bool


@dataclass(frozen=True, slots=True)
class Total:
    """What one key spent in one period, in US$."""

    key: int
    period: str
    settled: float
    reserved: float
    requests: int


@dataclass(frozen=True, slots=True)
class Process:
    """A process that uses the store."""

    id: str
    name: str
    started: float
    beat: float
    ended: float | None
    state: str
    metrics: str


def check_key(key: Key) -> None:
    """Whether a key can be written down.

    Raises:
        InputError: see `Store.add_key`.
    """
    if not key.name or not key.name.isprintable() or len(key.name) > 200:
        raise InputError(f"a key's name must be 1 to 200 characters that print, got {key.name!r}")
    if key.period not in PERIODS:
        raise InputError(f"a period must be one of {', '.join(PERIODS)}, got {key.period!r}")
    rate = key.rate_per_minute
    if rate is not None and not (math.isfinite(rate) and rate > 0):
        raise InputError(f"a rate must be a positive number of requests per minute, got {rate}")


def check_row(row: Row) -> None:
    """Whether a row can go into the served log.

    Raises:
        InputError: see `Store.serve_log`.
    """
    unknown = [name for name in row if name not in SERVED]
    missing = [name for name in NEEDED if row.get(name) is None]
    if unknown or missing:
        raise InputError(
            f"a served row has the columns {', '.join(SERVED)} and needs {', '.join(NEEDED)};"
            f" unknown: {', '.join(unknown) or 'none'}; missing: {', '.join(missing) or 'none'}"
        )
