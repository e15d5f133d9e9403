"""``nexus serve``: vLLM's server with a plan."""

from pathlib import Path
from typing import Annotated

import typer

from nexus.commands.common import Rest, demo_model, model_and_options
from nexus.commands.options import (
    DEFAULT_PREFILL_ORDER,
    LateShareOption,
    PartitionerOption,
    PrefillOrderOption,
)
from nexus.core.errors import UserError
from nexus.core.io.terminal import assume, err, quieten
from nexus.core.prefill.late_share import DEFAULT_LATE_SHARE


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
    late_share: LateShareOption = DEFAULT_LATE_SHARE,
    refuse_late: Annotated[
        float | None,
        typer.Option(
            help="Refuse (503) whose first token would take longer than so many bounds on TTFT.",
            min=1.0,
        ),
    ] = None,
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
        from nexus.core.plan import read_plan

        model = read_plan(table).model.name
        assume(f"model {model} (the plan's)")
    if table is None and (idle := _given(context, "prefill_order", "late_share", "refuse_late")):
        raise UserError(f"{idle} needs --table: stock vLLM orders and admits as it does")
    if partitioner is PartitionerOption.mps:
        _serve_with_mps(context, model, options, table, force)
        return
    from nexus.runtime.vllm.front_end.server import serve as run

    run(
        model or demo_model(),
        options,
        table,
        prefill_order.value,
        late_share,
        force,
        trace,
        refuse_late,
    )


def _given(context: typer.Context, *names: str) -> str:
    """The first of these options that the command line has; empty if it has none."""
    for name in names:
        source = context.get_parameter_source(name)
        if source is not None and source.name == "COMMANDLINE":
            return f"--{name.replace('_', '-')}"
    return ""


def _serve_with_mps(
    context: typer.Context, model: str | None, options: list[str], table: Path | None, force: bool
) -> None:
    from nexus.runtime.mps.serve import serve as run

    if model is None or table is None:
        raise UserError("--partitioner mps needs --table: `nexus plan --partitioner mps` makes one")
    if option := _given(context, "prefill_order", "late_share", "trace", "refuse_late"):
        raise UserError(f"{option} cannot be combined with --partitioner mps: stock engines")
    run(model, options, table, lambda line: err.print(line, soft_wrap=True, markup=False), force)
