"""A plan in vLLM's own servers: what ``nexus serve`` adds, added where vLLM makes its configuration.

Every way to start vLLM (``vllm serve``, its API servers' processes, ``LLM``) calls
``EngineArgs.create_engine_config``, after it has loaded the plugins. What an option's value tells
is whether it is given: one that equals vLLM's default is taken for not given.
"""

import atexit
import os
import sys
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from functools import cache, wraps
from pathlib import Path
from typing import Any

from pydantic import BaseModel, Field, ValidationError

from nexus.core.errors import EngineError, UserError
from nexus.core.io.documents import first_problem
from nexus.core.machine import Machine
from nexus.core.plan import Plan
from nexus.core.prefill.late_share import DEFAULT_LATE_SHARE
from nexus.core.prefill.ranking import DEFAULT_ORDER, PrefillOrder
from nexus.runtime.machine import this_machine
from nexus.runtime.scratch import scratch_folder
from nexus.runtime.vllm.compat import check_installed
from nexus.runtime.vllm.context import ServeContext
from nexus.runtime.vllm.front_end.engine_end import fail_with_the_engine
from nexus.runtime.vllm.front_end.requests import check_requests
from nexus.runtime.vllm.front_end.server import (
    SERVES_A_PLAN,
    check_config,
    check_trace,
    plug_in,
    read_green_plan,
)
from nexus.runtime.vllm.metrics import OF_ALL_PROCESSES, on_metrics_page
from nexus.runtime.vllm.options import defaults, files_of, use_every_core
from nexus.runtime.vllm.trace import ServeTrace

_ENVIRONMENT = "NEXUS_"
_IN_A_PROGRAM = ("LLM_CLASS", "ENGINE_CONTEXT")  # where errors are for the caller to handle


class Settings(BaseModel, frozen=True):
    """The options of ``nexus serve``, each as ``NEXUS_`` and its name in the environment."""

    table: Path
    prefill_order: PrefillOrder = DEFAULT_ORDER
    late_share: float = DEFAULT_LATE_SHARE
    force: bool = False
    trace: Path | None = None
    refuse_late: float | None = Field(default=None, ge=1.0)

    @classmethod
    def of_environment(cls) -> "Settings":
        """Raises UserError, naming the variable. Others are let be: Kubernetes makes some up."""
        names = {name: f"{_ENVIRONMENT}{name.upper()}" for name in cls.model_fields}
        given = {name: os.environ[key] for name, key in names.items() if os.environ.get(key)}
        try:
            return cls.model_validate(given)
        except ValidationError as error:
            where = names[str(error.errors()[0]["loc"][0])]
            raise EngineError(f"{where}: {first_problem(error).partition(': ')[2]}") from error


@cache
def install() -> None:
    """Wrap ``EngineArgs.create_engine_config``; to be called any number of times."""
    from nexus.runtime.vllm.compat import EngineArgs

    original = EngineArgs.create_engine_config

    @wraps(original)
    def create_engine_config(self: Any, *args: Any, **kwargs: Any) -> Any:
        if isinstance(self.additional_config, ServeContext):  # `nexus serve` was here
            return original(self, *args, **kwargs)
        usage = getattr(kwargs.get("usage_context", args[0] if args else None), "name", "")
        with _in_one_line(ends=usage not in _IN_A_PROGRAM):
            plan, force = apply(self)
        config = original(self, *args, **kwargs)
        with _in_one_line(ends=usage not in _IN_A_PROGRAM):
            if _is_first(self):
                check_config(config, plan, force)
        return config

    EngineArgs.create_engine_config = create_engine_config
    fail_with_the_engine()
    check_requests()


def apply(arguments: Any) -> tuple[Plan, bool]:
    """Set in vLLM's ``EngineArgs`` what ``nexus serve`` sets; the plan, and whether it is forced.

    Raises UserError as ``plug_in``.
    """
    settings = Settings.of_environment()
    plan, machine = read_green_plan(settings.table), this_machine()
    check_installed(*SERVES_A_PLAN, device=machine.device)
    _set_defaults(arguments, plan, machine)
    trace = settings.trace and settings.trace.absolute()
    if trace is not None and _is_first(arguments):
        check_trace(trace, settings.table, files_of(arguments.model, ()))
    context = ServeContext(
        settings.table.resolve(),
        settings.prefill_order,
        settings.late_share,
        trace,
        _metrics_folder(),
        settings.refuse_late,
    )
    plug_in(arguments, plan, context, machine, settings.force)
    if trace is not None and _is_first(arguments):
        atexit.register(ServeTrace(trace, begin=True).end)
    return plan, settings.force


def _set_defaults(arguments: Any, plan: Plan, machine: Machine) -> None:
    on_cpu = machine.device == "cpu"
    if on_cpu:
        use_every_core()
    usual = type(arguments)(model=arguments.model)

    def is_given(*options: str) -> bool:
        known = [name for name in map(_field, options) if hasattr(usual, name)]
        return any(getattr(arguments, name) != getattr(usual, name) for name in known)

    for option, value in defaults(is_given, on_cpu, plan.model, plan.engine, plan.batches).items():
        setattr(arguments, _field(option), value)


def _field(option: str) -> str:
    return {"-O": "optimization_level"}.get(option, option.lstrip("-").replace("-", "_"))


def _is_first(arguments: Any) -> bool:
    """Whether this is the process that starts the engines: API servers beside it do no more."""
    count = getattr(arguments, "_api_process_count", 1)
    return bool(count == 1 or arguments._api_process_rank < 0)


@cache
def _metrics_folder() -> Path:
    """Where the schedulers leave their metrics, shown on this process's ``/metrics``."""
    if OF_ALL_PROCESSES in os.environ:
        return Path(os.environ[OF_ALL_PROCESSES])
    until_exit = ExitStack()
    atexit.register(until_exit.close)
    folder = until_exit.enter_context(scratch_folder("nexus-metrics-"))
    until_exit.enter_context(on_metrics_page(folder))
    return folder


@contextmanager
def _in_one_line(*, ends: bool) -> Iterator[None]:
    """A user's mistake is one line on stderr and the end of the process, if it ``ends``."""
    try:
        yield
    except UserError as error:
        if not ends:
            raise
        told = " ".join(str(error).split()).replace("--force", "NEXUS_FORCE=1")
        print(f"nexus: {told}", file=sys.stderr)  # noqa: T201
        raise SystemExit(error.exit_code) from None
