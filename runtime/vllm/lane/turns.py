"""The prefill lane where one forward pass at a time can run: passes and steps take turns."""

import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from typing_extensions import override

from nexus.core.plan import Mode
from nexus.runtime.vllm.lane.driver import Launcher
from nexus.runtime.vllm.lane.prefill_lane import PrefillLane
from nexus.runtime.vllm.lane.queue import Pass
from nexus.runtime.vllm.lane.rows import Row
from nexus.runtime.vllm.trace import PASSES, ServeTrace, told_of


class CompletedPass:
    """A pass that was over before its launch returned."""

    def finished(self) -> bool:
        """Always."""
        return True


class SerialLauncher(Launcher):
    """On a CPU: no partition, every mode alike."""

    max_passes = 1

    def __init__(self, lane: PrefillLane, trace: ServeTrace | None) -> None:
        """``lane`` runs the passes, which go to ``trace`` if there is one."""
        self._lane = lane
        self._trace = trace

    def describe(self) -> str:
        """For the log."""
        return "no partitions on a CPU: passes and steps take turns"

    @override
    def launch(self, mode: Mode, rows: Sequence[Row], *, fresh_context: bool) -> Pass:
        """Run a pass to its end."""
        start_s = time.monotonic()
        work = self._lane.forward(rows)
        if self._trace is not None:
            self._trace.span(PASSES, mode.name, start_s, time.monotonic(), **told_of(rows))
        return work

    @override
    def sms(self, mode: Mode) -> tuple[int, int]:
        """All cores, each in its turn."""
        return torch.get_num_threads(), torch.get_num_threads()

    @override
    def fence(self) -> Pass:
        """Nothing is ever under way."""
        return CompletedPass()

    @override
    def ends_in_time(self, work: Pass) -> bool:
        """No step is ever scheduled during a pass."""
        return False

    @override
    def should_prelaunch(self, work: Pass) -> bool:
        """It is over."""
        return True

    @override
    def next_step_waits(self, work: Pass) -> None:
        """It does in any case."""

    @contextmanager
    def step(self, _mode: Mode | None, _scheduler_output: Any) -> Iterator[None]:
        """Run the step as it is."""
        yield

    @contextmanager
    def same_step(self) -> Iterator[None]:
        """As ``step``."""
        yield
