"""`pointsman claims`: every published result that was checked, and how to check it again."""

import json
import sys
import time
from pathlib import Path

import click
from rich import box
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn
from rich.table import Table
from rich.text import Text

from pointsman.claims import CLAIMS, Claim, Measurement, Standing, find, measure
from pointsman.claims.frame import SEEDS
from pointsman.claims.measuring import path_of
from pointsman.claims.tables import document, grid, key_figures, provenance
from pointsman.errors import InputError
from pointsman.writing import write_atomically

STYLES = {"holds": "green", "does not hold here": "yellow"}


@click.group("claims", invoke_without_command=True)
@click.option("--json", "as_json", is_flag=True, help="Print a list of objects, not a table.")
@click.pass_context
def command(ctx: click.Context, as_json: bool) -> None:
    """List published results checked at small scale, with what was measured."""
    if ctx.invoked_subcommand is not None:
        return
    standings = [Standing.of(claim) for claim in CLAIMS]
    if as_json:
        listed = [standing.as_dict() for standing in standings]
        click.echo(json.dumps(listed, indent=1, ensure_ascii=False))
    else:
        Console(emoji=False).print(_listing(standings))


@command.command("run")
@click.argument("name")
@click.option("--full", is_flag=True, help="Measure every seed, decide, and record the result.")
@click.option("--json", "as_json", is_flag=True, help="Print JSON, not a table.")
def run(name: str, full: bool, as_json: bool) -> None:
    """Check the mechanism of the claim NAME; with --full, measure it and decide."""
    claim, notes = find(name), Console(stderr=True, emoji=False, highlight=False)
    if not full:
        _quick(claim, as_json)
        return
    try:
        found = _measured(claim, notes)
    except KeyboardInterrupt:
        notes.print("\nstopped; nothing was recorded")
        sys.exit(130)
    if as_json:
        click.echo(found.to_json(), nl=False)
    else:
        Console(emoji=False).print(_result(claim, found))
    notes.print(_recorded(claim, found), soft_wrap=True)


@command.command("docs")
@click.option(
    "--out",
    type=click.Path(path_type=Path),
    default=Path("docs/claims.md"),
    show_default=True,
    metavar="FILE",
    help="Where to write.",
)
def docs(out: Path) -> None:
    """Write the page of all claims from their measured results."""
    text = document(Standing.of(claim) for claim in CLAIMS)
    try:
        write_atomically(out, text)
    except OSError as error:
        raise InputError(
            f"{out} cannot be written ({error.strerror}): run this in the repository, or give --out"
        ) from error
    click.echo(f"{len(CLAIMS)} claims: {out}", err=True)


def _quick(claim: Claim, as_json: bool) -> None:
    start, broken = time.perf_counter(), ""
    try:
        claim.quick()
    except AssertionError as error:
        broken = " ".join(str(error).split())
    seconds = round(time.perf_counter() - start, 2)
    if as_json:
        result = {"slug": claim.slug, "mechanism": "broken" if broken else "works"}
        click.echo(json.dumps({**result, "reason": broken or None, "seconds": seconds}))
    elif broken:
        click.echo(f"{claim.slug}: the mechanism is broken: {broken}")
    else:
        click.echo(f"{claim.slug}: the mechanism works ({seconds:g} s); --full measures the claim")
    if broken:
        sys.exit(1)


def _measured(claim: Claim, notes: Console) -> Measurement:
    bar = Progress(
        TextColumn("{task.description}"),
        BarColumn(),
        MofNCompleteColumn(),
        TextColumn("seeds"),
        TimeElapsedColumn(),
        console=notes,
    )
    with bar:
        task = bar.add_task(claim.slug, total=len(SEEDS))
        return measure(claim, on_seed=lambda seed: bar.advance(task))


def _recorded(claim: Claim, found: Measurement) -> str:
    """Record a measurement beside the claims, where that folder can be written."""
    path = path_of(claim)
    try:
        write_atomically(path, found.to_json())
    except OSError as error:
        return f"not recorded: {path} cannot be written ({error.strerror})"
    return f"recorded: {path}"


def _listing(standings: list[Standing]) -> Table:
    table = Table(box=box.SIMPLE_HEAD, pad_edge=False, show_edge=False, padding=(0, 1))
    for name in ("claim\nlevel", "paper", "status", "key figures"):
        table.add_column(Text(name), no_wrap=name != "paper", vertical="top")
    for standing in standings:
        claim = standing.claim
        figures = key_figures(standing)
        width = max((len(label) for label, _ in figures), default=0)
        table.add_row(
            Text.assemble((claim.slug, "bold"), f"\n{claim.level}"),
            Text(f"{claim.paper.partition(':')[0]} ({claim.paper_id})"),
            Text(_folded(standing), style=STYLES.get(standing.status, "dim")),
            Text("\n".join(f"{label:<{width}}  {value}" for label, value in figures)),
            end_section=True,
        )
    return table


def _folded(standing: Standing) -> str:
    """The status in lines of a few words, so that its column stays narrow."""
    words = standing.status.replace("does not hold", "does not\nhold")
    return words + ("\nmeasured\nbefore a\nchange" if standing.stale else "")


def _result(claim: Claim, found: Measurement) -> Table:
    figures = grid(found)
    table = Table(box=box.SIMPLE_HEAD, pad_edge=False, show_edge=False, padding=(0, 1))
    table.title = Text(f"{claim.paper} ({claim.paper_id})", style="bold")
    table.title_justify = "left"
    table.add_column("")
    for name in figures.columns:
        table.add_column(name, justify="right")
    for name, cells in figures.rows:
        table.add_row(name, *cells)
    table.caption = Text.assemble(
        (f"Criterion: {found.criterion}\n", ""),
        (f"Decision: {found.status}\n", STYLES[found.status]),
        (provenance(found), "dim"),
    )
    table.caption_justify = "left"
    return table
