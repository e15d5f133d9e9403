"""Options that several commands have, and what they come to."""

from enum import StrEnum
from pathlib import Path
from typing import Annotated

import typer

from nexus.commands.common import profile_here
from nexus.core.errors import UserError
from nexus.core.io.terminal import assume, err
from nexus.core.plan import Plan
from nexus.core.prefill.late_share import LEAST_LATE_SHARE, MOST_LATE_SHARE
from nexus.core.prefill.ranking import DEFAULT_ORDER
from nexus.planner.workload.requests import Lengths, Requests, lengths_of, longest_request
from nexus.planner.workload.trace_columns import parse_columns
from nexus.planner.workload.traces import read_trace
from nexus.profiles.schema import Profile, read_profile
from nexus.profiles.shipped import PROFILE_HERE, shipped_profiles

MOST = 1e9  # of anything that a user states in tokens, milliseconds or requests a second
Trace = Annotated[
    Path | None,
    typer.Option(
        help="Requests: Azure's, BurstGPT's, Mooncake's, ShareGPT's, or a table of yours."
    ),
]
ColumnsOption = Annotated[
    str,
    typer.Option(
        "--columns",
        help="The trace's, as time=…,input=…,output=…,cached=…; time_ms=… for milliseconds.",
    ),
]
TokenizerOption = Annotated[
    str | None,
    typer.Option(help="For a trace of texts: a model, or tokens per character, as 0.25."),
]
ProfileOption = Annotated[
    Path | None,
    typer.Option("--profile", help="What the plan was made from; else as `nexus plan`."),
]
PlanArgument = Annotated[Path, typer.Argument(help="A plan.")]


class PartitionerOption(StrEnum):
    """Who confines the phases to their SMs."""

    green = "green"
    mps = "mps"


class PrefillOrderOption(StrEnum):
    """How waiting prompts are ordered."""

    deadline = "deadline"
    spf = "spf"
    fcfs = "fcfs"


DEFAULT_PREFILL_ORDER = PrefillOrderOption(DEFAULT_ORDER)
LateShareOption = Annotated[
    float,
    typer.Option(
        help="Of all prompt tokens, what prompts keep that miss their bound; not for fcfs.",
        min=LEAST_LATE_SHARE,
        max=MOST_LATE_SHARE,
    ),
]


def profile_of_plan(plan: Plan) -> Path:
    """The profile that ``plan`` was made from: here, or shipped; else as `nexus plan`."""
    shipped = (*shipped_profiles(), *shipped_profiles("mps"))
    for path in (*([PROFILE_HERE] if PROFILE_HERE.exists() else []), *shipped):
        if read_profile(path).hash == plan.profile_hash:
            assume(f"profile {path}")
            return path
    return profile_here()


def requests_of(
    path: Path | None, columns: str, tokenizer: str | None, rate: float | None
) -> Requests | None:
    """What ``path`` holds, told in a line."""
    wanted = parse_columns(columns)
    if path is None:
        if wanted or tokenizer:
            raise UserError("--columns and --tokenizer say how to read a --trace: there is none")
        return None
    return read_trace(path, columns=wanted, rate=rate, tokenizer=tokenizer, say=_say)


def say_what_is_cut(measured: Profile, workload: Lengths | Requests) -> None:
    """Say in a line which requests are longer than the profiled engine serves."""
    told = lengths_of(workload).told_of_cut(longest_request(measured))
    if told:
        _say(told)


def _say(line: str) -> None:
    err.print(line, markup=False, soft_wrap=True)
