"""``nexus serve``: vLLM's own server, with the plan plugged in."""

import argparse
from collections.abc import Sequence
from contextlib import ExitStack
from pathlib import Path
from typing import Any

from nexus.core.errors import EngineError, MismatchError, UserError
from nexus.core.io.outputs import check_writable
from nexus.core.machine import Machine
from nexus.core.plan import Plan, read_plan
from nexus.core.prefill.ranking import PrefillOrder
from nexus.runtime.machine import (
    check_data_type,
    check_machine,
    check_model,
    check_parallel,
    check_software,
    config_hash,
    this_machine,
)
from nexus.runtime.ports import check_port
from nexus.runtime.scratch import scratch_folder
from nexus.runtime.vllm.compat import ERRORS_WITH_A_STATUS, Room, check_installed, since
from nexus.runtime.vllm.context import ServeContext
from nexus.runtime.vllm.front_end.engine_end import fail_with_the_engine
from nexus.runtime.vllm.lane import lane_modes, plug_in_graphs, plug_in_lane, refuse_unservable
from nexus.runtime.vllm.options import (
    files_of,
    one_line,
    parse_serve,
    quietly,
    use_every_core,
    with_defaults,
    with_needed_type,
)
from nexus.runtime.vllm.support.unsupported import refuse_given, refuse_used, refuse_whole_prompts
from nexus.runtime.vllm.trace import ServeTrace

_MIDDLEWARE = "nexus.runtime.vllm.front_end.requests.RetryAfter"
SCHEDULERS = "nexus.runtime.vllm.scheduling.scheduler"
SERVES_A_PLAN: tuple[Room, ...] = ("options", "server", "scheduler", "worker", "graphs", "lane")


def serve(
    model: str,
    options: Sequence[str],
    table: Path | None,
    prefill_order: PrefillOrder,
    late_share: float,
    force: bool,
    trace: Path | None = None,
    refuse_late: float | None = None,
) -> None:
    """Run the server until SIGINT or SIGTERM.

    Without ``table`` it is stock vLLM (on a CPU with the memory defaults of
    ``with_defaults``). ``trace`` is a file to write every step to. Raises UserError before
    anything is started when the plan does not fit the model or machine (unless ``force``),
    an option is refused, or the port is taken.
    """
    if trace is not None:
        check_trace(trace, table, files_of(model, options))
    with ExitStack() as stack:
        context = None
        if table is not None:
            metrics = stack.enter_context(scratch_folder("nexus-metrics-"))
            traced = trace and trace.absolute()  # not what /dev/stdout is a link to
            context = ServeContext(
                table.resolve(), prefill_order, late_share, traced, metrics, refuse_late
            )
        arguments, plan = with_plan(model, options, context, force)
        if not getattr(arguments, "uds", None):
            check_port(arguments.host, arguments.port)
        _check_engine(arguments, plan, force)
        if context is not None:
            arguments.middleware = [*arguments.middleware, _MIDDLEWARE]
        if context is not None and context.metrics is not None:
            from nexus.runtime.vllm.metrics import on_metrics_page

            stack.enter_context(on_metrics_page(context.metrics))
        if trace is not None:
            stack.callback(ServeTrace(trace, begin=True).end)
        fail_with_the_engine()
        arguments.command.cmd(arguments)


def with_plan(
    model: str, options: Sequence[str], context: ServeContext | None, force: bool
) -> tuple[argparse.Namespace, Plan | None]:
    """The options as vLLM parses them, with the plan of ``context`` plugged in, and that plan.

    Raises UserError when the plan does not fit the model, machine or software (unless
    ``force``), or an option is refused.
    """
    machine = this_machine()
    if context is None:
        check_installed("options", device=machine.device)
        arguments = _arguments(model, options, None, machine)
        config_hash(model, arguments)  # no such model: said before vLLM says it at length
        return arguments, None
    plan = read_green_plan(context.table)
    check_installed(*SERVES_A_PLAN, device=machine.device)
    arguments = _arguments(model, options, plan, machine)
    plug_in(arguments, plan, context, machine, force)
    return arguments, plan


def read_green_plan(table: Path) -> Plan:
    """The plan in ``table``; raises UserError where it is none, or one for MPS."""
    plan = read_plan(table)
    if plan.partitioner == "mps":
        raise MismatchError(
            f"{table.name} is a plan for MPS: add --partitioner mps to `nexus serve`"
        )
    return plan


def plug_in(
    arguments: Any, plan: Plan, context: ServeContext, machine: Machine, force: bool
) -> None:
    """Set scheduler, worker and what else a plan needs in ``arguments``.

    They are vLLM's options, parsed, or its ``EngineArgs``. Raises UserError when the plan does
    not fit the model, machine or software (unless ``force``), or an option is refused.
    """
    if not force:
        check_machine(plan.machine, machine, context.table.name)
        check_model(plan.model, arguments.model, context.table.name, arguments)
        check_parallel(plan.engine, arguments, context.table.name)
        check_software(plan.provenance.software, context.table.name)
    _plug_in(arguments, plan, context, machine)


def _arguments(
    model: str, options: Sequence[str], plan: Plan | None, machine: Machine
) -> argparse.Namespace:
    on_cpu = machine.device == "cpu"
    if on_cpu:
        use_every_core()
    if plan is None:
        typed = with_needed_type(model, options) if on_cpu else options
        return parse_serve(model, with_defaults(typed, on_cpu))
    words = with_defaults(options, on_cpu, plan.model, plan.engine, plan.batches)
    return parse_serve(model, words)


def _plug_in(arguments: Any, plan: Plan, context: ServeContext, machine: Machine) -> None:
    lane = ", ".join(lane_modes(plan))
    if lane:
        refuse_given(arguments, "lane", f"the plan's {lane}")
    else:
        refuse_given(arguments, "fused", "--table")
    if context.refuse_late is not None and not since(ERRORS_WITH_A_STATUS):
        raise EngineError(f"--refuse-late needs vLLM {ERRORS_WITH_A_STATUS} or later")
    most = max(mode.chunk for mode in plan.modes.values())
    if arguments.max_num_batched_tokens < most:
        raise EngineError(
            f"--max-num-batched-tokens {arguments.max_num_batched_tokens} is below the"
            f" plan's largest chunk, {most}"
        )
    synchronous = machine.device == "cpu" or arguments.async_scheduling is False
    name = "PlannedScheduler" if synchronous else "PlannedAsyncScheduler"
    arguments.scheduler_cls = f"{SCHEDULERS}.{name}"
    arguments.additional_config = context
    if lane:
        plug_in_lane(arguments, plan, machine)
    else:
        plug_in_graphs(arguments, machine)


def check_trace(trace: Path, table: Path | None, read: Sequence[Path]) -> None:
    """Raise UserError where ``trace`` cannot be written to, or would overwrite what is read."""
    if table is None:
        raise UserError("--trace needs --table: stock vLLM has no modes to trace")
    check_writable(trace, table, *read)


def _check_engine(arguments: argparse.Namespace, plan: Plan | None, force: bool) -> None:
    """Let vLLM and the lane refuse a bad combination of options here, in one line."""
    from nexus.runtime.vllm.compat import AsyncEngineArgs

    try:
        with quietly():
            config = AsyncEngineArgs.from_cli_args(arguments).create_engine_config()
    except (ValueError, TypeError, OSError, NotImplementedError, ImportError) as error:
        raise EngineError(f"vLLM: {one_line(error)}") from error
    if plan is not None:
        check_config(config, plan, force)


def check_config(config: Any, plan: Plan, force: bool) -> None:
    """Raise UserError where vLLM's whole configuration is not one that the plan can serve."""
    if not force:
        check_data_type(plan.model, str(config.model_config.dtype), "the plan")
    refuse_whole_prompts(config)
    if lane_modes(plan):
        refuse_unservable(config, plan)
    else:
        refuse_used(config, "fused")
