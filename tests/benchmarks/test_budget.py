"""Time: what is expected to fit, and stopping when it does not."""

import time

import pytest

from nexus.benchmarks.run import Budget, OutOfTimeError


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> list[float]:
    """The time, to be set."""
    now = [100.0]
    monkeypatch.setattr(time, "monotonic", lambda: now[0])
    return now


def fits(budget: Budget, *, starting: bool) -> bool:
    try:
        budget.require(starting=starting)
    except OutOfTimeError:
        return False
    return True


def test_without_an_end_everything_fits(clock: list[float]) -> None:
    budget = Budget(None, 45.0)
    clock[0] += 1e9
    assert fits(budget, starting=True)
    assert budget.left_s == float("inf")


def test_a_run_and_a_start_must_fit(clock: list[float]) -> None:
    budget = Budget(4.0, 45.0)
    assert fits(budget, starting=True)
    clock[0] += 70.0
    assert not fits(budget, starting=True)  # the first start of a machine takes longest
    assert fits(budget, starting=False)
    budget.started(50.0)
    assert fits(budget, starting=True)
    clock[0] += 120.0
    assert not fits(budget, starting=False)


def test_long_runs_are_expected_again(clock: list[float]) -> None:
    budget = Budget(3.0, 45.0)
    assert fits(budget, starting=False)
    budget.ran(190.0)
    assert not fits(budget, starting=False)
    for _ in range(3):
        budget.ran(50.0)
    assert fits(budget, starting=False)
