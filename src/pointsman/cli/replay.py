"""`pointsman replay POLICY SERVED`: a new policy tried on what was served."""

import json
import math
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import click
from rich.console import Console
from rich.table import Table

from pointsman.errors import InputError
from pointsman.pool.online.estimates import Checks
from pointsman.pool.online.replaying import Replay, replay
from pointsman.pool.online.served import Row, read_jsonl


@click.command("replay")
@click.argument("policy", type=click.Path(path_type=Path))
@click.argument("served")
@click.option("--point", default="certified", show_default=True, help="The policy's point to try.")
@click.option(
    "--confidence",
    type=click.FloatRange(0.5, 0.9999),
    default=0.95,
    show_default=True,
    help="Of the intervals.",
)
@click.option("--json", "as_json", is_flag=True, help="Print the report as JSON.")
def command(policy: Path, served: str, point: str, confidence: float, as_json: bool) -> None:
    """Estimate what POLICY would have reached on the requests in SERVED.

    POLICY is a policy file or the folder that holds it. SERVED is the gateway's store, such as
    sqlite:///gateway.db or postgresql://..., or a .jsonl file with one served request a line.
    Exit code 1: the log knows too little of what the policy does, so there is no estimate.
    """
    from pointsman.pool.policy import PoolPolicy

    rows = _rows(served)
    found = replay(PoolPolicy.load(policy), rows, point=point, checks=Checks(confidence=confidence))
    if as_json:
        click.echo(json.dumps(_plain(found.to_dict()), indent=2))
    else:
        _show(found)
    if found.refused:
        raise SystemExit(1)


def _rows(served: str) -> Iterator[Row]:
    if "://" in served:
        from pointsman.serve.store import read_served

        return read_served(served)
    path = Path(served)
    if path.suffix.lower() in (".db", ".sqlite", ".sqlite3"):
        raise InputError(f"a store is given by its URL: sqlite:///{served}")
    return read_jsonl(path)


def _show(found: Replay) -> None:
    """Estimates and shares as tables, then the words."""
    console = Console(emoji=False)
    if found.quality:
        table = Table(title=f"Point {found.point} on {found.rows:,} served requests")
        for heading in ("method", "quality", "interval", f"cost ({found.unit})", "interval"):
            table.add_column(heading)
        table.add_row(
            "as served", f"{found.served_quality:.4f}", "", f"{found.served_cost:.4g}", ""
        )
        for method, quality in found.quality.items():
            cost = found.cost.get(method)
            table.add_row(
                method,
                f"{quality.value:.4f}",
                f"{quality.low:.4f} to {quality.high:.4f}",
                f"{cost.value:.4g}" if cost else "",
                f"{cost.low:.4g} to {cost.high:.4g}" if cost else "",
            )
        console.print(table)
    shares = Table(title="Requests asked first")
    for heading in ("model", "as served", "by this policy"):
        shares.add_column(heading)
    for model, (before, after) in found.shares.items():
        shares.add_row(model, f"{before:.1%}", f"{after:.1%}")
    console.print(shares)
    for why, count in found.left_out.items():
        console.print(f"{count:,} rows left out: {why}.", markup=False)
    console.print(found.words(), markup=False)


def _plain(value: Any) -> Any:
    """JSON has no NaN: null instead."""
    if isinstance(value, Mapping):
        return {key: _plain(each) for key, each in value.items()}
    if isinstance(value, list | tuple):
        return [_plain(each) for each in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value
