"""`pointsman compare DATA`: every way to spend less, on one chart, with a certified pick."""

import shlex
import sys
from collections.abc import Sequence
from pathlib import Path
from types import TracebackType
from typing import Self

import click
from rich.console import Console
from rich.progress import (
    BarColumn,
    Progress,
    TaskID,
    TextColumn,
    TimeElapsedColumn,
    TimeRemainingColumn,
)

from pointsman.cli.jobs import LogOptions, data_job, log_job, looks_like_log
from pointsman.compare.request import WAYS, Request
from pointsman.compare.results import POLICY, REPORT, as_json
from pointsman.compare.state import FOLDER
from pointsman.frontier.table import results_table


class Bar:
    """A progress bar over all training, on standard error, below a few lines of heading.

    Nothing is shown before the work is planned, so that a refusal stands alone.
    """

    def __init__(self, console: Console, heading: Sequence[str]) -> None:
        self.console, self.heading = console, heading
        self.bar = Progress(
            TextColumn("{task.description:<32}"),
            BarColumn(),
            TextColumn("{task.percentage:>3.0f}%"),
            TimeElapsedColumn(),
            TextColumn("left"),
            TimeRemainingColumn(),
            console=console,
        )
        self.task: TaskID | None = None

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        if self.task is not None:
            self.bar.stop()

    def plan(self, total: float) -> None:
        """How much work there is in all."""
        for line in self.heading:
            self.console.print(line)
        self.bar.start()
        self.task = self.bar.add_task("starting", total=total)

    def begin(self, name: str) -> None:
        """What is done now."""
        if self.task is not None:
            self.bar.update(self.task, description=name)
            if not self.console.is_terminal:
                self.console.print(name)

    def advance(self, work: float) -> None:
        """So much more is done."""
        if self.task is not None:
            self.bar.advance(self.task, work)


@click.command("compare")
@click.argument("data")
@click.option("--target", metavar="COLUMN", help="Label column of a table.")
@click.option(
    "--max-drop",
    default=0.01,
    show_default=True,
    help="Largest loss of quality against the reference, as a share of its scale.",
)
@click.option(
    "--confidence",
    default=0.95,
    show_default=True,
    help="Probability with which the promise holds.",
)
@click.option(
    "--cost",
    type=click.Choice(["flops", "latency"]),
    default="flops",
    show_default=True,
    help="What an input spends: counted FLOPs, or time measured on this machine.",
)
@click.option(
    "--ways",
    default=",".join(WAYS),
    show_default=True,
    metavar="LIST",
    help="Which ways to spend less to try.",
)
@click.option(
    "--out",
    type=click.Path(path_type=Path),
    metavar="DIR",
    help="Folder for the results.  [default: pointsman-NAME]",
)
@click.option("--seed", default=0, show_default=True, help="Fixes everything random.")
@click.option("--resume", is_flag=True, help="Continue a run that was cut off.")
@click.option(
    "--rows", type=int, metavar="N", help="Work on a sample of N training rows (of a log: queries)."
)
@click.option("--query", metavar="COLUMN", help="Of a log: the column with the queries.")
@click.option("--models", metavar="LIST", help="Of a log: its models, if columns are ambiguous.")
@click.option("--reference", metavar="MODEL", help="Of a log: the model whose quality is kept.")
@click.option(
    "--prices",
    type=click.Path(path_type=Path),
    metavar="FILE",
    help="Of a log: US$ per million tokens, or per call, of each model (.toml, .json, .csv).",
)
@click.option("--group", multiple=True, metavar="COLUMN", help="Of a log: whose queries these are.")
@click.option("--quality-range", metavar="LOW,HIGH", help="Of a log: scores are on this scale.")
@click.option(
    "--encoder",
    metavar="WHICH",
    help="Of a log: words (default), vectors (a column), a folder, or URL#MODEL.",
)
@click.option(
    "--examples", default=5, show_default=True, help="Of a log: queries shown in the report."
)
@click.option("--large", is_flag=True, help="Read a file of over 1 GiB whole.")
@click.option("--json", "as_json_", is_flag=True, help="Print results.json instead of the table.")
def command(
    data: str,
    target: str | None,
    max_drop: float,
    confidence: float,
    cost: str,
    ways: str,
    out: Path | None,
    seed: int,
    resume: bool,
    rows: int | None,
    large: bool,
    query: str | None,
    models: str | None,
    reference: str | None,
    prices: Path | None,
    group: tuple[str, ...],
    quality_range: str | None,
    encoder: str | None,
    examples: int,
    as_json_: bool,
) -> None:
    """Try every way to spend less on DATA and pick the cheapest that keeps its quality.

    DATA is digits, mnist1d, text or known-routes, or a .csv or .parquet file with a label column,
    or an .npz file with x_train and y_train (and x_test, y_test).

    DATA may also be an evaluation log (.csv, .parquet, .jsonl): queries, with the score and the
    cost of each model. Then routers and cascades over these models are compared.
    """
    # Names come from files: they are shown as they are, and a command can be copied in one piece.
    notes = Console(stderr=True, markup=False, emoji=False, highlight=False, soft_wrap=True)
    chosen = tuple(way.strip() for way in ways.split(",") if way.strip())
    asked = " ".join(
        shlex.quote(word) for word in ["pointsman", *sys.argv[1:]] if word != "--resume"
    )
    asked_of_log = LogOptions(
        query, models, reference, prices, group, quality_range, encoder, examples
    )
    request = Request(max_drop, confidence, cost, chosen, seed, asked)
    request.check("features")
    if asked_of_log.given() or looks_like_log(data):
        job = log_job(data, request, asked_of_log, rows=rows, resume=resume, target=target)
    else:
        job = data_job(data, request, target=target, rows=rows, large=large, resume=resume)
    folder = out or Path(f"pointsman-{job.name}")
    try:
        with Bar(notes, job.heading) as bar:
            found = job.run(folder, bar)
    except KeyboardInterrupt:
        begun = (folder / FOLDER).is_dir()
        notes.print("\nstopped" + (f"; {asked} --resume continues" if begun else ""))
        sys.exit(130)
    if as_json_:
        click.echo(as_json(found), nl=False)
    else:
        Console(emoji=False).print(results_table(found))
    notes.print(f"report: {folder / REPORT}   policy: {folder / POLICY}")
