"""Timing one point: warm-up, repeats, median and 95th percentile."""

import statistics
import time
from collections.abc import Callable
from typing import Any

from nexus.core.spread import percentile
from nexus.profiler.points import Point, core_counts
from nexus.profiler.steps import StepDriver
from nexus.profiles.schema import KernelSample, Sample
from nexus.runtime.partition.cores import all_cores, confined_to

MIN_REPEATS = 3
MAX_REPEATS = 32
POINT_SECONDS = 0.6


class Meter:
    """Measures points on a CPU: solo and fused steps, on a number of cores."""

    def __init__(self, worker: Any) -> None:
        """``worker`` is a vLLM worker after start-up, with no request of its own."""
        self._steps = StepDriver(worker)

    def sizes(self) -> list[int]:
        """The core counts worth measuring."""
        return core_counts(all_cores())

    def measure(self, point: Point) -> Sample:
        """Time ``point``; raises MemoryError or RuntimeError where it cannot run."""
        with confined_to(max(point.prefill_sms, point.decode_sms)):
            self._steps.begin(point.decode_batch, point.decode_context, MAX_REPEATS + 2)
            times = timed_ms(lambda: self._steps.run(point.chunk, point.prefill_context))
            self._steps.end()
        median, p95 = round(statistics.median(times), 4), round(percentile(times, 95), 4)
        prefill, decode = point.chunk > 0, point.decode_batch > 0
        return point.sample(
            prefill_ms=median if prefill else None,
            prefill_p95_ms=p95 if prefill else None,
            decode_ms=median if decode else None,
            decode_p95_ms=p95 if decode else None,
            repeats=len(times),
        )

    def kernels(self, _point: Point) -> list[KernelSample]:
        """None: nothing here tells one kernel from another."""
        return []


def timed_ms(step: Callable[[], None]) -> list[float]:
    """Milliseconds of each of 3 to 32 runs of ``step``, after one that does not count.

    Repeats until ``POINT_SECONDS`` are spent.
    """
    step()
    times: list[float] = []
    while len(times) < MIN_REPEATS or all_ranks(
        sum(times) < POINT_SECONDS * 1e3 and len(times) < MAX_REPEATS
    ):
        start = time.perf_counter()
        step()
        times.append((time.perf_counter() - start) * 1e3)
    return [round(value, 4) for value in times]


def all_ranks(go_on: bool) -> bool:
    """What the first rank says: a step is of all ranks, so each must run as many."""
    from nexus.runtime.vllm.compat import get_world_group

    return bool(get_world_group().broadcast_object(go_on))
