"""The ``nexus`` command: parse, call, print; nothing else."""

import json
import sys
from pathlib import Path
from typing import Annotated, Any

import typer
from rich.markup import escape
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn

from nexus import __version__
from nexus.benchmarks.cli import bench
from nexus.errors import NexusError, UserError
from nexus.planner.cli import (
    DEFAULT_PREFILL_ORDER,
    AgingOption,
    PartitionerOption,
    PrefillOrderOption,
    plan,
    report,
    simulate,
)
from nexus.runtime.line import DEFAULT_AGING_TOKENS_PER_S
from nexus.terminal import (
    PASS_ON,
    Rest,
    assume,
    command_line,
    demo_model,
    err,
    model_and_options,
    now,
    quieten,
)

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


@app.command()
def doctor(
    as_json: Annotated[bool, typer.Option("--json", help="Print JSON.")] = False,
) -> None:
    """Show what is here and what Nexus can do with it.

    Exit code 0 when `nexus serve` can run.

    Example: nexus doctor --json
    """
    from nexus.runtime.doctor import can_serve, examine

    findings = examine()
    able = can_serve(findings)
    if as_json:
        body = {f.name: {"ok": f.ok, "seen": f.seen} for f in findings}
        typer.echo(json.dumps({"can_serve": able, "findings": body}, indent=2))
    else:
        width = max(len(finding.name) for finding in findings)
        for finding in findings:
            typer.echo(f"{'ok' if finding.ok else '--'}  {finding.name:<{width}}  {finding.seen}")
        typer.echo(f"nexus serve can{'' if able else 'not'} run here")
    raise typer.Exit(0 if able else 1)


@app.command(context_settings=PASS_ON)
def profile(
    rest: Rest = None,
    output: Annotated[Path, typer.Option("--output", "-o", help="Where to write.")] = Path(
        "profile.yaml"
    ),
    minutes: Annotated[float, typer.Option(help="Time for measuring, in minutes.", min=0.01)] = 5.0,
    partitioner: Annotated[
        PartitionerOption,
        typer.Option(help="Green contexts, or MPS: an engine for each phase and share."),
    ] = PartitionerOption.green,
    force: Annotated[
        bool, typer.Option("--force", help="Replace a profile of something else.")
    ] = False,
    verbose: Annotated[bool, typer.Option("--verbose", help="Show vLLM's log.")] = False,
) -> None:
    """Measure step latency against SM fraction (on a CPU: cores), in vLLM's own worker.

    Ctrl-C keeps what was measured; the same command again goes on from there.

    Example: nexus profile meta-llama/Llama-3.1-8B -o profile.yaml --minutes 5
    """
    quieten(verbose=verbose)
    model, options = model_and_options(rest, output)
    model = model or demo_model()
    from nexus.profiler.pair_session import open_pair_session
    from nexus.profiler.session import open_session

    start = open_pair_session if partitioner is PartitionerOption.mps else open_session
    with (
        err.status("starting vLLM") as status,
        start(model, options, output, command_line(), now(), fresh=force) as session,
    ):
        status.stop()
        _measure(session, minutes, output)


app.command()(plan)


@app.command(context_settings=PASS_ON)
def serve(
    context: typer.Context,
    rest: Rest = None,
    table: Annotated[
        Path | None, typer.Option("--table", help="The plan; without it, stock vLLM.")
    ] = None,
    prefill_order: Annotated[
        PrefillOrderOption,
        typer.Option(
            help="Waiting prompts: as many on time as can be, the shortest first, or as they come."
        ),
    ] = DEFAULT_PREFILL_ORDER,
    prefill_aging_tokens_per_s: AgingOption = DEFAULT_AGING_TOKENS_PER_S,
    force: Annotated[
        bool, typer.Option("--force", help="Serve another model or machine than the plan's.")
    ] = False,
    trace: Annotated[
        Path | None, typer.Option(help="Write every step and its mode to this Chrome trace.")
    ] = None,
    partitioner: Annotated[
        PartitionerOption,
        typer.Option(help="Green contexts in one engine, or MPS: two stock engines, one address."),
    ] = PartitionerOption.green,
) -> None:
    """Serve with vLLM's OpenAI-compatible server, the plan applied to every step.

    Every option of `vllm serve` is passed on (--port, --max-model-len, ...).

    Example: nexus serve ./SmolLM2-135M-Instruct --table plan.yaml --port 8000
    """
    quieten(verbose=True)
    model, options = model_and_options(rest, trace)
    if model is None and table is not None:
        from nexus.planner.table import read_plan

        model = read_plan(table).model.name
        assume(f"model {model} (the plan's)")
    if partitioner is PartitionerOption.mps:
        _serve_with_mps(context, model, options, table, force)
        return
    from nexus.runtime.vllm.server import serve as run

    run(
        model or demo_model(),
        options,
        table,
        prefill_order.value,
        prefill_aging_tokens_per_s,
        force,
        trace,
    )


def _serve_with_mps(
    context: typer.Context, model: str | None, options: list[str], table: Path | None, force: bool
) -> None:
    from nexus.runtime.mps.serve import serve as run

    if model is None or table is None:
        raise UserError("--partitioner mps needs --table: `nexus plan --partitioner mps` makes one")
    for name in ("prefill_order", "prefill_aging_tokens_per_s", "trace"):
        source = context.get_parameter_source(name)
        if source is not None and source.name == "COMMANDLINE":
            option = f"--{name.replace('_', '-')}"
            raise UserError(f"{option} cannot be combined with --partitioner mps: stock engines")
    run(model, options, table, lambda line: err.print(line, soft_wrap=True, markup=False), force)


app.command()(simulate)
app.command()(report)
app.command(context_settings=PASS_ON)(bench)


def main() -> None:
    """Entry point; a user's mistake is one line on stderr."""
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


def _measure(session: Any, minutes: float, output: Path) -> None:
    columns = (
        TextColumn("measuring"),
        BarColumn(),
        MofNCompleteColumn(),
        TimeElapsedColumn(),
        TextColumn("{task.fields[point]}"),
    )
    interrupted = False
    with Progress(*columns, console=err) as bar:
        task = bar.add_task("measuring", total=None, point="")

        def show(done: int, total: int, sample: Any) -> None:
            bar.update(task, completed=done, total=total, point=_point(sample))
            if sample.error is not None:
                bar.console.print(f"failed: {escape(_point(sample))}: {escape(sample.error)}")

        try:
            session.measure(minutes, show)
        except KeyboardInterrupt:
            interrupted = True
    samples = session.profile.samples
    failed = sum(sample.error is not None for sample in samples)
    measured = {sample.key for sample in samples if sample.error is None}
    left = sum(point.key not in measured for point in session.grid().points)
    typer.echo(f"wrote {output}: {len(samples) - failed} samples, {failed} failed, {left} left")
    noisy = sum(map(_is_noisy, samples))
    if noisy > len(samples) / 5:
        err.print(f"{noisy} of {len(samples)} samples are noisy: is the machine otherwise idle?")
    if interrupted:
        raise typer.Exit(130)


def _is_noisy(sample: Any) -> bool:
    """Whether one step in twenty took more than half as long again as the median."""
    median, p95 = (
        sample.decode_ms or sample.prefill_ms,
        sample.decode_p95_ms or sample.prefill_p95_ms,
    )
    return bool(median and p95 and p95 > 1.5 * median)


def _point(sample: Any) -> str:
    parts = [sample.mode]
    if sample.chunk:
        parts.append(f"{sample.chunk} tokens at {sample.prefill_context}")
    if sample.decode_batch:
        parts.append(f"{sample.decode_batch} decodes at {sample.decode_context}")
    return ", ".join(parts)


if __name__ == "__main__":
    main()
