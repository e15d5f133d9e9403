"""How long things take, and whether there is time for one more."""

import time
from collections import deque

from nexus.core.errors import NexusError

_FIRST_START_S = 120.0  # compiles kernels; later ones find them
_LATER_START_S = 60.0
_BEFORE_S, _AFTER_S = 4.0, 8.0  # a run's prompts are made; its last requests end
_LAST_RUNS = 3


class OutOfTimeError(NexusError):
    """The call's minutes are over; the same command goes on from there."""


class Budget:
    """Of one call; what it expects is what it has seen last."""

    def __init__(self, minutes: float | None, duration_s: float) -> None:
        """``minutes`` from now, None for no end; a run sends requests for ``duration_s``."""
        self._end = None if minutes is None else time.monotonic() + 60 * minutes
        self._start_s = _FIRST_START_S
        self._runs_s: deque[float] = deque(maxlen=_LAST_RUNS)
        self._duration_s = duration_s

    @property
    def left_s(self) -> float:
        """Seconds to the end."""
        return float("inf") if self._end is None else self._end - time.monotonic()

    def started(self, seconds: float) -> None:
        """A server took so long to start."""
        self._start_s = min(seconds, _LATER_START_S)

    def ran(self, seconds: float) -> None:
        """A run took so long, from making its prompts to its last token."""
        self._runs_s.append(seconds)

    def require(self, *, starting: bool) -> None:
        """Raise OutOfTimeError unless a run can end in time, with a start before it if need be."""
        usual_s = _BEFORE_S + self._duration_s + _AFTER_S
        needed_s = max([usual_s, *self._runs_s]) + (self._start_s if starting else 0.0)
        if needed_s > self.left_s:
            raise OutOfTimeError("out of time: the same command goes on from here")
