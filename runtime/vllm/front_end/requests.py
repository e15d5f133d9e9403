"""What a request may say of itself, and what is refused before it reaches the engine.

vLLM's API server calls ``AsyncLLM.generate`` before it begins a response, so that an error raised
there has a status code of its own also where the answer is a stream.
"""

import functools
import math
from collections.abc import Iterable, Mapping
from http import HTTPStatus
from typing import Any

from nexus.core.plan import read_plan
from nexus.core.prefill.admission import LateRefusal
from nexus.core.slo import Bounds
from nexus.runtime.vllm.context import ServeContext

TTFT_ARG = "nexus_ttft_ms"
"""Of ``vllm_xargs``: the request's own bound on TTFT."""

_REFUSED = HTTPStatus.SERVICE_UNAVAILABLE
_CHECK = "nexus_request_check"  # where a client keeps it


def own_ttft_s(extra_args: Mapping[str, Any] | None) -> float | None:
    """The bound on TTFT that a request brings, in seconds; None without one.

    ``extra_args`` are those of vLLM's ``SamplingParams``. Raises ValueError for a value that is
    no positive number, and for another name that begins with ``nexus_``.
    """
    for name, value in (extra_args or {}).items():
        if not name.startswith("nexus_"):
            continue
        if name != TTFT_ARG:
            raise ValueError(f"vllm_xargs: {name} is unknown; there is {TTFT_ARG}")
        number = isinstance(value, int | float) and not isinstance(value, bool)
        if not number or not 0 < value < math.inf:
            raise ValueError(f"vllm_xargs: {TTFT_ARG} is {value!r}, not a positive number")
        return float(value) / 1e3
    return None


def own_ttft_s_of(request: Any) -> float | None:
    """The same of a request in the engine, to which a program may have given anything."""
    try:
        return own_ttft_s(getattr(request.sampling_params, "extra_args", None))
    except ValueError:
        return None


class RequestCheck:
    """What one API server process checks of each request."""

    def __init__(self, bounds: Bounds, refusal: LateRefusal | None = None) -> None:
        """``bounds`` are the plan's; without ``refusal`` nobody is refused."""
        self._bounds = bounds
        self._refusal = refusal

    @classmethod
    def of(cls, vllm_config: Any) -> "RequestCheck":
        """As the engine's ``ServeContext`` says; with data parallel engines at their joint rate."""
        context = ServeContext.of(vllm_config)
        plan = read_plan(context.table)
        if context.refuse_late is None:
            return cls(plan.bounds)
        one = LateRefusal.of(plan, context.refuse_late)
        engines = vllm_config.parallel_config.data_parallel_size
        return cls(plan.bounds, LateRefusal(one.factor, engines * one.tokens_per_s))

    @property
    def retry_after_s(self) -> int:
        """When a refused client should ask again: after the bound on TTFT, in whole seconds."""
        return max(1, math.ceil(self._bounds.ttft_ms / 1e3))

    def check(self, prompt: Any, params: Any, priority: int, waiting: Iterable[int]) -> None:
        """Raise ValueError for a bad argument, and vLLM's error for 503 for who comes too late.

        ``prompt`` and ``params`` are what vLLM's ``generate`` takes, ``waiting`` the tokens of
        each prompt without a first token. Batch requests (priority above 0) are never refused.
        """
        own_s = own_ttft_s(getattr(params, "extra_args", None))
        tokens = len(prompt.get("prompt_token_ids") or ()) if isinstance(prompt, Mapping) else 0
        if self._refusal is None or priority > 0 or not tokens:
            return
        if self._refusal.refuses(tokens, waiting, own_s or self._bounds.ttft_ms_for(tokens) / 1e3):
            from nexus.runtime.vllm.compat import GracefulHTTPError

            raise GracefulHTTPError(
                f"no first token within {self._refusal.factor:g} times the bound on TTFT at the"
                " present load; try later",
                _REFUSED,
            )


class RetryAfter:
    """For vLLM's ``--middleware``: answers of status 503 say when to ask again.

    vLLM imports it in each API server process, which checks its requests from then on.
    """

    def __init__(self, app: Any) -> None:
        """``app`` is the ASGI application that comes next."""
        self._app = app
        check_requests()

    async def __call__(self, scope: Any, receive: Any, send: Any) -> None:
        """As ASGI has it."""

        async def answer(message: Any) -> None:
            if message["type"] == "http.response.start" and message["status"] == _REFUSED:
                client = scope["app"].state.engine_client
                seconds = str(_check_of(client).retry_after_s).encode()
                message = message | {"headers": [*message["headers"], (b"retry-after", seconds)]}
            await send(message)

        await self._app(scope, receive, answer)


def check_requests() -> None:
    """From now on every request is checked before vLLM's ``AsyncLLM`` begins it."""
    from nexus.runtime.vllm.compat import AsyncLLM

    generate = AsyncLLM.generate
    if hasattr(generate, "__wrapped__"):
        return

    @functools.wraps(generate)
    def checked(self: Any, prompt: Any, sampling_params: Any, *args: Any, **kwargs: Any) -> Any:
        states = self.output_processor.request_states.values()
        waiting = (state.prompt_len for state in states if state.is_prefilling)
        _check_of(self).check(prompt, sampling_params, kwargs.get("priority", 0), waiting)
        return generate(self, prompt, sampling_params, *args, **kwargs)

    AsyncLLM.generate = checked


def _check_of(client: Any) -> RequestCheck:
    found: RequestCheck | None = getattr(client, _CHECK, None)
    if found is None:
        found = RequestCheck.of(client.vllm_config)
        setattr(client, _CHECK, found)
    return found
