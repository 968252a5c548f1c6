"""How the gateway is: a snapshot of one process, and a page of all of them for people.

The page is one HTML file that needs nothing else: no script, no image, no request to anywhere; it
loads itself again every few seconds. Whoever shows a key sees the spending of that key alone.
"""

import json
import time
from collections.abc import Sequence
from importlib import resources
from typing import TYPE_CHECKING, Any

from pointsman.serve.store.money import NANO, in_words, period_label
from pointsman.serve.store.records import ANONYMOUS, Key, Process

if TYPE_CHECKING:
    from pointsman.serve.gateway import Gateway

REFRESH = 5  # seconds
POLICY = "default-src 'none'; style-src 'unsafe-inline'; img-src data:; frame-ancestors 'none'"


def snapshot(gateway: "Gateway") -> dict[str, Any]:
    """What one process says of itself at this moment, as JSON holds it."""
    alarm, shift = gateway.alarm, gateway.generation.shift
    return {
        "began": gateway.began,
        "requests": gateway.requests,
        "alarm": {
            "watched": alarm is not None,
            "alarmed": alarm is not None and bool(alarm.alarmed),
            "words": "" if alarm is None else alarm.words(),
        },
        "shift": {
            "shifted": shift is not None and shift.shifted,
            "words": "" if shift is None else shift.words(),
        },
        "upstreams": {
            name: {
                "breaker": upstream.breaker.state,
                "running": upstream.slots.running,
                "waiting": upstream.slots.waiting,
            }
            for name, upstream in gateway.generation.upstreams.items()
        },
    }


async def status(gateway: "Gateway", key: Key | None = None) -> dict[str, Any]:
    """What the status page shows, as JSON holds it.

    Args:
        gateway: this process.
        key: of whoever asks; only its own spending is then told. Without one, spending is told by
            key where the server asks for none, and else in one sum.
    """
    store, own, policy = gateway.store, snapshot(gateway), gateway.generation.policy
    siblings = [one for one in await store.processes() if one.id != store.process.id and one.state]
    snapshots = [(store.process, own), *_read(siblings)]
    now = store.clock()
    doubt = [one for one in await store.reservations() if one.in_doubt]
    if key is not None:
        doubt = [one for one in doubt if one.key == key.id]
    return {
        "time": now,
        "policy": {
            "points": list(policy.named),
            "reference": policy.reference,
            "words": policy.words(),
            "point": gateway.generation.config.policy.point,
        },
        "alarm": next((s["alarm"] for _, s in snapshots if s["alarm"]["alarmed"]), own["alarm"]),
        "shift": next((s["shift"] for _, s in snapshots if s["shift"]["shifted"]), own["shift"]),
        "processes": [
            {"name": process.name, "up": now - s["began"], "requests": s["requests"]}
            for process, s in snapshots
        ],
        "models": _models(snapshots),
        "spending": await _spending(gateway, key, now),
        "in_doubt": {"count": len(doubt), "amount": sum(one.amount for one in doubt)},
    }


def page(found: dict[str, Any]) -> str:
    """The page: HTML of what `status` gives."""
    from jinja2 import Environment, StrictUndefined

    environment = Environment(
        autoescape=True, undefined=StrictUndefined, trim_blocks=True, lstrip_blocks=True
    )
    environment.filters["us_dollars"] = lambda amount: in_words(round(amount * NANO))
    environment.filters["lasting"] = _lasting
    template = resources.files("pointsman.serve").joinpath("status.html.jinja").read_text("utf-8")
    moment = time.strftime("%Y-%m-%d %H:%M:%S", time.gmtime(found["time"]))
    return environment.from_string(template).render(
        **found, moment=moment, refresh=REFRESH, security=POLICY
    )


def _read(processes: Sequence[Process]) -> list[tuple[Process, dict[str, Any]]]:
    """Snapshots that siblings published; one of another version is left out."""
    found = []
    for process in processes:
        try:
            said = json.loads(process.state)
            _ = said["began"], said["requests"], said["alarm"]["alarmed"], said["upstreams"].items()
            _ = said["shift"]["shifted"]
        except (ValueError, KeyError, TypeError, AttributeError):
            continue
        found.append((process, said))
    return found


def _models(snapshots: list[tuple[Process, dict[str, Any]]]) -> list[dict[str, Any]]:
    """Every model with what all processes together say of it."""
    rows: dict[str, dict[str, Any]] = {}
    for _, said in snapshots:
        for name, upstream in said["upstreams"].items():
            row = rows.setdefault(
                name,
                {"name": name, "closed": 0, "probing": 0, "open": 0, "running": 0, "waiting": 0},
            )
            row[upstream["breaker"]] += 1
            row["running"] += upstream["running"]
            row["waiting"] += upstream["waiting"]
    return list(rows.values())


async def _spending(gateway: "Gateway", key: Key | None, now: float) -> list[dict[str, Any]]:
    """What was spent in the present period: see `status`."""
    totals = {(total.key, total.period): total for total in await gateway.store.totals()}
    if key is not None:
        return [_spent(key, totals, now)]
    keys = [Key(ANONYMOUS, "without a key"), *await gateway.store.keys()]
    rows = [_spent(one, totals, now) for one in keys if one.revoked is None]
    rows = [row for row in rows if row["key"] != ANONYMOUS or row["requests"]]
    if not gateway.generation.config.server.keys or not rows:
        return rows
    parts = ("settled", "reserved", "requests")
    sums = {part: sum(row[part] for row in rows) for part in parts}
    return [{"key": None, "name": "all keys", "period": "", "budget": None, **sums}]


def _spent(key: Key, totals: dict[tuple[int, str], Any], now: float) -> dict[str, Any]:
    label = period_label(key.period, now)
    total = totals.get((key.id, label))
    return {
        "key": key.id,
        "name": key.name,
        "period": label,
        "budget": key.budget,
        "settled": total.settled if total else 0.0,
        "reserved": total.reserved if total else 0.0,
        "requests": total.requests if total else 0,
    }


def _lasting(seconds: float) -> str:
    """A duration in its two largest units."""
    whole = max(0, int(seconds))
    days, hours, minutes = whole // 86400, whole // 3600 % 24, whole // 60 % 60
    if days:
        return f"{days} d {hours} h"
    if hours:
        return f"{hours} h {minutes} min"
    return f"{minutes} min {whole % 60} s" if minutes else f"{whole} s"
