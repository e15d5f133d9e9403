"""Steps under way in virtual time: launched by the host, run by the device in their order."""

from collections import deque
from typing import NamedTuple

from nexus.core.plan import Mode
from nexus.planner.latency.serving import Serving
from nexus.planner.simulator.lane import SimLane


class Step(NamedTuple):
    """A launched step; times in seconds.

    ``ready_s``: its first kernel can start; ``launched_s``: its last one is launched.
    ``alone_s``: what it takes with no pass beside it; ``whole_s``: and with all SMs.
    ``base_s``: its decodes alone on all SMs.
    """

    ready_s: float
    launched_s: float
    alone_s: float
    whole_s: float
    base_s: float
    chunk: int
    batch: int
    kv: float
    mode: Mode


class Flight:
    """What the host has launched and not yet seen the end of; ``device_s`` is the device's clock."""

    def __init__(self, serving: Serving, lane: SimLane) -> None:
        """Nothing under way; passes of ``lane`` run beside the steps."""
        self.steps: deque[Step] = deque()
        self.device_s = 0.0
        self._serving, self._lane = serving, lane

    @property
    def full(self) -> bool:
        """Whether more is under way than the host leaves there while it schedules."""
        return len(self.steps) > self._serving.steps_in_flight

    def expected_end(self) -> float:
        """When the device will have run all steps."""
        device_s = self.device_s
        for step in self.steps:
            device_s = self._end_of(step, device_s)
        return device_s

    def see(self, now: float) -> tuple[Step, float, float]:
        """Take the oldest step; when it starts, and what the host's clock says at its end."""
        step = self.steps.popleft()
        start_s = max(self.device_s, step.ready_s)
        self.device_s = self._end_of(step, self.device_s)
        return step, start_s, max(now, self.device_s) + self._serving.result_ms / 1e3

    def go_on(
        self, now: float, like: Step, more_s: float, count: int, until_s: float
    ) -> list[float]:
        """The host's clock after each of ``count`` turns, or of fewer once it is ``until_s``.

        A turn launches a decode step, which takes ``more_s`` longer than the turn's before
        (the first as long as ``like``), and sees the oldest one. As many are to be under
        way as the host leaves there, and no pass. A short loop: most simulated steps are these.
        """
        serving, steps, device_s = self._serving, self.steps, self.device_s
        schedule_s, launch_s = serving.schedule_ms / 1e3, serving.launch_ms / 1e3
        result_s, step_s, base_s = serving.result_ms / 1e3, like.alone_s, like.base_s
        batch, kv, mode = like.batch, like.kv, like.mode
        clock: list[float] = []
        for _ in range(count):
            ready_s = now + schedule_s
            now = ready_s + launch_s
            steps.append(Step(ready_s, now, step_s, step_s, base_s, 0, batch, kv, mode))
            step_s, base_s, kv = step_s + more_s, base_s + more_s, kv + batch
            oldest = steps.popleft()
            start_s = device_s if device_s > oldest.ready_s else oldest.ready_s
            device_s = start_s + oldest.alone_s
            device_s = device_s if device_s > oldest.launched_s else oldest.launched_s
            now = (now if now > device_s else device_s) + result_s
            clock.append(now)
            if now >= until_s:
                break
        self.device_s = device_s
        return clock

    def _end_of(self, step: Step, device_s: float) -> float:
        start_s = max(device_s, step.ready_s)
        lane = self._lane
        if not (lane.passes or lane.past):
            return max(start_s + step.alone_s, step.launched_s)
        end_s = lane.end_of(start_s, step.alone_s, step.whole_s, step.base_s, step.batch, step.kv)
        return max(end_s, step.launched_s)
