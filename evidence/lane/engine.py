"""A vLLM engine in this process, set up as ``nexus serve`` sets up its own.

And plans that hold it to one way of sharing, made out of a real plan.
"""

import os
import re
import zlib
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from nexus.core.errors import UserError
from nexus.core.plan import Mode, Plan, Row, write_plan
from nexus.core.policy import Policy
from nexus.runtime.vllm.context import ServeContext
from nexus.runtime.vllm.front_end.server import with_plan
from nexus.runtime.vllm.trace import ServeTrace

TOP = 20
"""Log-probabilities asked for at each step; as many as vLLM gives by default."""

_KINDS = ("overlap", "split")
_NAME = re.compile(r"overlap-(?P<p>\d+)|split-(?P<s>\d+)-(?P<d>\d+)")


@dataclass(frozen=True)
class Ask:
    """A request: its prompt, how many tokens to generate, and when it is sent."""

    name: str
    prompt: Sequence[int]
    max_tokens: int
    at: float = 0.0
    logprobs: int | None = None


@contextmanager
def open_engine(
    model: str, options: Sequence[str], context: ServeContext | None, force: bool = False
) -> Iterator[Any]:
    """A running ``LLMEngine``; stock vLLM without a ``context``. Raises UserError."""
    os.environ["VLLM_ENABLE_V1_MULTIPROCESSING"] = "0"
    from vllm.engine.arg_utils import EngineArgs
    from vllm.v1.engine.llm_engine import LLMEngine

    arguments, _ = with_plan(model, options, context, force)
    arguments.disable_log_stats = True
    tracing = None
    if context is not None and context.trace is not None:
        tracing = ServeTrace(context.trace, begin=True)
    engine = LLMEngine.from_engine_args(EngineArgs.from_cli_args(arguments))
    if arguments.load_format == "dummy":
        engine.collective_rpc(spread_weights)
    try:
        yield engine
    finally:
        engine.engine_core.shutdown()
        if tracing is not None:
            tracing.end()


def spread_weights(worker: Any) -> None:
    """Give dummy weights the spread of a model before training, the same in every process.

    Matrices are normal with a standard deviation of 0.02, norms 1, biases 0. vLLM's own
    dummies are so small that every token is as likely as any other. The memory stays where
    it is, so that captured graphs compute with the new weights.
    """
    import torch

    with torch.no_grad():
        for name, weight in worker.model_runner.model.named_parameters():
            if not weight.is_floating_point():
                continue
            if weight.dim() > 1:
                generator = torch.Generator(weight.device)
                generator.manual_seed(zlib.crc32(name.encode()))
                weight.normal_(0.0, 0.02, generator=generator)
            else:
                weight.fill_(0.0 if name.endswith("bias") else 1.0)


def follow(engine: Any, plan: Plan) -> None:
    """Let ``plan`` choose from now on, among the partitions that the engine was started with."""
    policy = Policy.of(plan, plan.engine.max_num_batched_tokens)
    engine.engine_core.engine_core.scheduler.nexus_policy = policy


def steps(engine: Any, asks: Sequence[Ask], clock: Callable[[], float]) -> Iterator[list[Any]]:
    """Send each request when ``clock`` says so; the finished ones, after each engine step.

    Ends when all are done.
    """
    waiting = deque(sorted(asks, key=lambda ask: ask.at))
    while waiting or engine.has_unfinished_requests():
        now = clock()
        while waiting and waiting[0].at <= now:
            ask = waiting.popleft()
            engine.add_request(ask.name, {"prompt_token_ids": list(ask.prompt)}, _params(ask))
        yield engine.step()


def drain(engine: Any, names: Sequence[str]) -> None:
    """Abort the requests ``names`` and wait until nothing of them is left."""
    engine.abort_request(list(names))
    scheduler = engine.engine_core.engine_core.scheduler
    while engine.has_unfinished_requests() or scheduler.has_requests():
        engine.step()


def idle(engine: Any) -> bool:
    """Whether every KV block is free again."""
    pool = engine.engine_core.engine_core.scheduler.kv_cache_manager.block_pool
    return bool(pool.get_num_free_blocks() == pool.num_gpu_blocks - 1)


def context_for(table: Path, trace: Path | None = None) -> ServeContext:
    """What the scheduler and worker get: the plan at ``table``, and ``trace`` if any."""
    return ServeContext(table.resolve(), trace=trace and trace.resolve())


def _params(ask: Ask) -> Any:
    from vllm import SamplingParams
    from vllm.sampling_params import RequestOutputKind

    return SamplingParams(
        temperature=0.0,
        max_tokens=ask.max_tokens,
        logprobs=ask.logprobs,
        ignore_eos=True,
        detokenize=False,
        output_kind=RequestOutputKind.FINAL_ONLY,
    )


def lane_modes_of(plan: Plan, names: str) -> list[Mode]:
    """The modes called ``names`` (commas between), or the plan's first overlap and split.

    A name that the plan does not have takes the plan's longest chunk of a lane. Raises
    UserError for a name that is none, and for a plan without lane modes when none is named.
    """
    lanes = [mode for mode in plan.modes.values() if mode.mode != "fused"]
    if names:
        chunk = max((mode.chunk for mode in lanes), default=2048)
        known = {mode.name: mode for mode in lanes}
        return [known.get(name) or _parse(name, chunk) for name in names.split(",")]
    firsts = {kind: next((m for m in lanes if m.mode == kind), None) for kind in _KINDS}
    found = [mode for mode in firsts.values() if mode is not None]
    if not found:
        raise UserError("the plan has no split and no overlap: name them, as overlap-100")
    return found


def with_modes(plan: Plan, lanes: list[Mode], always: Mode | None = None) -> Plan:
    """``plan`` with ``lanes`` alone to choose from, and the smallest fused chunk.

    States without a backlog are fused. All others are in ``always``, by default in each of
    ``lanes`` in turn, so that an engine makes graphs for all of them. Predictions are the
    plan's where its own row names that mode, else left out.
    """
    fused = Mode("fused", min(plan.batches, default=512))
    axes = plan.axes
    rows = []
    for row in plan.rows:
        name = fused.name
        if row.prefill_backlog:
            turn = axes.kv_tokens.index(row.kv_tokens) + axes.prefill_backlog.index(
                row.prefill_backlog
            )
            name = (always or lanes[turn % len(lanes)]).name
        if row.mode != name:
            row = Row(*row.state, mode=name)
        rows.append(row)
    modes = {mode.name: mode for mode in (*lanes, fused)}
    return replace(plan, modes=modes, rows=tuple(rows))


def write(plan: Plan, path: Path) -> Path:
    """``plan`` at ``path``, which is returned."""
    write_plan(path, plan)
    return path


def _parse(name: str, chunk: int) -> Mode:
    match = _NAME.fullmatch(name)
    if match is None:
        raise UserError(f"no such lane mode: {name} (overlap-PREFILL or split-PREFILL-DECODE)")
    if match["p"]:
        return Mode("overlap", chunk, prefill_sms=int(match["p"]))
    return Mode("split", chunk, prefill_sms=int(match["s"]), decode_sms=int(match["d"]))
