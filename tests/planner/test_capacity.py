"""The capacity program and the choice of partitions: what must hold whatever the numbers."""

from itertools import combinations

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from nexus.core.plan import Mode, Workload
from nexus.core.slo import Bounds
from nexus.planner.latency.frontier import States, fused_modes, pareto, shared_modes
from nexus.planner.latency.model import fit_model
from nexus.planner.latency.steptimes import StepTimes
from nexus.planner.search.choice import choose_rows, holds, with_backlog
from nexus.planner.search.goodput import Evaluator
from nexus.planner.search.partitions import best_partitions
from nexus.planner.search.plan_search import RULES
from nexus.planner.search.problem import Problem
from nexus.planner.search.solve import make_plan_search
from nexus.planner.simulator.simulate import System
from nexus.planner.workload.requests import lengths_of, poisson

QUICK = settings(max_examples=15, suppress_health_check=[HealthCheck.function_scoped_fixture])
MEANS = st.tuples(st.floats(50.0, 4000.0), st.floats(2.0, 500.0))


@pytest.fixture(scope="module")
def problem_of(h200_profile):
    model = fit_model(h200_profile)

    def make(tbt_ms: float, means: tuple[float, float], ttft_ms: float = 5000.0) -> Problem:
        lengths = lengths_of(Workload("means", *means)).cut_to(h200_profile.model.max_model_len)
        return Problem(model, h200_profile.engine, Bounds(ttft_ms, tbt_ms), lengths)

    return make


@pytest.fixture(scope="module")
def modes(h200_profile):
    return [*fused_modes(h200_profile), *shared_modes(h200_profile, fit_model(h200_profile), 64.0)]


@QUICK
@given(tbt=st.floats(6.0, 80.0), tighter=st.floats(0.3, 1.0), means=MEANS)
def test_a_tighter_tbt_never_raises_capacity(problem_of, modes, tbt, tighter, means):
    loose = problem_of(tbt, means).capacity(modes).per_s
    assert problem_of(tbt * tighter, means).capacity(modes).per_s <= loose * (1 + 1e-6) + 1e-9


@QUICK
@given(tbt=st.floats(6.0, 80.0), means=MEANS, kept=st.integers(1, 14))
def test_more_modes_never_lower_capacity(problem_of, modes, tbt, means, kept):
    problem = problem_of(tbt, means)
    few = problem.capacity(modes[:kept]).per_s
    assert few <= problem.capacity(modes).per_s * (1 + 1e-6) + 1e-9


@QUICK
@given(tbt=st.floats(6.0, 80.0), means=MEANS)
def test_prices_are_shares_of_a_request(problem_of, modes, tbt, means):
    problem = problem_of(tbt, means)
    capacity = problem.capacity(modes)
    lengths = problem.lengths
    assert (capacity.prefill_price >= 0).all()
    assert (capacity.prefill_price * lengths.input_mean <= 1 + 1e-9).all()
    assert (capacity.decode_price >= 0).all()
    assert (capacity.decode_price * lengths.decode_steps <= 1 + 1e-9).all()
    assert capacity.level_share.sum() == pytest.approx(1.0) or capacity.per_s == 0


@settings(max_examples=8)
@given(which=st.integers(0, 14), means=st.tuples(st.floats(200.0, 2000.0), st.floats(5.0, 200.0)))
def test_the_program_bounds_the_simulator(problem_of, modes, h200_profile, which, means):
    """No mode serves more requests a second, for long, than its fluid limit."""
    problem = problem_of(1e9, means, ttft_ms=1e9)
    mode = modes[which]
    limit = problem.capacity([mode]).per_s
    evaluator = Evaluator(
        StepTimes(problem.model),
        h200_profile.engine,
        problem.bounds,
        poisson(problem.lengths, 1500),
    )
    # In order of arrival: shortest first would leave the long ones for the end.
    run = evaluator.evaluate(System(mode.name, mode=mode, order="fcfs"), 2.0 * limit)
    done = np.sort(run.last_token_s)
    early, late = len(done) // 4, 3 * len(done) // 4
    served = (late - early) / (done[late] - done[early])
    # Prompts that a lane completes while nothing decodes cost less than the program thinks.
    assert served <= 1.15 * limit


@settings(max_examples=30)
@given(
    gain=st.lists(st.lists(st.floats(0.0, 1.0), min_size=5, max_size=5), min_size=1, max_size=6),
    at_most=st.integers(0, 4),
)
def test_partitions_are_the_best_few(gain, at_most):
    gains, weight = np.array(gain), np.array([0.4, 0.1, 0.2, 0.0, 0.3])

    def value(kept: tuple[int, ...]) -> float:
        return float(gains[list(kept)].max(axis=0) @ weight) if kept else 0.0

    chosen = tuple(best_partitions(gains, weight, at_most))
    every = range(len(gain))
    best = max(value(c) for k in range(min(at_most, len(gain)) + 1) for c in combinations(every, k))
    assert len(chosen) <= at_most
    assert value(chosen) >= best - 1e-6


@settings(max_examples=50)
@given(st.lists(st.tuples(st.floats(1.0, 50.0), st.floats(0.0, 1e5)), min_size=1, max_size=12))
def test_frontier_drops_only_what_is_dominated(points):
    tbt, speed = (np.array(column) for column in zip(*points, strict=True))
    kept = set(pareto(tbt, speed).tolist())
    for index in range(len(points)):
        beaten = any(tbt[k] <= tbt[index] and speed[k] >= speed[index] and k != index for k in kept)
        assert index in kept or beaten


def test_regret_is_small(h200_profile):
    """Against the best of all measured modes in each state, weighted by time spent there."""
    bounds, workload = Bounds(500.0, 15.0), Workload("means", 1155.0, 211.0)
    plan_search = make_plan_search(h200_profile, bounds, workload, h200_profile.provenance)
    axes, rule = plan_search.draft.axes, RULES[0]
    modes = [*plan_search.fused, *plan_search.kept(4)]
    every = plan_search.modes
    rows = choose_rows(plan_search.problem, every, axes, plan_search.limit, rule)
    weights = plan_search.visited(plan_search.draft.plan(every, rows, "nexus"))
    states = with_backlog(axes.states(), axes)

    def worth(some: list[Mode]) -> float:
        outcomes, places = plan_search.problem.outcomes(some, states), States.of(states)
        values = rule.worth(plan_search.problem, plan_search.limit, outcomes, places)
        values *= holds(outcomes, places, bounds, rule.guard)
        return float(values.max(axis=0) @ weights)

    assert len(modes) <= len(plan_search.fused) + 4
    assert worth(modes) >= 0.97 * worth(every)


def test_batches_between_measured_ones_are_modes_too(h200_profile) -> None:
    """Up to 1024 tokens, and in whole tiles."""
    sizes = [mode.chunk for mode in fused_modes(h200_profile)]
    measured = {
        min(s.chunk + s.decode_batch, 8192)
        for s in h200_profile.samples
        if s.mode in ("prefill", "fused") and s.prefill_sms == 132 and not s.held_out
    }
    assert measured <= set(sizes)
    assert sizes == sorted(set(sizes))
    between = set(sizes) - measured
    assert {448, 704} <= between
    assert all(size % 64 == 0 and size <= 1024 for size in between)
