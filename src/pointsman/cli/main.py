"""`pointsman`: one command for every level. Subcommands import what they need when they run."""

import importlib
import os
import sys
from typing import Any

import click

from pointsman import __version__
from pointsman.errors import PointsmanError

COMMANDS = {
    "compare": "pointsman.cli.compare",
    "predict": "pointsman.cli.predict",
    "show": "pointsman.cli.show",
    "claims": "pointsman.cli.claims",
}


class Commands(click.Group):
    """Subcommands by name, each imported only when it is asked for, so that help is instant."""

    def list_commands(self, ctx: click.Context) -> list[str]:
        """The names, in the order of use."""
        return list(COMMANDS)

    def get_command(self, ctx: click.Context, cmd_name: str) -> click.Command | None:
        """The command of this name, or None."""
        if cmd_name not in COMMANDS:
            return None
        command: click.Command = importlib.import_module(COMMANDS[cmd_name]).command
        return command

    def invoke(self, ctx: click.Context) -> Any:
        """Run a subcommand; an error of a user's making becomes one line and exit code 2."""
        try:
            return super().invoke(ctx)
        except PointsmanError as error:
            click.echo(f"pointsman: {error}", err=True)
            ctx.exit(2)


@click.command(cls=Commands, context_settings={"help_option_names": ["-h", "--help"]})
@click.version_option(__version__, prog_name="pointsman")
def cli() -> None:
    """Decide, for every input, which computation to run, and prove what that saves."""


def main() -> None:
    """The entry point."""
    try:
        cli(prog_name="pointsman")
    except BrokenPipeError:  # the reader of our output went away, as `head` does
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        sys.exit(1)
