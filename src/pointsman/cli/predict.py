"""`pointsman predict POLICY DATA`: run a saved policy on new inputs."""

import csv
import io
from pathlib import Path
from random import Random

import click
import numpy as np

from pointsman.compare.data import Array
from pointsman.compare.inputs import read_inputs
from pointsman.compare.policy import load_policy
from pointsman.errors import InputError
from pointsman.pool.policy_file import place_of
from pointsman.writing import write_atomically


@click.command("predict")
@click.argument("policy", type=click.Path(path_type=Path))
@click.argument("data")
@click.option(
    "--out",
    type=click.Path(path_type=Path),
    metavar="FILE",
    help="Write a .csv file instead of standard output.",
)
@click.option(
    "--point",
    default="certified",
    show_default=True,
    help="Of a policy made of a log: its operating point.",
)
def command(policy: Path, data: str, out: Path | None, point: str) -> None:
    """Run the saved POLICY (a folder) on DATA: prediction, which branch answered, cost spent.

    DATA is a file such as compare takes, with or without labels; of an .npz file the array x is
    used, or x_test. For a text policy DATA is any file: its windows of bytes, and the byte that
    follows each. For a policy made of an evaluation log DATA is a file of queries: for each, the
    model that is asked first, and what is expected of it.
    """
    if place_of(policy).is_file():
        _written(_routed(policy, data, point), out, "queries routed")
        return
    loaded = load_policy(policy)
    x = read_inputs(data, loaded.data)
    found = loaded.predict(x)
    names = list(loaded.data["classes"]) or [str(byte) for byte in range(256)]
    text = io.StringIO()
    rows = csv.writer(text, lineterminator="\n")
    per = "_per_token" if loaded.data["kind"] == "text" else ""
    rows.writerow(["prediction", "confidence", "branch", f"cost_{found.cost.unit}{per}"])
    spent: Array = np.asarray(found.cost.amount)
    for label, sure, stage, cost in zip(
        found.classes, found.confidence, found.stage, spent, strict=True
    ):
        rows.writerow([names[label], f"{sure:.4f}", loaded.stage_names[stage], f"{cost:.6g}"])
    mean = float(found.cost.mean()) if len(x) else 0.0
    said = f"{len(x)} predictions, {mean:.4g} {found.cost.unit} each on average"
    _written(text.getvalue(), out, said)


def _written(text: str, out: Path | None, said: str) -> None:
    """Print the table, or write it to a file and say so."""
    if out is None:  # as UTF-8 whatever the terminal's encoding: a class keeps its name
        click.echo(text.encode(), nl=False)
        return
    try:
        write_atomically(out, text)
    except OSError as error:
        raise InputError(f"{out}: cannot be written ({error.strerror})") from error
    click.echo(f"{said}: {out}", err=True)


def _routed(policy: Path, data: str, point: str) -> str:
    """A table of whom a policy asks first for each query of a file."""
    from pointsman.pool.policy import PoolPolicy
    from pointsman.pool.reading import read_queries

    loaded = PoolPolicy.load(policy)
    at = loaded.point(point)
    text = io.StringIO()
    rows = csv.writer(text, lineterminator="\n")
    rows.writerow(["model", "expected_quality", f"expected_cost_{loaded.unit}", "why"])
    draw = Random(0)
    for query, task in read_queries(Path(data)):
        step = loaded.decide(query, point=at, task=task, chance=draw.random()).step
        rows.writerow(
            [loaded.models[step.model], f"{step.quality:.4f}", f"{step.cost:.6g}", step.why]
        )
    return text.getvalue()
