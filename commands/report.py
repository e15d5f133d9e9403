"""``nexus report``: a plan as a page."""

from pathlib import Path
from typing import Annotated

import typer

from nexus.commands.options import (
    ColumnsOption,
    PlanArgument,
    ProfileOption,
    Trace,
    profile_of_plan,
    requests_of,
)
from nexus.core.io.outputs import check_writable
from nexus.core.io.terminal import err
from nexus.core.plan import read_plan
from nexus.profiles.schema import read_profile
from nexus.profiles.shipped import PROFILE_HERE


def report(
    plan: PlanArgument = Path("plan.yaml"),
    profile: ProfileOption = None,
    trace: Trace = None,
    columns: ColumnsOption = "",
    output: Annotated[Path, typer.Option("--output", "-o", help="Where to write.")] = Path(
        "report.html"
    ),
) -> None:
    """Draw a plan and its profile as one page that stands alone.

    Example: nexus report plan.yaml -o report.html
    """
    from nexus.planner.report.page import write_report

    table = read_plan(plan)
    source = profile or profile_of_plan(table)
    check_writable(output, plan, source, trace, PROFILE_HERE)
    measured = read_profile(source)
    with err.status("drawing"):
        write_report(output, table, measured, requests_of(trace, columns, None, None))
    typer.echo(f"wrote {output}")
