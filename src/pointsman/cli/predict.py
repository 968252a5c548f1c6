"""`pointsman predict POLICY DATA`: run a saved policy on new inputs."""

import csv
import io
from pathlib import Path

import click
import numpy as np

from pointsman.compare.data import Array
from pointsman.compare.inputs import read_inputs
from pointsman.compare.policy import load_policy
from pointsman.errors import InputError
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
def command(policy: Path, data: str, out: Path | None) -> None:
    """Run the saved POLICY (a folder) on DATA: prediction, which branch answered, cost spent.

    DATA is a file such as compare takes, with or without labels; of an .npz file the array x is
    used, or x_test. For a text policy DATA is any file: its windows of bytes, and the byte that
    follows each.
    """
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
    if out is None:  # as UTF-8 whatever the terminal's encoding: a class keeps its name
        click.echo(text.getvalue().encode(), nl=False)
        return
    try:
        write_atomically(out, text.getvalue())
    except OSError as error:
        raise InputError(f"{out}: cannot be written ({error.strerror})") from error
    mean = float(found.cost.mean()) if len(x) else 0.0
    click.echo(
        f"{len(x)} predictions, {mean:.4g} {found.cost.unit} each on average: {out}", err=True
    )
