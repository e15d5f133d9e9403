"""The longest steps while few sequences decode: sooner, and no bound given up for it."""

from pathlib import Path

import pytest

from nexus.benchmarks.workloads import TRACES
from nexus.planner.choice import rows_of_one
from nexus.planner.contest import Contest, Played
from nexus.planner.light_load import with_longest_steps
from nexus.planner.simulate import System
from nexus.planner.solve import make_contest
from nexus.planner.table import Bounds, Plan, Workload
from nexus.planner.workload import read_trace
from nexus.profiles.schema import Profile, Provenance, read_profile

H200 = Path(__file__).parents[2] / "profiles" / "h200"
NOW = Provenance(created="now", command="c", software={})


@pytest.fixture(scope="module")
def profile() -> Profile:
    return read_profile(H200 / "llama-3.1-8b.yaml")


def _table(profile: Profile, output_tokens: float) -> tuple[Contest, Played, Plan]:
    workload = Workload("given means", 1000.0, output_tokens)
    contest = make_contest(profile, Bounds(1000.0, 25.0), workload, NOW)
    best, plan = contest.best_table(0, contest.best_stock())
    return contest, best, plan


def test_prompts_come_sooner_while_few_decode_and_bounds_are_met(profile: Profile) -> None:
    contest, best, plan = _table(profile, 200.0)
    longest = contest.fused[-1]
    played, longer = with_longest_steps(contest, best, plan)
    changed = [row for row, was in zip(longer.rows, plan.rows, strict=True) if row != was]
    assert changed
    assert {row.mode for row in changed} == {longest.name}
    assert all(0 < row.decode_batch <= 32 for row in changed)
    assert played.per_s > 0.96 * best.per_s

    arena, rate = contest.arena, 0.2 * best.per_s
    before, after = (System("plan", plan=each) for each in (plan, longer))
    assert arena.play(after, rate).ttft_ms.mean() < arena.play(before, rate).ttft_ms.mean()
    assert all(arena.attainment(after, load * best.per_s) >= 0.97 for load in (0.2, 0.4, 0.6))


def test_a_table_stays_where_one_long_step_is_too_many(profile: Profile) -> None:
    """Of a dozen gaps one is more than one in twenty."""
    contest, best, plan = _table(profile, 12.0)
    assert with_longest_steps(contest, best, plan) == (best, plan)


def test_a_plan_of_a_lane_alone_stays(profile: Profile) -> None:
    """Its only fused step would be the one that runs beside a pass."""
    contest, _, _ = _table(profile, 200.0)
    lane = contest.shared[0]
    rows = rows_of_one(contest.problem, lane, contest.draft.axes.states())
    plan = contest.draft.plan([lane], rows, "fixed")
    best = Played(System("plan", plan=plan), 5.0, 1.0)
    assert with_longest_steps(contest, best, plan) == (best, plan)


def test_partitions_that_are_hardly_better_are_not_planned(profile: Profile) -> None:
    """An overlap in 3 % of the states is 2 % better here, in simulation."""
    requests = read_trace(TRACES / "azure_conv.csv")
    contest = make_contest(profile, Bounds(1000.0, 25.0), requests, NOW)
    assert contest.kept(4)
    _, plan = contest.best_table(4, contest.best_stock())
    assert {mode.mode for mode in plan.modes.values()} == {"fused"}
