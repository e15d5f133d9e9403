"""The worker's half of the prefill lane: launches passes and sees them end."""

import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any, Protocol

import torch
from typing_extensions import override

from nexus.core.plan import Mode
from nexus.runtime.vllm.compat import log
from nexus.runtime.vllm.lane.pass_inputs import Row, trace_arguments
from nexus.runtime.vllm.lane.prefill_lane import PrefillLane
from nexus.runtime.vllm.lane.queue import LaneQueue, Pass, Reaped, Share
from nexus.runtime.vllm.lane.step import LaneReport, LaneStep
from nexus.runtime.vllm.trace import PASSES, ServeTrace

STUCK_AFTER_S = 30.0


class Launcher(Protocol):
    """Runs passes in the partition of a mode, ``max_passes`` at once."""

    max_passes: int

    def launch(self, mode: Mode, rows: Sequence[Row], *, fresh_context: bool) -> Pass:
        """Launch a pass; ``fresh_context``: a row reads KV that a step may still be writing."""
        ...

    def fence(self) -> Pass:
        """Over when everything launched so far is."""
        ...

    def ends_in_time(self, work: Pass) -> bool:
        """Whether ``work`` should be over before a step that is scheduled now can begin."""
        ...

    def should_prelaunch(self, work: Pass) -> bool:
        """Whether another pass should be launched behind ``work`` by now.

        What is launched goes before whatever short prompt comes next.
        """
        ...

    def next_step_waits(self, work: Pass) -> None:
        """Let the next step follow ``work``, on the device."""
        ...

    def sms(self, mode: Mode) -> tuple[int, int]:
        """What prefill and decode have in ``mode``, as realized."""
        ...


class CompletedPass:
    """A pass that was over before its launch returned."""

    def finished(self) -> bool:
        """Always."""
        return True


class SerialLauncher(Launcher):
    """On a CPU, where one forward pass at a time can run: passes and steps take turns.

    There are no partitions, and every mode is alike.
    """

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
            self._trace.span(PASSES, mode.name, start_s, time.monotonic(), **trace_arguments(rows))
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


class LaneDriver:
    """One per worker; ``begin_step`` before vLLM's step, ``end_step`` after it is queued."""

    def __init__(
        self,
        launcher: Launcher,
        max_tokens: int,
        max_rows: int,
        stuck_after_s: float = STUCK_AFTER_S,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        """``max_tokens`` and ``max_rows`` bound a pass, whatever a mode's chunk."""
        self._launcher = launcher
        self._max_tokens = max_tokens
        self._max_rows = max_rows
        self._stuck_after_s = stuck_after_s
        self._clock = clock
        self._queue = LaneQueue(launcher.max_passes)
        self._mode: Mode | None = None
        self._progress_s = clock()
        self._failed: set[str] = set()
        self._launched: dict[str, int] = {}
        self._stuck = False
        self._lost: set[str] = set()
        self._in_force: Mode | None = None
        self._polled = False

    @property
    def busy(self) -> bool:
        """Whether a prompt is on the lane."""
        return len(self._queue) > 0

    def begin_step(self, step: LaneStep) -> Mode | None:
        """Take a step's orders in; the mode to run it in, None for vLLM's own way."""
        for prompt in step.new:
            self._queue.add(prompt)
        for req_id in step.cancelled:
            self._queue.cancel(req_id)
        if self._stuck:
            self._queue.withdraw()
        elif step.mode.mode == "fused":
            self._queue.withdraw(last_tokens=self._mode.chunk if self._mode else 0)
        else:
            self._mode = step.mode
        # The partition stays while a pass runs in it.
        self._in_force = self._mode if self.busy else None
        return self._in_force

    def end_step(self) -> tuple[set[str], LaneReport | None]:
        """Launch passes; the requests that left the lane, and a report if there is any news.

        None is said to have left here once ``poll`` is in use, which the scheduler hears
        from before it hears of this step.
        """
        under_way = self._queue.passes_under_way
        reaped = Reaped() if self._polled else self._queue.reap()
        self._queue.settle()
        self._note_progress(under_way)
        self._watch()
        tokens = 0
        while launched := self._launch():
            tokens += launched
        return reaped.finished, self._report(reaped, tokens)

    def poll(self) -> tuple[set[str], LaneReport | None]:
        """What left the lane, asked before a step is scheduled, in the worker's process."""
        self._polled = True
        under_way = self._queue.passes_under_way
        reaped = self._queue.reap(self._launcher.ends_in_time)
        self._note_progress(under_way)
        if reaped.under_way is not None:
            self._launcher.next_step_waits(reaped.under_way)
        return reaped.finished, self._report(reaped, 0)

    def _note_progress(self, under_way: int) -> None:
        if self._queue.passes_under_way < under_way or under_way == 0:
            self._progress_s = self._clock()

    def _report(self, reaped: Reaped, tokens: int) -> LaneReport | None:
        report = LaneReport(
            launched={k: v for k, v in self._launched.items() if k not in reaped.finished},
            tokens=tokens,
            returned=reaped.returned,
            failed=self._failed & reaped.finished,
            lost=self._lost - reaped.finished,
            sms=self._launcher.sms(self._in_force) if self._in_force else None,
        )
        self._failed -= reaped.finished
        self._lost, self._launched = set(), {}
        news = report.launched or reaped.finished or report.lost or report.sms
        return report if news else None

    def _launch(self) -> int:
        """Launch a pass if there is cause; its tokens."""
        if self._mode is None or self._stuck:
            return 0
        running = self._queue.running
        if running is not None and not self._launcher.should_prelaunch(running):
            return 0
        shares = self._queue.take(min(self._mode.chunk, self._max_tokens), self._max_rows)
        if not shares:
            return 0
        try:
            fresh = any(s.job.launched == 0 and s.job.prompt.context > 0 for s in shares)
            rows = [share.row for share in shares]
            work = self._launcher.launch(self._mode, rows, fresh_context=fresh)
        except (RuntimeError, MemoryError) as error:
            self._fail(shares, error)
            return 0
        self._queue.launched(shares, work)
        for share in shares:
            self._launched[share.job.prompt.req_id] = share.job.launched
        return sum(share.tokens for share in shares)

    def _fail(self, shares: list[Share], error: Exception) -> None:
        names = ", ".join(share.job.prompt.req_id for share in shares)
        reason = (str(error).splitlines() or [""])[0]
        log.warning("prefill lane: %s; back to fused: %s", reason or repr(error), names)
        self._failed |= {share.job.prompt.req_id for share in shares}
        self._queue.failed(shares, self._launcher.fence())

    def _watch(self) -> None:
        idle_s = self._clock() - self._progress_s
        if self._stuck or idle_s < self._stuck_after_s:
            return
        log.error("prefill lane: no pass ended for %.0f s; serving fused from here on", idle_s)
        self._stuck = True
        self._lost = self._queue.stranded()
        self._queue.withdraw()
