"""What the server does, against what the plan predicts: counts, a line a minute, a self-check.

Reads no clock: every call is told the time.
"""

from collections import Counter, deque
from dataclasses import dataclass, field

from nexus.core.plan import Mode, Row

TOLERANCE = 0.30
STEPS_TO_WARN = 100
LINE_EVERY_S = 60.0


@dataclass(frozen=True)
class Scheduled:
    """A step on its way: its mode, the row that predicts it, and its tokens.

    ``decodes`` are the requests that generate, ``prompt_tokens`` what else it computes,
    ``kv_tokens`` what running requests hold.
    """

    mode: Mode
    row: Row
    decodes: int
    prompt_tokens: int
    scheduled_s: float = 0.0
    kv_tokens: int = 0

    @property
    def predicted_ms(self) -> float:
        """The row's, if the step is one that the row speaks of, else 0.

        A row is for a full batch: a step with fewer prompt tokens is shorter.
        """
        most = self.mode.prompt_tokens(self.decodes)
        full = self.mode.mode != "fused" or self.prompt_tokens >= 0.9 * most
        fits = self.decodes > 0 and (full or self.row.prefill_backlog == 0)
        return self.row.tbt_ms if fits and self.mode.name == self.row.mode else 0.0


@dataclass
class Tally:
    """What happened in a while. ``predicted_s`` and ``measured_s`` are of the same steps."""

    steps: Counter[str] = field(default_factory=Counter)
    compared: int = 0
    predicted_s: float = 0.0
    measured_s: float = 0.0

    def add(self, step: Scheduled, measured_s: float | None) -> None:
        """Count a step; ``measured_s`` is None where the time before it was idle."""
        self.steps[step.mode.name] += 1
        if measured_s is not None and step.predicted_ms > 0:
            self.compared += 1
            self.predicted_s += step.predicted_ms / 1e3
            self.measured_s += measured_s


class StepWatch:
    """Steps in the order of their scheduling, which is that of their ends."""

    def __init__(self) -> None:
        """Nothing seen yet."""
        self.tally = Tally()
        self._minute = Tally()
        self._line_s: float | None = None
        self._under_way: deque[Scheduled | None] = deque()
        self._ended_s: float | None = None
        self._too_slow = 0
        self._warned = False

    def scheduled(self, step: Scheduled | None) -> None:
        """A step was sent to the worker; None for an empty one."""
        self._under_way.append(step)

    @property
    def next_to_end(self) -> tuple[Scheduled | None, float | None]:
        """The oldest step under way, and when the one before it ended if it ran at once."""
        return self._under_way[0], self._ended_s

    def ended(self, now_s: float) -> str | None:
        """The oldest step is done at ``now_s``; a warning if there is cause for one."""
        step = self._under_way.popleft()
        before, self._ended_s = self._ended_s, None if step is None else now_s
        if step is None:
            return None
        measured_s = None if before is None else now_s - before
        self.tally.add(step, measured_s)
        self._minute.add(step, measured_s)
        return None if measured_s is None else self._check(step, measured_s)

    def take(self) -> Tally:
        """What happened since the last call."""
        tally, self.tally = self.tally, Tally()
        return tally

    def line(self, now_s: float) -> str | None:
        """Once a minute, that minute in words, if anything ran."""
        if self._line_s is None:
            self._line_s = now_s
        if now_s - self._line_s < LINE_EVERY_S:
            return None
        passed_s, self._line_s = now_s - self._line_s, now_s
        minute, self._minute = self._minute, Tally()
        if not minute.steps:
            return None
        steps = ", ".join(f"{name} {count}" for name, count in minute.steps.most_common())
        text = f"last {passed_s:.0f} s: steps by mode: {steps}"
        if minute.compared:
            measured, predicted = (
                1e3 * seconds / minute.compared
                for seconds in (minute.measured_s, minute.predicted_s)
            )
            text += f"; a step took {measured:.1f} ms, predicted {predicted:.1f} ms"
        return text

    def _check(self, step: Scheduled, measured_s: float) -> str | None:
        """Warn, once, when steps keep taking longer than the plan says.

        Only longer: a row speaks for the largest load of its cell, so that shorter steps
        are no fault of the profile.
        """
        predicted_s = step.predicted_ms / 1e3
        if predicted_s == 0:
            return None
        self._too_slow = self._too_slow + 1 if measured_s > (1 + TOLERANCE) * predicted_s else 0
        if self._warned or self._too_slow < STEPS_TO_WARN:
            return None
        self._warned = True
        return (
            f"{STEPS_TO_WARN} steps in a row took over {TOLERANCE:.0%} longer than the plan"
            f" predicts (the last: {1e3 * measured_s:.1f} ms in {step.mode.name}, predicted"
            f" {1e3 * predicted_s:.1f} ms); measure this machine again with `nexus profile`"
        )
