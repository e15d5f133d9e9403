"""The controller: batches follow the gaps that they cause, and nobody is made to miss its bound."""

import random

import pytest
from hypothesis import given
from hypothesis import strategies as st

from nexus.core.plan import Mode
from nexus.core.slo import LATE_GAPS, has_late_budget
from nexus.core.tbt import TbtController

BATCH, BOUND_MS, LONGEST = Mode("fused", 512), 20.0, 8192


def controller() -> TbtController:
    return TbtController(BOUND_MS, LONGEST, frozenset())


def chosen(
    of: TbtController, mode: Mode = BATCH, backlog: int = 4000, afford: bool = False
) -> Mode:
    return of.batch(mode, 10, backlog, lambda: afford)


def late_share(ms_of_a_token: float, steps: int = 4000) -> tuple[float, int]:
    """How many of the last steps were late on a device of that speed, and their batch."""
    on, noise, late = controller(), random.Random(0), []
    for _ in range(steps):
        mode = chosen(on)
        gap_ms = ms_of_a_token * mode.chunk * noise.gauss(1.0, 0.04)
        late.append(on.is_late(gap_ms))
        on.ended(mode, gap_ms)
    return sum(late[steps // 2 :]) / (steps / 2), mode.chunk


@pytest.mark.parametrize(
    ("tokens", "late", "may"), [(19, 0, False), (20, 0, True), (39, 1, False), (40, 1, True)]
)
def test_one_gap_in_twenty_is_afforded(tokens: int, late: int, may: bool) -> None:
    assert has_late_budget(tokens, late) is may


@pytest.mark.parametrize("slower", [1.05, 1.2, 1.4])
def test_on_a_slow_device_batches_shrink_until_gaps_are_within_the_bound(slower: float) -> None:
    share, chunk = late_share(slower * 0.95 * BOUND_MS / BATCH.chunk)
    assert share < LATE_GAPS
    assert 0.7 * BATCH.chunk / slower < chunk < BATCH.chunk


def test_on_a_device_as_fast_as_profiled_the_batch_stays() -> None:
    assert late_share(0.85 * BOUND_MS / BATCH.chunk) == (0.0, BATCH.chunk)


def test_batches_grow_back_when_the_device_is_fast_again() -> None:
    on = controller()
    for _ in range(100):
        on.ended(BATCH, 1.5 * BOUND_MS)
    assert chosen(on).chunk == pytest.approx(0.6 * BATCH.chunk, abs=32)
    for _ in range(1100):
        on.ended(chosen(on), 0.5 * BOUND_MS)
    assert chosen(on) == BATCH


def test_everything_is_computed_at_once_while_everyone_affords_it() -> None:
    on = controller()
    assert chosen(on, afford=True).chunk == LONGEST
    assert chosen(on, afford=True) == BATCH  # what that one cost is not known yet
    assert chosen(on, afford=True).chunk == LONGEST
    assert chosen(on, afford=False) == BATCH
    assert chosen(on, backlog=500, afford=True) == BATCH  # all of it fits
    assert on.batch(BATCH, 600, 0, lambda: True) == BATCH  # nothing waits


@given(st.booleans(), st.integers(0, 100))
def test_lanes_and_steps_without_decodes_stay_as_they_are(afford: bool, decodes: int) -> None:
    on = controller()
    on.ended(BATCH, 2 * BOUND_MS)
    lane = Mode("overlap", 1024, 100)
    assert on.batch(lane, decodes, 4000, lambda: afford) == lane
    assert on.batch(BATCH, 0, 4000, lambda: afford) == BATCH


def test_a_mode_that_the_plan_knows_to_be_late_is_left_alone() -> None:
    on = TbtController(BOUND_MS, LONGEST, frozenset({Mode("fused", 4096)}))
    on.ended(Mode("fused", 4096), 10 * BOUND_MS)
    assert on.scale == 1.0
    assert chosen(on, Mode("fused", 4096), backlog=9000, afford=True).chunk == 4096
