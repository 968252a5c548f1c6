"""`pointsman show RESULTS`: the table of an earlier run."""

from pathlib import Path

import click
from rich.console import Console

from pointsman.compare.results import as_json, read
from pointsman.errors import InputError, PointsmanError
from pointsman.frontier.table import results_table


@click.command("show")
@click.argument("results", type=click.Path(path_type=Path))
@click.option("--json", "as_json_", is_flag=True, help="Print results.json instead of the table.")
def command(results: Path, as_json_: bool) -> None:
    """Print the table of an earlier run: RESULTS is results.json or the folder that holds it."""
    found = read(results)
    if as_json_:
        click.echo(as_json(found), nl=False)
        return
    try:
        table = results_table(found)
    except PointsmanError:
        raise
    except Exception as error:  # a part that is not what it should be fails in a dozen ways
        raise InputError(
            f"{results}: the results are damaged ({type(error).__name__}): run compare again"
        ) from error
    Console(emoji=False).print(table)
