"""The ``nexus bench`` command: parse, call, print."""

from importlib.util import find_spec
from pathlib import Path
from typing import Annotated

import typer

from nexus.commands.common import Rest, demo_model, model_and_options
from nexus.core.io.terminal import err, quieten
from nexus.runtime.scratch import scratch_folder


def bench(
    rest: Rest = None,
    profile: Annotated[
        Path | None, typer.Option(help="Plan from it, for each workload and bounds.")
    ] = None,
    plans: Annotated[
        Path | None, typer.Option(help="Folder to keep the profile's plans in.")
    ] = None,
    table: Annotated[Path | None, typer.Option(help="One plan for all, in its place.")] = None,
    systems: Annotated[
        str, typer.Option(help="Names with commas between; all, decisive, stock.")
    ] = "",
    workloads: Annotated[
        str,
        typer.Option(
            help="azure_conv, azure_code, long-documents, arxiv, mixed, random:IN:OUT, a trace's "
            "file; +4/16 adds rates to one, @14 has it at that rate alone."
        ),
    ] = "",
    rates: Annotated[
        str, typer.Option(help="Requests/s, as 8,16,24; else around what a burst is served at.")
    ] = "",
    bounds: Annotated[
        str, typer.Option(help="TTFT/TBT p95 in ms, as 500/15,1000/25; 500/30:tpot bounds TPOT.")
    ] = "",
    duration: Annotated[float, typer.Option(help="Seconds of arrivals in a run.", min=1)] = 60.0,
    repeats: Annotated[int, typer.Option(help="Runs of a cell.", min=1, max=16)] = 2,
    search: Annotated[
        bool, typer.Option(help="Search the rate at which 90 % meet the bounds.")
    ] = True,
    minutes: Annotated[
        float | None, typer.Option(help="Stop in time; the cells that decide come first.", min=0)
    ] = None,
    output: Annotated[Path, typer.Option("--output", "-o", help="Folder of results.")] = Path(
        "bench"
    ),
    raw: Annotated[bool, typer.Option("--raw", help="Keep vLLM's own result of each run.")] = False,
    plan_for: Annotated[
        str, typer.Option(help="Bounds to plan for; a plan serves all that it implies.")
    ] = "",
    plan_on: Annotated[str, typer.Option(help="Workload to plan for, and serve all with.")] = "",
    part: Annotated[
        str, typer.Option(help="This call's part of the results; several run at once.")
    ] = "",
    only_plans: Annotated[
        bool, typer.Option("--only-plans", help="Fill --plans and stop; needs no GPU.")
    ] = False,
    only_page: Annotated[
        Path | None, typer.Option(help="Draw the page of this file of results and stop.")
    ] = None,
    quick: Annotated[
        bool, typer.Option("--quick", help="Stock vLLM and Nexus, once, in minutes on a CPU.")
    ] = False,
) -> None:
    """Measure stock vLLM and Nexus on the same requests, one server after the other.

    Results accumulate in a file; the same command again measures only what is missing.
    Exit code 1 when a system had to be given up.

    Example: nexus bench ./SmolLM2-135M-Instruct --quick
    """
    from nexus.benchmarks.command import Words, job_of, quick_job
    from nexus.benchmarks.plans import make_plans
    from nexus.benchmarks.results import all_cells
    from nexus.benchmarks.run import bench
    from nexus.benchmarks.workloads import told

    if only_page is not None:
        typer.echo(f"wrote {_page(only_page)}")
        return
    quieten(verbose=False)
    model, options = model_and_options(rest)
    words = Words(
        model=model or demo_model(),
        options=tuple(options),
        profile=profile,
        table=table,
        plans=plans,
        systems=systems,
        workloads=workloads,
        rates=rates,
        bounds=bounds,
        duration_s=duration,
        repeats=repeats,
        search=search,
        minutes=minutes,
        output=output,
        keep_raw=raw,
        plan_for=plan_for,
        plan_on=plan_on,
        part=part,
    )

    def say(line: str) -> None:
        err.print(line, markup=False, soft_wrap=True)

    with scratch_folder("nexus-bench-") as folder:
        job = quick_job(words, folder) if quick else job_of(words, folder)
        for name in job.grid.workloads:
            for line in told(name, job.max_model_len):
                say(line)
        if only_plans:
            typer.echo(f"{make_plans(job, folder, say)} plans in {plans}")
            return
        results, whole = bench(job, folder, say)
    if not all_cells(results):
        typer.echo("nothing was measured")
    elif find_spec("plotly"):
        typer.echo(f"wrote {results} and {_page(results)}")
    else:
        typer.echo(f"wrote {results}; no plotly, so no page")
    if not whole:
        raise typer.Exit(1)


def _page(results: Path) -> Path:
    """Plotly is loaded for a page alone: a GPU machine may lack it."""
    from nexus.benchmarks.report.page import write_page

    return write_page(results)
