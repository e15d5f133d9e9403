"""Words on the terminal, and the command line itself."""

import os
import shlex
import sys
import warnings
from datetime import UTC, datetime

from rich.console import Console
from rich.markup import escape

err = Console(stderr=True, highlight=False)


def assume(what: str) -> None:
    """Say in one line what was taken for granted."""
    err.print(f"assuming {escape(what)}", soft_wrap=True)


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
