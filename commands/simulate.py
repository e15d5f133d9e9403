"""``nexus simulate``: a plan in virtual time."""

from pathlib import Path
from typing import Annotated

import typer

from nexus.commands.options import (
    DEFAULT_PREFILL_ORDER,
    MOST,
    ColumnsOption,
    LateShareOption,
    PlanArgument,
    PrefillOrderOption,
    ProfileOption,
    TokenizerOption,
    Trace,
    profile_of_plan,
    requests_of,
    say_what_is_cut,
)
from nexus.core.io.outputs import check_writable, write_atomically
from nexus.core.io.terminal import err
from nexus.core.plan import read_plan
from nexus.core.prefill.late_share import DEFAULT_LATE_SHARE
from nexus.core.prefill.ranking import PrefillOrder
from nexus.planner.workload.requests import lengths_of
from nexus.profiles.schema import read_profile
from nexus.profiles.shipped import PROFILE_HERE


def simulate(
    plan: PlanArgument = Path("plan.yaml"),
    profile: ProfileOption = None,
    trace: Trace = None,
    columns: ColumnsOption = "",
    tokenizer: TokenizerOption = None,
    rate: Annotated[
        float | None,
        typer.Option(
            help="Requests/s; else the trace's own, or 80 % of capacity.", min=0.001, max=MOST
        ),
    ] = None,
    num_requests: Annotated[int, typer.Option(help="How many.", min=1)] = 10_000,
    prefill_order: Annotated[
        PrefillOrderOption, typer.Option(help="As in `nexus serve`.")
    ] = DEFAULT_PREFILL_ORDER,
    late_share: LateShareOption = DEFAULT_LATE_SHARE,
    stock: Annotated[
        list[int] | None, typer.Option(help="Also stock vLLM with this chunk; repeatable.", min=1)
    ] = None,
    curve: Annotated[bool, typer.Option(help="Attainment at rates around capacity.")] = True,
    chrome_trace: Annotated[
        Path | None, typer.Option(help="Write the plan's run as a Chrome trace.")
    ] = None,
    force: Annotated[bool, typer.Option("--force", help="Use another profile.")] = False,
) -> None:
    """Serve requests with a plan in virtual time, by the policy that serves for real.

    Example: nexus simulate plan.yaml --trace mine.csv --rate 16 --stock 8192
    """
    from nexus.planner.report.chrome import chrome_trace as trace_of
    from nexus.planner.report.replay import plan_system, replay
    from nexus.planner.simulator.simulate import stock_system

    order: PrefillOrder = prefill_order.value
    table = read_plan(plan)
    source = profile or profile_of_plan(table)
    if chrome_trace is not None:
        check_writable(chrome_trace, plan, source, trace, PROFILE_HERE)
    system = plan_system(table, order, late_share)
    measured = read_profile(source)
    traced = requests_of(trace, columns, tokenizer, rate)
    workload = traced.window(0, num_requests) if traced else lengths_of(table.workload)
    say_what_is_cut(measured, workload)
    with err.status("simulating"):
        runs = replay(
            measured,
            table,
            workload,
            rate,
            systems=(system, *map(stock_system, stock or ())),
            num_requests=num_requests,
            curve=curve,
            record=chrome_trace is not None,
            force=force,
        )
    for run in runs:
        for line in run.lines():
            typer.echo(line)
    if chrome_trace is not None:
        write_atomically(chrome_trace, trace_of(runs[0].run, runs[0].system))
        typer.echo(f"wrote {chrome_trace}")
