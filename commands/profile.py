"""``nexus profile``: step latency against SM fraction."""

from pathlib import Path
from typing import Annotated, Any

import typer
from rich.markup import escape
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn

from nexus.commands.common import Rest, demo_model, model_and_options
from nexus.commands.options import PartitionerOption
from nexus.core.io.terminal import command_line, err, now, quieten


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
    from nexus.profiler.pairs.session import open_pair_session
    from nexus.profiler.session import open_session

    start = open_pair_session if partitioner is PartitionerOption.mps else open_session
    with (
        err.status("starting vLLM") as status,
        start(model, options, output, command_line(), now(), fresh=force) as session,
    ):
        status.stop()
        _measure(session, minutes, output)


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
