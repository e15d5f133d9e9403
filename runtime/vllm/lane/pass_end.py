"""When a pass under way will end, told before the step that could follow it is scheduled.

A step is scheduled while the one before it runs, and a prompt that is handed over only
when its pass is seen to be over misses a step. How long a pass of some size takes in some
mode is known from those before it. All times are the device's own, between events.
"""

from collections import deque
from collections.abc import Callable
from dataclasses import dataclass

import torch

from nexus.runtime.vllm.lane.prefill_lane import LanePass

_WEIGHT = 0.25  # of the newest time in a running mean
_OVERDUE = 1.5  # expected times after which nothing is foretold of a pass any more


class Means:
    """Running means of durations, by key, in milliseconds."""

    def __init__(self) -> None:
        """None yet."""
        self._ms: dict[tuple[str, int], float] = {}

    def note(self, key: tuple[str, int], ms: float) -> None:
        """Take a duration in."""
        before = self._ms.get(key, ms)
        self._ms[key] = before + _WEIGHT * (ms - before)

    def of(self, key: tuple[str, int]) -> float | None:
        """The mean, None before the first duration."""
        return self._ms.get(key)


class TimedPass:
    """A pass between two events; ``told`` hears of them once when it is over."""

    def __init__(
        self,
        key: tuple[str, int],
        begun: torch.cuda.Event,
        work: LanePass,
        told: Callable[["TimedPass"], None],
    ) -> None:
        """``key`` is that of passes alike: mode and tokens with padding."""
        assert work.done is not None
        self.key = key
        self.begun = begun
        self.done = work.done
        self._told: Callable[[TimedPass], None] | None = told

    def finished(self) -> bool:
        """Whether the pass is over."""
        if not self.done.query():
            return False
        if self._told is not None:
            self._told(self)
            self._told = None
        return True


@dataclass(frozen=True)
class TimedStep:
    """A step between two events: the device has come to it, and has done it."""

    begun: torch.cuda.Event
    done: torch.cuda.Event


class PassEndPredictor:
    """Of one worker: what steps and passes took, and which pass ends before the next step."""

    def __init__(self) -> None:
        """Nothing seen yet."""
        self._passes = Means()
        self._step_ms: float | None = None
        self._last: torch.cuda.Event | None = None  # the latest that is known to be past
        self._under_way: deque[TimedStep] = deque()

    def step_launched(self, step: TimedStep) -> None:
        """A step is on its way, behind those launched before."""
        self._under_way.append(step)
        self._settle()

    def pass_over(self, work: TimedPass) -> None:
        """A pass was seen to be over."""
        self._passes.note(work.key, work.begun.elapsed_time(work.done))

    def ends_within(self, work: TimedPass, more_steps: int = 0) -> bool | None:
        """Whether ``work`` should be over when the steps under way, and some more, are.

        None where nothing can be told.
        """
        self._settle()
        expected_ms = self._passes.of(work.key)
        if expected_ms is None or self._step_ms is None or self._last is None:
            return None
        if not self._under_way:
            return None
        if not work.begun.query():
            return False
        done_ms = work.begun.elapsed_time(self._last)  # negative where it began since
        left_ms = expected_ms - done_ms
        if left_ms < (1 - _OVERDUE) * expected_ms:
            return None
        return left_ms <= (len(self._under_way) + more_steps) * self._step_ms

    def forget_steps(self) -> None:
        """Steps run elsewhere from here on."""
        self._under_way.clear()
        self._last = None

    def _settle(self) -> None:
        while self._under_way and self._under_way[0].done.query():
            step = self._under_way.popleft()
            step_ms = step.begun.elapsed_time(step.done)
            mean = step_ms if self._step_ms is None else self._step_ms
            self._step_ms = mean + _WEIGHT * (step_ms - mean)
            self._last = step.done
        # After a time without steps, the last one's end is long past.
        if self._under_way and self._under_way[0].begun.query():
            self._last = self._under_way[0].begun
