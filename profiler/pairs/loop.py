"""Steps of one shape, over and over in one engine, timed alone or beside another engine's.

Beside another engine's, a loop goes on until it is told to stop, and counts only what lies
after the moment from which the other one loops too.
"""

import statistics
import time
from collections.abc import Callable
from typing import Any, Protocol

from nexus.core.spread import percentile
from nexus.profiler.nvml import Condition, GpuCondition
from nexus.profiler.pairs.wire import Order, Times
from nexus.profiler.points import Point
from nexus.profiler.steps import StepDriver
from nexus.profiler.worker import ProfilerExtension

WARM_UP = 3
MIN_REPEATS = 5
MIN_BESIDE = 3
MAX_REPEATS = 48
SOLO_SECONDS = 0.25
BESIDE_SECONDS = 0.8
STEPS = 400  # that a sequence is given room for, fewer than a point's headroom


class Clock(Protocol):
    """Runs steps, and knows when each one ended."""

    @property
    def steps(self) -> StepDriver:
        """Where sequences begin."""

    def step(self, chunk: int, context: int) -> None:
        """Run a step, or queue one and wait for those before it."""

    def settle(self) -> None:
        """Wait for all steps."""

    def ended(self) -> int:
        """How many steps have ended."""

    def interval_ms(self, step: int) -> float:
        """From the end of the step before it to that of ``step``, which has ended."""

    def condition(self) -> Condition:
        """What the device is like now."""

    def forget(self) -> None:
        """Count from 0 again."""


class HostClock:
    """On a CPU a step has ended when its call returns."""

    def __init__(self, worker: Any) -> None:
        """``worker`` is a vLLM worker after start-up."""
        self.steps = StepDriver(worker)
        self._ends: list[float] = []

    def step(self, chunk: int, context: int) -> None:
        """Run one."""
        self.steps.run(chunk, context)
        self._ends.append(time.perf_counter())

    def settle(self) -> None:
        """Nothing is under way."""

    def ended(self) -> int:
        """As many as were run."""
        return len(self._ends)

    def interval_ms(self, step: int) -> float:
        """By the wall clock."""
        return round((self._ends[step] - self._ends[step - 1]) * 1e3, 4)

    def condition(self) -> Condition:
        """Not looked at."""
        return Condition()

    def forget(self) -> None:
        """Count from 0 again."""
        self._ends.clear()


class DeviceClock:
    """On a GPU steps are queued one ahead, as the server does it, and events tell their ends."""

    def __init__(self, worker: Any) -> None:
        """``worker`` is a vLLM worker after start-up."""
        import torch

        from nexus.profiler.gpu import QueuedSteps

        self.steps = self._queued = QueuedSteps(worker)
        self._ahead = 1 if worker.vllm_config.max_concurrent_batches > 1 else 0
        self._events: list[Any] = []
        index = worker.model_runner.device.index or 0
        self._gpu = GpuCondition(str(torch.cuda.get_device_properties(index).uuid))

    def step(self, chunk: int, context: int) -> None:
        """Queue one, and wait for the one before it."""
        self._events.append(self._queued.launch(chunk, context))
        self._queued.settle(self._ahead)
        if len(self._events) > self._ahead:
            self._events[-1 - self._ahead].synchronize()

    def settle(self) -> None:
        """Wait for all that is queued."""
        self._queued.settle()
        if self._events:
            self._events[-1].synchronize()

    def ended(self) -> int:
        """All but those queued ahead."""
        return max(0, len(self._events) - self._ahead)

    def interval_ms(self, step: int) -> float:
        """On the device."""
        return round(float(self._events[step - 1].elapsed_time(self._events[step])), 4)

    def condition(self) -> Condition:
        """Through NVML."""
        return self._gpu.read()

    def forget(self) -> None:
        """Count from 0 again."""
        self._events.clear()


class Loop:
    """One engine's steps of one shape at a time."""

    def __init__(self, clock: Clock) -> None:
        """``clock`` runs the steps."""
        self._clock = clock
        self._launched = 0
        self._starts: list[int] = []  # steps with which sequences began anew

    def alone(self, point: Point) -> Times:
        """Time ``point``'s step, of whichever phases it has, after a few that do not count.

        Raises MemoryError or RuntimeError where it cannot run.
        """
        try:
            self._warm_up(point)
            start = time.perf_counter()
            while len(times := self._intervals(0)) < MIN_REPEATS or (
                time.perf_counter() - start < SOLO_SECONDS and len(times) < MAX_REPEATS
            ):
                self._step(point)
            return _times(times, self._clock.condition())
        finally:
            self._end()

    def beside(
        self, point: Point, say: Callable[[Times | None], None], told: Callable[[], Order | None]
    ) -> None:
        """Run ``point``'s step until ``told`` gives "stop"; raises as ``alone``.

        Says None when it loops, and its times when enough of them lie after "mark".
        """
        try:
            self._warm_up(point)
            say(None)
            since, start = -1, 0.0
            while (order := told()) != "stop":
                self._step(point)
                if order == "mark":
                    since, start = self._clock.ended(), time.perf_counter()
                elif start and time.perf_counter() - start > BESIDE_SECONDS:
                    times = self._intervals(since)
                    if len(times) >= MIN_BESIDE:
                        say(_times(times, self._clock.condition()))
                        start = 0.0
        finally:
            self._end()

    def _warm_up(self, point: Point) -> None:
        for _ in range(WARM_UP + 1):
            self._step(point)

    def _step(self, point: Point) -> None:
        steps = len(self._starts) and self._launched - self._starts[-1]
        if not self._starts or steps >= STEPS:
            self._clock.steps.begin(point.decode_batch, point.decode_context, STEPS + 1)
            self._starts.append(self._launched)
        self._clock.step(point.chunk, point.prefill_context)
        self._launched += 1

    def _intervals(self, since: int) -> list[float]:
        """Of the steps from ``since`` on that have ended and are not the first of anything."""
        first = {start + step for start in self._starts for step in range(WARM_UP)}
        ended = range(max(1, since), self._clock.ended())
        return [self._clock.interval_ms(step) for step in ended if step not in first]

    def _end(self) -> None:
        self._clock.settle()
        self._clock.steps.end()
        self._clock.settle()
        self._clock.forget()
        self._starts.clear()
        self._launched = 0


def _times(intervals: list[float], condition: Condition) -> Times:
    return Times(
        statistics.median(intervals), round(percentile(intervals, 95), 4), len(intervals), condition
    )


class PairExtension(ProfilerExtension):
    """Mixed into the worker of an engine that is one of a pair."""

    def nexus_loop(self: Any) -> Loop:
        """What runs and times its steps; the worker is in this very process."""
        return Loop(HostClock(self) if self.device.type == "cpu" else DeviceClock(self))
