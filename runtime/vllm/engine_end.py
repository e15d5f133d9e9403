"""The end of an engine is the end of its server, with an exit code that a supervisor sees.

vLLM's front end ends too when an engine process is killed or dies, but with exit code 0.
"""

import sys
from functools import cache, wraps
from importlib import import_module
from typing import Any

EXIT_CODE = 1
# Where releases have the function that runs one API server, the latest first.
_ENTRIES = ("vllm.entrypoints.launchers.api_server.entry", "vllm.entrypoints.openai.api_server")

_failed: list[str] = []


@cache
def fail_with_the_engine() -> None:
    """From now on a server whose engine died ends with a line on stderr and ``EXIT_CODE``."""
    from vllm.v1.engine.async_llm import AsyncLLM

    AsyncLLM.shutdown = _noting(AsyncLLM.shutdown)
    # Run as a program, the older module is there once more, by that name.
    modules: list[Any] = [next(filter(None, map(_module, _ENTRIES)), None), sys.modules["__main__"]]
    for module in modules:
        if hasattr(module, "run_server_worker"):
            module.run_server_worker = _failing(module.run_server_worker)


def _module(name: str) -> Any:
    try:
        return import_module(name)
    except ModuleNotFoundError:
        return None


def _noting(shutdown: Any) -> Any:
    """``AsyncLLM.shutdown``, which looks first how the engine processes ended, if they did."""

    @wraps(shutdown)
    def noting(self: Any, *args: Any, **kwargs: Any) -> Any:
        manager = getattr(getattr(self.engine_core, "resources", None), "engine_manager", None)
        ended = [each for each in getattr(manager, "processes", ()) if each.exitcode]
        _failed.extend(f"{each.name} ended with exit code {each.exitcode}" for each in ended)
        return shutdown(self, *args, **kwargs)

    return noting


def _failing(run: Any) -> Any:
    @wraps(run)
    async def failing(*args: Any, **kwargs: Any) -> None:
        await run(*args, **kwargs)
        if _failed:
            print(f"nexus: the engine died: {_failed[0]}", file=sys.stderr)  # noqa: T201
            raise SystemExit(EXIT_CODE)

    return failing
