"""The ``nexus`` command: parse, call, print; nothing else."""

import os
import sys
from typing import Annotated, Any

import typer

from nexus import __version__
from nexus.commands.bench import bench
from nexus.commands.common import PASS_ON
from nexus.commands.doctor import doctor
from nexus.commands.plan import plan
from nexus.commands.profile import profile
from nexus.commands.report import report
from nexus.commands.serve import serve
from nexus.commands.simulate import simulate
from nexus.core.errors import NexusError
from nexus.runtime.plugin import TABLE

app = typer.Typer(
    name="nexus",
    no_args_is_help=True,
    add_completion=False,
    rich_markup_mode=None,
    pretty_exceptions_enable=False,
)
# typer carries a click of its own; this is that click's UsageError.
USAGE_ERROR: Any = typer.BadParameter.__base__


def _version(wanted: bool) -> None:
    if wanted:
        typer.echo(__version__)
        raise typer.Exit


@app.callback()
def nexus(
    _: Annotated[
        bool, typer.Option("--version", callback=_version, is_eager=True, help="Show it, exit.")
    ] = False,
) -> None:
    """Measure, plan and run the sharing of one GPU between prefill and decode, inside vLLM."""


app.command()(doctor)
app.command(context_settings=PASS_ON)(profile)
app.command()(plan)
app.command(context_settings=PASS_ON)(serve)
app.command()(simulate)
app.command()(report)
app.command(context_settings=PASS_ON)(bench)


def main() -> None:
    """Entry point; a user's mistake is one line on stderr."""
    os.environ.pop(TABLE, None)  # for vLLM's own commands: this one's options say all
    try:
        status = app(sys.argv[1:] or ["--help"], standalone_mode=False)
    except NexusError as error:
        _die(str(error), error.exit_code)
    except USAGE_ERROR as error:
        _die(error.format_message(), 2)
    except (KeyboardInterrupt, typer.Abort):
        sys.exit(130)
    sys.exit(status if isinstance(status, int) else 0)


def _die(message: str, exit_code: int) -> None:
    typer.echo(f"nexus: {' '.join(message.split())}", err=True)
    sys.exit(exit_code)


if __name__ == "__main__":
    main()
