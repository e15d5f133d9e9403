"""The lane's driver: which partition a step runs in, and a lane that gets stuck."""

from collections.abc import Sequence
from typing import Any

from nexus.core.plan import Mode
from nexus.runtime.vllm.lane.driver import LaneDriver, Launcher
from nexus.runtime.vllm.lane.queue import LanePrompt
from nexus.runtime.vllm.lane.step import LaneStep

OVERLAP = Mode("overlap", 64, prefill_sms=3)
FUSED = Mode("fused", 64)


class Work:
    over = False

    def finished(self) -> bool:
        return self.over


class Device(Launcher):
    """Passes that end when the test says so."""

    max_passes = 2

    def __init__(self) -> None:
        self.works: list[Work] = []
        self.awaited: list[Work] = []
        self.foreseen = False
        self.soon = True

    def launch(self, mode: Mode, rows: Sequence[Any], *, fresh_context: bool) -> Work:
        self.works.append(Work())
        return self.works[-1]

    def fence(self) -> Work:
        return Work()

    def ends_in_time(self, work: Any) -> bool:
        return self.foreseen

    def should_prelaunch(self, work: Any) -> bool:
        return self.soon

    def next_step_waits(self, work: Any) -> None:
        self.awaited.append(work)

    def sms(self, mode: Mode) -> tuple[int, int]:
        return mode.prefill_sms, 5


def prompt(name: str, tokens: int = 200) -> LanePrompt:
    return LanePrompt(name, (0.0,), list(range(tokens)), 0, ([1],))


def test_a_partition_stays_until_its_pass_is_over() -> None:
    device = Device()
    driver = LaneDriver(device, max_tokens=1000, max_rows=8)
    assert driver.begin_step(LaneStep(FUSED)) is None
    assert driver.end_step() == (set(), None)
    assert driver.begin_step(LaneStep(OVERLAP, [prompt("a")])) == OVERLAP
    left, report = driver.end_step()
    assert report is not None
    assert (left, report.launched, report.tokens, report.sms) == (set(), {"a": 128}, 128, (3, 5))
    assert driver.begin_step(LaneStep(FUSED)) == OVERLAP
    driver.end_step()
    assert len(device.works) == 2  # what was not launched is fused now
    device.works[0].over = device.works[1].over = True
    left, report = driver.poll()
    assert report is not None
    assert (left, report.returned) == ({"a"}, {"a": 128})
    assert driver.begin_step(LaneStep(FUSED)) is None


def test_a_prompt_is_handed_over_before_its_pass_is_over_and_the_step_waits() -> None:
    device = Device()
    driver = LaneDriver(device, max_tokens=1000, max_rows=8)
    driver.begin_step(LaneStep(OVERLAP, [prompt("a", 60)]))
    driver.end_step()
    assert driver.poll()[0] == set()
    device.foreseen = True
    assert driver.end_step()[0] == set()  # the step now under way cannot take it up
    assert driver.poll()[0] == {"a"}
    assert device.awaited == device.works
    assert not driver.busy


def test_no_pass_is_launched_long_before_its_turn() -> None:
    device = Device()
    device.soon = False
    driver = LaneDriver(device, max_tokens=1000, max_rows=8)
    driver.begin_step(LaneStep(OVERLAP, [prompt("a", 200)]))
    driver.end_step()
    driver.end_step()
    assert len(device.works) == 1
    device.soon = True
    driver.end_step()
    assert len(device.works) == 2


def test_a_stuck_lane_is_noticed_and_takes_nothing_more() -> None:
    seconds = 0.0
    device = Device()
    driver = LaneDriver(
        device, max_tokens=1000, max_rows=8, stuck_after_s=10, clock=lambda: seconds
    )
    driver.begin_step(LaneStep(OVERLAP, [prompt("a", 64), prompt("b", 64)]))
    driver.end_step()
    seconds = 9.0
    assert driver.end_step()[1] is not None
    seconds = 11.0
    _, report = driver.end_step()
    assert report is not None
    assert report.lost == {"a", "b"}
    driver.begin_step(LaneStep(OVERLAP, [prompt("c")], cancelled=["a", "b"]))
    left, report = driver.end_step()
    assert report is not None
    assert (left, report.returned, report.lost) == ({"c"}, {"c": 0}, set())
    assert len(device.works) == 2
    for work in device.works:
        work.over = True
    assert driver.poll()[0] == {"a", "b"}
