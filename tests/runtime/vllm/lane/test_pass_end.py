"""Which passes end before the next step, by the times of those before them."""

from dataclasses import dataclass
from typing import Any

import pytest

from nexus.runtime.vllm.lane.pass_end import PassEndPredictor, TimedPass, TimedStep
from nexus.runtime.vllm.lane.prefill_lane import LanePass

KEY = ("overlap-100", 512)


class Device:
    """Virtual time, in milliseconds."""

    now = 0.0


@dataclass
class Event:
    device: Device
    at: float

    def query(self) -> bool:
        return self.at <= self.device.now

    def elapsed_time(self, later: "Event") -> float:
        assert self.query()
        assert later.query()
        return later.at - self.at


@pytest.fixture
def device() -> Device:
    return Device()


def passed(device: Device, begun: float, done: float, seen: PassEndPredictor) -> TimedPass:
    events: list[Any] = [Event(device, begun), Event(device, done)]
    return TimedPass(KEY, events[0], LanePass(events[1]), seen.pass_over)


def stepped(device: Device, begun: float, done: float) -> TimedStep:
    events: list[Any] = [Event(device, begun), Event(device, done)]
    return TimedStep(*events)


def experienced(device: Device, step: float, work: float) -> PassEndPredictor:
    """After a pass, and steps end to end until now."""
    seen = PassEndPredictor()
    for end in range(1, 4):
        device.now = end * step
        seen.step_launched(stepped(device, (end - 1) * step, end * step))
    assert passed(device, device.now - work, device.now, seen).finished()
    return seen


def test_a_pass_that_ends_during_the_step_under_way_ends_in_time(device: Device) -> None:
    seen = experienced(device, step=10, work=25)
    last = device.now
    seen.step_launched(stepped(device, last, last + 10))
    assert seen.ends_within(passed(device, last - 16, last + 9, seen)) is True
    late = passed(device, last - 14, last + 11, seen)
    assert (seen.ends_within(late), seen.ends_within(late, more_steps=1)) == (False, True)
    assert seen.ends_within(passed(device, last + 5, last + 30, seen)) is False  # not begun
    stuck = passed(device, last - 80, last + 90, seen)
    assert seen.ends_within(stuck) is None  # longer than any before it


def test_nothing_is_foretold_without_experience(device: Device) -> None:
    fresh = PassEndPredictor()
    device.now = 10.0
    assert fresh.ends_within(passed(device, 0, 11, fresh)) is None
    seen = experienced(device, step=10, work=25)
    assert seen.ends_within(passed(device, 10, 31, seen)) is None  # no step under way
    seen.step_launched(stepped(device, device.now, device.now + 10))
    seen.forget_steps()
    assert seen.ends_within(passed(device, 10, 31, seen)) is None


def test_time_without_steps_is_no_step_s(device: Device) -> None:
    """Else passes would seem to end within the step after it, which would wait for them."""
    seen = experienced(device, step=10, work=100)
    idle = device.now + 300
    device.now = idle + 10
    seen.step_launched(stepped(device, idle, idle + 10))
    device.now = idle + 15
    seen.step_launched(stepped(device, idle + 10, idle + 20))
    assert seen.ends_within(passed(device, idle - 40, idle + 60, seen)) is False
    assert seen.ends_within(passed(device, idle - 85, idle + 15, seen)) is True


def test_a_pass_may_end_within_the_first_step_after_a_time_without(device: Device) -> None:
    seen = experienced(device, step=10, work=100)
    idle = device.now + 300
    device.now = idle + 1
    seen.step_launched(stepped(device, idle, idle + 10))
    assert seen.ends_within(passed(device, idle - 95, idle + 5, seen)) is True


def test_a_pass_is_told_of_once(device: Device) -> None:
    seen: list[TimedPass] = []
    events: list[Any] = [Event(device, 0), Event(device, 5)]
    work = TimedPass(KEY, events[0], LanePass(events[1]), seen.append)
    assert not work.finished()
    device.now = 6
    assert work.finished()
    assert work.finished()
    assert seen == [work]
