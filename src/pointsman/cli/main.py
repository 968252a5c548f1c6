"""`pointsman`: one command for every level. Subcommands import what they need when they run."""

import codecs
import importlib
import io
import os
import sys
from typing import Any

import click

from pointsman import __version__
from pointsman.errors import PointsmanError

# What each subcommand does; it lives in the module of its name beside this one.
COMMANDS = {
    "compare": "Try every way to spend less on data, and pick one.",
    "search": "Find the subnets of a supernet that are best at every cost.",
    "predict": "Run a saved policy on new inputs.",
    "show": "Print the table of an earlier run.",
    "serve": "Answer requests with the models of a saved policy.",
    "keys": "Add, list and revoke keys of the gateway, and read its ledger.",
    "replay": "Try a policy on what a gateway has served.",
    "claims": "List, run and document the published systems.",
}

# Packages that only some commands need -> the extra that installs them.
EXTRAS = {
    **dict.fromkeys(
        ("httptools", "httpx2", "prometheus_client", "starlette", "uvicorn", "uvloop"), "serve"
    ),
    "psycopg": "postgres",
    "ray": "ray",
    "optuna": "search",
    "pymoo": "search",
    "transformers": "hf",
}

PLAIN = {"\xa0": " ", "−": "-", "•": "*", "▸": ">", "…": "...", "“": '"', "”": '"', "µ": "u"}


class Commands(click.Group):
    """Subcommands by name, each imported only when it is asked for, so that help is instant."""

    def format_commands(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        """Write the list of subcommands, without importing them."""
        with formatter.section("Commands"):
            formatter.write_dl(list(COMMANDS.items()))

    def list_commands(self, ctx: click.Context) -> list[str]:
        """The names, in the order of use."""
        return list(COMMANDS)

    def get_command(self, ctx: click.Context, cmd_name: str) -> click.Command | None:
        """The command of this name, or None."""
        if cmd_name not in COMMANDS:
            return None
        module = importlib.import_module(f"pointsman.cli.{cmd_name}")
        command: click.Command = module.command
        return command

    def invoke(self, ctx: click.Context) -> Any:
        """Run a subcommand; an error of a user's making becomes one line and exit code 2."""
        try:
            return super().invoke(ctx)
        except PointsmanError as error:
            # A name from a file may hold line breaks, or what a terminal would obey.
            line = "".join(c if c.isprintable() else " " for c in str(error))
            click.echo(f"pointsman: {line}", err=True)
            ctx.exit(2)
        except ModuleNotFoundError as error:
            extra = EXTRAS.get((error.name or "").split(".")[0])
            if extra is None:
                raise
            click.echo(
                f"pointsman: {error.name} is not installed, which this needs: "
                f"pip install 'pointsman[{extra}]'",
                err=True,
            )
            ctx.exit(2)


@click.command(cls=Commands, context_settings={"help_option_names": ["-h", "--help"]})
@click.version_option(__version__, prog_name="pointsman")
def cli() -> None:
    """Decide, for every input, which computation to run, and prove what that saves."""


def _plain(error: UnicodeError) -> tuple[str, int]:
    """What a terminal without Unicode shows instead."""
    if not isinstance(error, UnicodeEncodeError):
        raise error
    wanted = error.object[error.start : error.end]
    return "".join(PLAIN.get(character, "?") for character in wanted), error.end


def main() -> None:
    """The entry point."""
    codecs.register_error("pointsman", _plain)
    if isinstance(sys.stdout, io.TextIOWrapper):
        sys.stdout.reconfigure(errors="pointsman")
    try:
        cli(prog_name="pointsman")
    except BrokenPipeError:  # the reader of our output went away, as `head` does
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        sys.exit(1)
    except OSError as error:
        if error.filename is not None:
            raise
        click.echo(f"pointsman: the output cannot be written ({error.strerror})", err=True)
        sys.exit(2)
