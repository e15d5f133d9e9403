"""The search: what its races find, what they stop at, and plans for traffic nobody can serve."""

from collections.abc import Iterable
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from nexus.core.slo import GOOD_REQUESTS, Bounds
from nexus.planner.report.verdict import describe
from nexus.planner.search.plan_search import Evaluation, PlanSearch
from nexus.planner.search.solve import make_plan, make_plan_search
from nexus.planner.simulator.sequence import EarlyStop
from nexus.planner.simulator.simulate import (
    System,
    simulate,
    simulate_while,
    stock_named,
    stock_system,
)
from nexus.planner.workload.requests import Lengths, Requests, poisson
from nexus.profiles.schema import Profile


def requests_of(prompt: int, output: int, count: int = 250, seed: int = 0) -> Requests:
    """Geometric lengths of these means, at random times."""
    rng = np.random.default_rng(seed)
    inputs, outputs = rng.geometric(1 / prompt, count), rng.geometric(1 / output, count)
    return poisson(Lengths("test", inputs, outputs), count)


def plan_search_of(profile: Profile, bounds: Bounds, requests: Requests) -> PlanSearch:
    return make_plan_search(profile, bounds, requests, profile.provenance)


@pytest.fixture(scope="module")
def plan_search(h200_profile: Profile) -> PlanSearch:
    return plan_search_of(h200_profile, Bounds(1000.0, 25.0), requests_of(1000, 100))


@settings(max_examples=12, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(chunk=st.sampled_from([128, 512, 2048]), load=st.floats(0.3, 1.5), queue=st.booleans())
def test_an_early_stop_never_ends_a_run_that_is_good_enough(plan_search, chunk, load, queue):
    evaluator, most = plan_search.evaluator, 25
    system = stock_system(chunk, 20_000 if queue else None)
    requests = evaluator.requests.at_rate(load * plan_search.limit.per_s)
    stop = EarlyStop(evaluator.bounds, 0, most)
    run = simulate(evaluator.times, evaluator.limits, requests, system)
    late = int((~run.good(evaluator.bounds)).sum())
    stopped = simulate_while(evaluator.times, evaluator.limits, requests, system, stop) is None
    assert not stopped or late > most


def test_goodput_is_where_enough_are_on_time_and_no_more(plan_search):
    system, evaluator = stock_system(512), plan_search.evaluator
    for guess in (0.1, 5.0, 100.0):
        per_s = evaluator.goodput(system, guess)
        assert evaluator.attainment(system, per_s) >= GOOD_REQUESTS
        assert not evaluator.sustains(system, per_s * (1.001 + evaluator.tolerance))
    assert evaluator.goodput(system, 1.0, at_most=2.0) == 2.0
    hopeless = replace(evaluator, bounds=Bounds(1.0, 1.0))
    assert hopeless.goodput(system, 1.0) == 0.0


def test_a_full_queue_refuses_who_comes(plan_search):
    evaluator = plan_search.evaluator
    rate = 3.0 * plan_search.limit.per_s
    free, bounded = (evaluator.evaluate(stock_system(512, queue), rate) for queue in (None, 5000))
    refused = np.isinf(bounded.ttft_ms)
    assert not np.isinf(free.ttft_ms).any()
    assert 0 < refused.sum() < len(refused)
    assert not bounded.good(evaluator.bounds)[refused].any()
    # At most the queue's tokens, and one more prompt, are before anyone's own.
    assert bounded.ttft_ms[~refused].mean() < free.ttft_ms.mean() / 2
    assert bounded.gaps_s.size == (bounded.outputs[~refused] - 1).sum()


def test_stock_systems_are_told_by_name():
    for system in (stock_system(512), stock_system(128, 40_000)):
        assert stock_named(system.name) == system


def test_stock_is_every_budget_that_a_plan_may_have(plan_search):
    raced = {system.mode.chunk for system in _raced(plan_search) if system.mode}
    assert raced == {mode.chunk for mode in plan_search.fused}


def _raced(plan_search: PlanSearch) -> list[System]:
    seen: list[System] = []

    class Watched(PlanSearch):
        def race(self, systems: Iterable[System], *args: Any, **options: Any) -> list[Evaluation]:
            field = list(systems)
            seen.extend(field)
            return super().race(field, *args, **options)

    watched = Watched(
        plan_search.draft, plan_search.evaluator, plan_search.fused, plan_search.shared
    )
    watched.close_stock()
    return seen


def bursts(size: int, every_s: float, prompt: int) -> Requests:
    count = 240 // size * size
    arrivals_s = np.repeat(np.arange(count // size) * every_s, size)
    lengths = Lengths("bursts", np.full(count, prompt), np.full(count, 5))
    return Requests(arrivals_s, lengths)


def test_bursts_that_nothing_can_meet_get_a_rate_and_a_reason(exact_cpu_profile):
    """Ten prompts of 2 s at once, to be begun within 5 s: at best two or three in time."""
    plan = make_plan(exact_cpu_profile, Bounds(5000.0, 5000.0), bursts(10, 30.0, 500))
    said = plan.prediction
    assert 0.15 < said.attainable_share < 0.35
    assert said.too_long_share == 0.0
    assert said.capacity_per_s > 0
    assert said.capacity_per_s >= 0.99 * said.best_fixed_capacity_per_s
    text = describe(plan, exact_cpu_profile)
    assert f"{1 - said.attainable_share:.0%} of the requests are not on time" in text
    assert "no rate" not in text


def test_prompts_that_are_late_alone_are_said_to_be(exact_cpu_profile):
    inputs = np.where(np.arange(220) % 10 < 7, 200, 2400)  # the long ones take 9 s alone
    requests = poisson(Lengths("two", inputs, np.full(220, 5)), 220)
    plan = make_plan(exact_cpu_profile, Bounds(5000.0, 5000.0), requests)
    said = plan.prediction
    assert said.too_long_share == pytest.approx(0.3, abs=0.02)
    assert said.longest_prompt_tokens == 200
    assert said.attainable_share == pytest.approx(0.7, abs=0.05)
    told = "more than 200 tokens, are late alone on an idle server"
    assert told in describe(plan, exact_cpu_profile)


def test_a_plan_is_not_worse_than_one_mode(exact_cpu_profile):
    """Of single modes as plans, on the same requests; many workloads: evidence/planning.py."""
    said = make_plan(exact_cpu_profile, Bounds(4000.0, 400.0), requests_of(256, 16)).prediction
    assert said.capacity_per_s >= 0.985 * said.best_fixed_capacity_per_s
