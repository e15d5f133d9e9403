"""What the planned scheduler adds to a step, at many running and waiting requests.

Run ``python -m nexus.evidence.scheduler_overhead MODEL PLAN`` for any model folder and plan.
It starts vLLM with the plan, one layer of MODEL and random weights, fills it with
requests that decode, and takes vLLM's own share out of the time of ``schedule()``, and the
ranking's share of what is left. With ``--waiting`` so many more wait, half of whom are late
for the plan's bound; at each step one more comes, and where a decode ends one starts. Times are
medians of CPU time, so that others on the machine hardly count.
"""

import json
import os
import random
import statistics
import time
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Annotated, Any

import typer

from nexus.core.prefill.ranking import DEFAULT_ORDER, PrefillOrder
from nexus.runtime.machine import software, this_machine
from nexus.runtime.vllm.context import ServeContext


def timed(function: Callable[..., Any], times: list[float]) -> Callable[..., Any]:
    """``function``, appending the microseconds of CPU time of each call to ``times``."""

    def call(*args: Any, **kwargs: Any) -> Any:
        start = time.thread_time_ns()
        result = function(*args, **kwargs)
        times.append((time.thread_time_ns() - start) / 1e3)
        return result

    return call


def full_engine(model: str, context: ServeContext, requests: int) -> Any:
    """An engine in this process whose ``requests`` requests all decode."""
    from vllm import LLM, SamplingParams

    engine = LLM(
        model=model,
        load_format="dummy",
        hf_overrides={"num_hidden_layers": 1},
        enforce_eager=True,
        kv_cache_memory_bytes=1 << 30,
        max_model_len=1024,
        max_num_seqs=requests,
        scheduler_cls="nexus.runtime.vllm.scheduling.scheduler.PlannedScheduler",
        additional_config=context,
    ).llm_engine
    for number in range(requests):
        output = random.Random(number).randint(300, 900)
        params = SamplingParams(max_tokens=output, ignore_eos=True)
        engine.add_request(str(number), {"prompt_token_ids": [number + 3] * 32}, params)
    running = engine.engine_core.engine_core.scheduler.running
    while len(running) < requests or any(request.is_prefill_chunk for request in running):
        engine.step()
        running = engine.engine_core.engine_core.scheduler.running
    return engine


def add_waiting(engine: Any, names: Iterable[int], longest_ago_s: float = 0.0) -> None:
    """Prompts of 16 to 900 tokens that came up to ``longest_ago_s`` ago, one for each of ``names``."""
    from vllm import SamplingParams

    params = SamplingParams(max_tokens=16, ignore_eos=True)
    for name in names:
        drawn = random.Random(name)
        prompt = {"prompt_token_ids": drawn.choices(range(3, 300), k=drawn.randint(16, 900))}
        arrival_s = time.time() - drawn.uniform(0.0, longest_ago_s)
        engine.add_request(f"waits-{name}", prompt, params, arrival_time=arrival_s)


def schedule_us(engine: Any, steps: int, waiting: int) -> tuple[list[float], ...]:
    """Microseconds of ``steps`` calls of ``schedule()``: whole, vLLM's part, the ranking's part.

    The ranking is what the queue does before and after vLLM's part.
    """
    from vllm.v1.core.sched.scheduler import Scheduler

    scheduler = engine.engine_core.engine_core.scheduler
    whole: list[float] = []
    inner: list[float] = []
    Scheduler.schedule = timed(Scheduler.schedule, inner)
    scheduler.schedule = timed(scheduler.schedule, whole)
    before: list[float] = []
    after: list[float] = []
    scheduler._queue.step = timed(scheduler._queue.step, before)
    scheduler._queue.computed = timed(scheduler._queue.computed, after)
    add_waiting(engine, range(waiting), 2e-3 * scheduler.nexus_plan.bounds.ttft_ms)
    for step in range(steps):
        add_waiting(engine, [waiting + step] if waiting else [])
        engine.step()
    return whole, inner, [sum(both) for both in zip(before, after, strict=True)]


def main(
    model: str,
    plan: Path,
    requests: int = 256,
    waiting: int = 0,
    steps: int = 300,
    order: Annotated[PrefillOrder, typer.Option()] = DEFAULT_ORDER,
) -> None:
    """Measure, and print one JSON object."""
    os.environ["VLLM_ENABLE_V1_MULTIPROCESSING"] = "0"
    os.environ.setdefault("VLLM_LOGGING_LEVEL", "ERROR")
    engine = full_engine(model, ServeContext(plan, order), requests)
    whole, inner, ranking = schedule_us(engine, steps, waiting)
    added = [all_of_it - vllm for all_of_it, vllm in zip(whole, inner, strict=True)]
    result = {
        "machine": this_machine().name,
        "software": software(),
        "requests": requests,
        "waiting": waiting,
        "order": order,
        "steps": steps,
        "vllm_schedule_us": round(statistics.median(inner), 1),
        "added_us": round(statistics.median(added), 1),
        "ranking_us": round(statistics.median(ranking), 1),
        "ranking_p99_us": round(sorted(ranking)[int(0.99 * len(ranking))], 1),
    }
    engine.engine_core.shutdown()
    typer.echo(json.dumps(result))


if __name__ == "__main__":
    typer.run(main)
