"""The end of an engine is the end of its server, with an exit code that a supervisor sees.

vLLM's front end ends too when an engine process is killed or dies, but with exit code 0.
"""

import sys
from functools import cache, wraps
from typing import Any

from nexus.runtime.vllm.compat import LAUNCHERS, since

EXIT_CODE = 1

_failed: list[str] = []
_asked_to_end: list[bool] = []  # of this process: one front end


@cache
def fail_with_the_engine() -> None:
    """From now on a server whose engine died ends with a line on stderr and ``EXIT_CODE``."""
    from nexus.runtime.vllm.compat import AsyncLLM

    AsyncLLM.shutdown = _noting(AsyncLLM.shutdown)
    # Run as a program, an older release's module is there once more, by that name.
    modules: tuple[Any, ...] = (_launcher(), sys.modules["__main__"])
    for module in modules:
        if hasattr(module, "run_server_worker"):
            module.run_server_worker = _failing(module.run_server_worker)


def _launcher() -> Any:
    """The module that has the function which runs one API server."""
    if since(LAUNCHERS):
        from nexus.runtime.vllm.compat import entry

        return entry
    from nexus.runtime.vllm.compat import api_server

    return api_server


def _noting(shutdown: Any) -> Any:
    """``AsyncLLM.shutdown``, which looks first how the engine processes ended, if they did."""

    @wraps(shutdown)
    def noting(self: Any, *args: Any, **kwargs: Any) -> Any:
        if not _asked_to_end:  # later the processes have been told to end, or were killed
            _asked_to_end.append(True)
            _failed.extend(_ended_by_themselves(self.engine_core))
        return shutdown(self, *args, **kwargs)

    return noting


def _ended_by_themselves(engine_core: Any) -> list[str]:
    manager = getattr(getattr(engine_core, "resources", None), "engine_manager", None)
    ended = [each for each in getattr(manager, "processes", ()) if each.exitcode]
    return [f"{each.name} ended with exit code {each.exitcode}" for each in ended]


def _failing(run: Any) -> Any:
    @wraps(run)
    async def failing(*args: Any, **kwargs: Any) -> None:
        await run(*args, **kwargs)
        if _failed:
            print(f"nexus: the engine died: {_failed[0]}", file=sys.stderr)  # noqa: T201
            raise SystemExit(EXIT_CODE)

    return failing
