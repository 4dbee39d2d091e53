"""The command line ``fl-shield``: one sentence and exit code 2 where the user can help."""

from __future__ import annotations

import sys
from collections.abc import Mapping
from importlib import import_module
from importlib.util import find_spec
from typing import Annotated, Any

import typer
from typer.core import TyperGroup

from fl_shield import __version__
from fl_shield.errors import EngineError, ShieldError

COMMANDS: Mapping[str, str] = {
    "simulate": "fl_shield.cli.simulate",
    "audit": "fl_shield.cli.audit",
    "meta-train": "fl_shield.cli.meta_train",
    "evaluate": "fl_shield.cli.evaluate",
    "arena": "fl_shield.cli.arena",
    "evade": "fl_shield.cli.evade",
}
"""Module of each command; it holds a typer ``app`` and imports nothing heavy on its own."""

USER_ERROR, ENGINE_ERROR = 2, 1


class _LazyGroup(TyperGroup):
    """Imports a command's module when the command, or its help line, is asked for."""

    def list_commands(self, ctx: Any) -> list[str]:
        return [name for name, module in COMMANDS.items() if find_spec(module) is not None]

    def get_command(self, ctx: Any, cmd_name: str) -> Any:
        if cmd_name not in self.list_commands(ctx):
            return None
        command = typer.main.get_command(import_module(COMMANDS[cmd_name]).app)
        command.name = cmd_name
        return command


app = typer.Typer(
    name="fl-shield",
    cls=_LazyGroup,
    no_args_is_help=True,
    add_completion=False,
    rich_markup_mode="rich",
    pretty_exceptions_enable=False,
)


def _show_version(wanted: bool) -> None:
    if wanted:
        typer.echo(f"fl-shield {__version__}")
        raise typer.Exit


@app.callback()
def _root(
    version: Annotated[
        bool,
        typer.Option("--version", callback=_show_version, is_eager=True, help="Show the version."),
    ] = False,
) -> None:
    """Protect Flower federations from backdoors, and keep a record of every decision.

    Start with [bold]fl-shield simulate --preset demo --out runs/demo[/bold].
    """


def main() -> None:
    """Run the command line; errors that a user can mend are one sentence and exit code 2."""
    try:
        app()
    except EngineError as error:
        _fail(error, ENGINE_ERROR)
    except ShieldError as error:
        _fail(error, USER_ERROR)
    except OSError as error:
        _fail(_told(error), USER_ERROR)


def _told(error: OSError) -> str:
    if error.filename is None:
        return str(error)
    return f"cannot use {error.filename}: {error.strerror}; check the path and its permissions"


def _fail(message: object, code: int) -> None:
    typer.echo(f"fl-shield: {message}", err=True)
    sys.exit(code)
