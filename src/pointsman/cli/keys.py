"""`pointsman keys`: who may use the gateway, how much they may spend, and what they have spent."""

import asyncio
import json
import time
from collections.abc import Callable, Coroutine
from dataclasses import asdict
from typing import TYPE_CHECKING, Any, TypeVar

import click

from pointsman.errors import InputError

if TYPE_CHECKING:
    from rich.table import Table

    from pointsman.serve.store import Key, Reservation, Store, Total

T = TypeVar("T")

_store = click.option(
    "--store",
    "url",
    required=True,
    envvar="POINTSMAN_STORE",
    metavar="URL",
    help="sqlite:///PATH or postgresql://USER@HOST/DATABASE; or set POINTSMAN_STORE.",
)
_json = click.option("--json", "as_json", is_flag=True, help="Print JSON instead of a table.")


@click.group("keys")
def command() -> None:
    """Keys of the gateway: add, list and revoke them, and look at their ledger."""


@command.command("add")
@click.argument("name")
@_store
@click.option("--budget", type=float, metavar="US$", help="At most this much per period.")
@click.option(
    "--period",
    type=click.Choice(["day", "month", "total"]),
    default="month",
    show_default=True,
    help="Over which the budget holds, by the calendar in UTC.",
)
@click.option("--rate", type=float, metavar="N", help="At most N requests per minute.")
@click.option(
    "--point", "points", multiple=True, metavar="POINT", help="May only ask for these; repeat it."
)
@click.option("--floor", metavar="POINT", help="Pacing never routes it below this point.")
def add(
    name: str,
    url: str,
    budget: float | None,
    period: str,
    rate: float | None,
    points: tuple[str, ...],
    floor: str | None,
) -> None:
    """Make a key called NAME and print it, this once: the store keeps only its hash."""
    from pointsman.serve.keys import hash_key, new_key
    from pointsman.serve.store import Key

    secret = new_key()
    wanted = Key(
        id=0,
        name=name,
        rate_per_minute=rate,
        budget=budget,
        period=period,  # type: ignore[arg-type]  # click has checked it
        points=points or None,
        floor=floor,
        created=time.time(),
    )
    made = _with(url, lambda store: store.add_key(wanted, hash_key(secret)), create=True)
    click.echo(f"key {made.id} {made.name!r} made: it is shown only now", err=True)
    click.echo(secret)


@command.command("list")
@_store
@_json
@click.option("--all", "every", is_flag=True, help="Revoked ones too.")
def list_(url: str, as_json: bool, every: bool) -> None:
    """List the keys with their limits and what they have spent in the present period."""

    async def read(store: "Store") -> list[tuple["Key", tuple[float, float]]]:
        return [(key, await store.spent(key.id)) for key in await store.keys()]

    found = [pair for pair in _with(url, read) if every or pair[0].revoked is None]
    if as_json:
        _print_json([{**asdict(k), "settled": s, "reserved": r} for k, (s, r) in found])
        return
    table = _table("id", "name", "spent US$", "reserved US$", "budget US$", "per minute", "points")
    for key, (settled, reserved) in found:
        budget = "none" if key.budget is None else f"{_money(key.budget)} a {key.period}"
        table.add_row(
            str(key.id),
            key.name + ("" if key.revoked is None else f" (revoked {_when(key.revoked)})"),
            _money(settled),
            _money(reserved),
            budget.replace("a total", "in total"),
            "any" if key.rate_per_minute is None else f"{key.rate_per_minute:g}",
            "all" if key.points is None else ", ".join(key.points),
        )
    _print(table)


@command.command("revoke")
@click.argument("key")
@_store
def revoke(key: str, url: str) -> None:
    """Put KEY, a name or an id, out of use for good."""
    gone = _with(url, lambda store: store.revoke_key(key))
    click.echo(f"key {gone.id} {gone.name!r} is revoked")


@command.command("ledger")
@_store
@_json
@click.option("--settle", metavar="REQUEST", help="Close a reservation, at --cost.")
@click.option("--cost", type=float, metavar="US$", help="What it cost.")
@click.option("--release", metavar="REQUEST", help="Close a reservation that cost nothing.")
def ledger(
    url: str, as_json: bool, settle: str | None, cost: float | None, release: str | None
) -> None:
    """Show what every key spent in every period, and what is set aside.

    A reservation is in doubt when the process that made it has ended without a word on the cost.
    It stays counted until it is closed here.
    """
    if (settle is None) != (cost is None):
        raise InputError("--settle REQUEST and --cost US$ go together: give both or neither")
    if settle is not None and cost is not None:
        _close(url, settle, lambda store: store.settle(settle, cost))
    if release is not None:
        _close(url, release, lambda store: store.release(release))

    async def read(
        store: "Store",
    ) -> tuple[list["Key"], list["Total"], list["Reservation"], list[tuple[int, str]]]:
        return (
            await store.keys(),
            await store.totals(),
            await store.reservations(),
            await store.check(),
        )

    keys, totals, reservations, wrong = _with(url, read)
    names = {0: "(no key)", **{key.id: key.name for key in keys}}
    if as_json:
        _print_json(
            {
                "totals": [{**asdict(t), "name": names.get(t.key)} for t in totals],
                "reservations": [{**asdict(r), "name": names.get(r.key)} for r in reservations],
                "differences": wrong,
            }
        )
    else:
        _show_ledger(names, totals, reservations)
    if wrong:
        raise InputError(
            f"totals differ from the sums of their requests for {wrong}: the store was written by"
            " something else, restore it from a copy"
        )


@command.command("prune")
@_store
@click.option("--days", type=click.FloatRange(min=1), required=True, help="Keep so many.")
def prune(url: str, days: float) -> None:
    """Drop single requests, of the ledger and of the served log, that ended long ago.

    What keys spent in every period stays, and so does what is set aside. The gateway may run on.
    """
    before = time.time() - days * 86400
    entries, rows = _with(url, lambda store: store.prune(before))
    click.echo(f"dropped {entries:,} requests of the ledger and {rows:,} rows of the served log")


def _show_ledger(
    names: dict[int, str], totals: list["Total"], reservations: list["Reservation"]
) -> None:
    table = _table("key", "period", "requests", "settled US$", "reserved US$")
    for total in totals:
        table.add_row(
            names.get(total.key, str(total.key)),
            total.period,
            str(total.requests),
            _money(total.settled),
            _money(total.reserved),
        )
    _print(table)
    if not reservations:
        click.echo("Nothing is set aside.")
        return
    table = _table("request", "key", "reserved US$", "since", "process", "")
    for one in reservations:
        table.add_row(
            one.request,
            names.get(one.key, str(one.key)),
            _money(one.amount),
            _when(one.since),
            one.process,
            "in doubt" if one.in_doubt else "",
        )
    _print(table)
    doubt = [one for one in reservations if one.in_doubt]
    amount = _money(sum(one.amount for one in doubt))
    click.echo(
        f"In doubt: {len(doubt)} reservations, US$ {amount}. Close one with"
        " --settle REQUEST --cost US$, or with --release REQUEST."
    )


def _close(url: str, request: str, closing: Callable[["Store"], Coroutine[Any, Any, bool]]) -> None:
    """Close a reservation, or say that there is none."""
    if not _with(url, closing):
        raise InputError(
            f"nothing is set aside for request {request!r}: `pointsman keys ledger` shows what is"
        )


def _with(url: str, work: "Callable[[Store], Coroutine[Any, Any, T]]", create: bool = False) -> T:
    """Open the store, do something with it, and close it."""
    from pointsman.serve.store import open_store

    async def run() -> T:
        store = await open_store(url, create=create)
        try:
            return await work(store)
        finally:
            await store.close()

    return asyncio.run(run())


def _money(dollars: float) -> str:
    from pointsman.serve.store.money import NANO, in_words

    return in_words(round(dollars * NANO))


def _when(seconds: float) -> str:
    return time.strftime("%Y-%m-%d %H:%M:%S", time.gmtime(seconds)) + " UTC"


def _table(*columns: str) -> "Table":
    from rich import box
    from rich.table import Table

    table = Table(box=box.SIMPLE, pad_edge=False)
    for column in columns:
        number = "US$" in column or column in ("id", "requests", "per minute")
        table.add_column(column, justify="right" if number else "left", overflow="fold")
    return table


def _print(table: "Table") -> None:
    from rich.console import Console

    Console(markup=False, emoji=False).print(table)


def _print_json(value: Any) -> None:
    click.echo(json.dumps(value, indent=2))
