"""Words on the terminal, and the command line itself."""

import os
import shlex
import sys
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from datetime import UTC, datetime

from rich.console import Console
from rich.markup import escape
from rich.progress import (
    BarColumn,
    Progress,
    SpinnerColumn,
    TextColumn,
    TimeElapsedColumn,
    TimeRemainingColumn,
)

err = Console(stderr=True, highlight=False)


def assume(what: str) -> None:
    """Say in one line what was taken for granted."""
    err.print(f"assuming {escape(what)}", soft_wrap=True)


@contextmanager
def progress(*, quiet: bool) -> Iterator[Callable[[str, float], None]]:
    """A line that says what is being done, how long it has taken and about how long it will yet.

    Only on a terminal, and gone when it is over. Gives what to call with the next thing to be
    done and the share of all that is.
    """
    clocks = (TimeElapsedColumn(), TextColumn("left"), TimeRemainingColumn())
    columns = (SpinnerColumn(), TextColumn("{task.description}"), BarColumn(20), *clocks)
    hidden = quiet or not err.is_terminal
    with Progress(*columns, console=err, transient=True, disable=hidden) as bar:
        task = bar.add_task("planning", total=1.0)
        yield lambda what, done: bar.update(task, description=f"planning: {what}", completed=done)


def quieten(*, verbose: bool) -> None:
    """Keep vLLM's log to errors unless ``verbose``, and others' deprecations to themselves.

    In its workers too, which are processes of their own.
    """
    if not verbose:
        os.environ.setdefault("VLLM_LOGGING_LEVEL", "ERROR")
    os.environ.setdefault("PYTHONWARNINGS", "ignore::FutureWarning")
    warnings.filterwarnings("ignore", category=FutureWarning)


def command_line() -> str:
    """This process's command, for a document's provenance."""
    return shlex.join(["nexus", *sys.argv[1:]])


def now() -> str:
    """The time, for a document's provenance."""
    return datetime.now(UTC).isoformat(timespec="seconds")
