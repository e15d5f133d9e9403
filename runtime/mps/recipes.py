"""The parts of a server under MPS: a prefill engine, a decode engine, and a router.

Both engines are stock vLLM (``nexus serve`` without a table), on one GPU, so the weights
are there twice. The prefill engine computes each prompt; the decode engine reads its KV
through vLLM's ``NixlConnector`` and goes on. ``vllm-router`` sends each request to the one
and then to the other.
"""

import importlib.util
import json
import sys
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Literal

from nexus.core.errors import EngineError, UserError
from nexus.core.machine import Engine, Model
from nexus.core.plan import Mode, Plan, Shares
from nexus.runtime.mps.daemon import CONTROL
from nexus.runtime.mps.part import Recipe
from nexus.runtime.ports import free_ports
from nexus.runtime.vllm.options import spelled, with_defaults
from nexus.runtime.vllm.support.features import FEATURES

Role = Literal["prefill", "decode"]
LOCAL = "127.0.0.1"
# What the plan says, beside the features that do not fit two engines.
_REFUSED = {"--gpu-memory-utilization", "--kv-cache-memory-bytes", "--num-gpu-blocks-override"}
_REFUSED |= {option for each in FEATURES if each.is_refused("mps") for option in each.options}
# vLLM claims this share of the GPU at least, and refuses to start where it is not free; beyond
# that the share counts for nothing once the KV cache's size is given.
_CLAIM = "0.01"
_ITEM_BYTES = {"float32": 4, "bfloat16": 2, "float16": 2}
_REQUEST_TIMEOUT_S = 24 * 3600  # vLLM itself has none


@dataclass(frozen=True)
class Programs:
    """The programs that the parts are, and the modules that those need."""

    control: str = CONTROL
    engine: tuple[str, ...] = (sys.executable, "-m", "nexus.cli", "serve")
    router: tuple[str, ...] = (sys.executable, "-m", "vllm_router.launch_router")
    needs: tuple[str, ...] = ("nixl", "vllm_router")


@dataclass(frozen=True)
class Address:
    """Where the server is reached (anywhere on this machine when ``host`` is None), and for what.

    ``model`` is the name that requests call the model by.
    """

    host: str | None
    port: int
    model: str


@dataclass(frozen=True)
class Recipes:
    """All parts, in the order of starting; the percentages are the engines' share of the SMs.

    ``first_request`` is the body of a completion that the whole server is to answer before
    it counts as up.
    """

    prefill: Recipe
    decode: Recipe
    router: Recipe
    shares: Shares
    metrics_port: int
    first_request: str


def check_installed(programs: Programs) -> None:
    """Raise EngineError when a module that the parts need is not installed."""
    lacking = [name for name in programs.needs if importlib.util.find_spec(name) is None]
    if lacking:
        raise EngineError(f"not installed: {', '.join(lacking)} (pip install nixl vllm-router)")


def check_options(options: Sequence[str]) -> None:
    """Raise EngineError for an option that cannot be given to two engines behind a router."""
    for option in options:
        name = spelled(option)
        if name in _REFUSED:
            raise EngineError(f"{name} cannot be combined with --partitioner mps")


def make_recipes(
    model: str, options: Sequence[str], plan: Plan, address: Address, programs: Programs
) -> Recipes:
    """The parts that serve ``model`` at ``address`` with the plan's shares.

    ``options`` are vLLM's and go to both engines; what they leave open, the plan says.
    """
    shares = plan.shares
    if shares is None:
        raise UserError("the plan has no shares: it was not made for MPS")
    (mode,) = plan.modes.values()
    ports = free_ports(5)

    def engine(role: Role, limits: Engine, kv_tokens: int, port: int, side_port: int) -> Recipe:
        given = with_defaults(options, on_cpu=False, model=plan.model, engine=limits)
        size = kv_bytes(plan.model, kv_tokens + limits.block_size)
        command = (*programs.engine, model, *given, *_forced(role, port, size))
        return Recipe(f"{role} engine", command, port, _side_channel(side_port))

    prefill = engine(
        "prefill", _prefill_limits(plan.engine, mode), shares.prefill_kv_tokens, *ports[:2]
    )
    decode = engine("decode", plan.engine, shares.decode_kv_tokens, *ports[2:4])
    router = _router(programs, prefill.url, decode.url, address, ports[4])
    return Recipes(prefill, decode, router, shares, ports[4], _first_request(address, plan.engine))


def kv_bytes(model: Model, tokens: int) -> int:
    """The memory of ``tokens`` tokens of KV, in bytes."""
    item = _ITEM_BYTES.get(model.dtype)
    if item is None:
        raise UserError(f"the plan's data type is {model.dtype}: not one that MPS plans are for")
    return tokens * 2 * model.num_layers * model.num_kv_heads * model.head_size * item


def _first_request(address: Address, engine: Engine) -> str:
    """One token after two blocks of prompt: the engines come to know each other, and hand over."""
    prompt = [0] * (2 * engine.block_size + 1)
    return json.dumps({"model": address.model, "prompt": prompt, "max_tokens": 1})


def _prefill_limits(engine: Engine, mode: Mode) -> Engine:
    """The limits of the engine whose steps are prompt chunks of the mode's size."""
    most = min(engine.max_num_seqs, mode.chunk)  # vLLM wants at least a token for each
    return replace(engine, max_num_batched_tokens=mode.chunk, max_num_seqs=most)


def _forced(role: Role, port: int, kv_cache_bytes: int) -> list[str]:
    """What is not the user's to say; the last word on an option counts."""
    transfer = {
        "kv_connector": "NixlConnector",
        "kv_role": {"prefill": "kv_producer", "decode": "kv_consumer"}[role],
        # A prompt whose KV does not arrive is computed again, where vLLM would fail the request.
        "kv_load_failure_policy": "recompute",
    }
    return [
        *("--host", LOCAL, "--port", str(port), "--disable-uvicorn-access-log"),
        *("--kv-transfer-config", json.dumps(transfer)),
        *("--kv-cache-memory-bytes", str(kv_cache_bytes), "--gpu-memory-utilization", _CLAIM),
    ]


def _side_channel(port: int) -> dict[str, str]:
    """Where the engines tell each other about their KV caches: on this machine alone."""
    return {
        "VLLM_NIXL_SIDE_CHANNEL_HOST": LOCAL,
        "VLLM_NIXL_SIDE_CHANNEL_PORT": str(port),
        "UCX_NET_DEVICES": "lo",
    }


def _router(
    programs: Programs, prefill: str, decode: str, address: Address, metrics_port: int
) -> Recipe:
    words = [
        *("--vllm-pd-disaggregation", "--prefill", prefill, "--decode", decode),
        *("--policy", "round_robin", "--kv-connector", "nixl"),
        *("--host", address.host or "0.0.0.0", "--port", str(address.port)),  # noqa: S104  as vLLM
        *("--prometheus-host", LOCAL, "--prometheus-port", str(metrics_port)),
        *("--request-timeout-secs", str(_REQUEST_TIMEOUT_S)),
        # There is one engine of each kind: to send a request again would not help it.
        *("--disable-retries", "--disable-circuit-breaker", "--log-level", "warning"),
    ]
    # An address that stands for all of this machine's is none to be asked at.
    host = LOCAL if address.host in (None, "0.0.0.0") else address.host  # noqa: S104
    return Recipe("router", (*programs.router, *words), address.port, host=host or LOCAL)
