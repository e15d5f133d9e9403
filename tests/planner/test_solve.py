"""Plans from a CPU profile: bounds hold, states are covered, infeasible bounds are refused."""

from dataclasses import replace

import numpy as np
import pytest

from nexus.core.errors import DocumentError, InfeasibleError
from nexus.core.machine import Engine
from nexus.core.plan import Plan, Table, Workload, read_plan, write_plan
from nexus.core.slo import Bounds
from nexus.planner.latency.model import check, fit_model
from nexus.planner.report.verdict import describe
from nexus.planner.search.plan_search import PlanSearch
from nexus.planner.search.problem import Problem
from nexus.planner.search.solve import make_plan, make_plan_search
from nexus.planner.simulator.simulate import stock_system
from nexus.planner.workload.requests import Lengths, Requests, lengths_of
from nexus.profiles.schema import Profile, read_profile
from nexus.profiles.shipped import shipped_profiles

WORKLOAD = Workload(source="given means", input_tokens=200.0, output_tokens=60.0)


def test_model_predicts_held_out_samples(cpu_profile):
    held_out = [row for row in check(cpu_profile) if row.held_out]
    assert {row.group for row in held_out} >= {"prefill on 2", "decode on 2", "fused"}
    assert all(row.median_error < 0.08 for row in held_out)


@pytest.fixture(scope="module")
def plan(exact_cpu_profile) -> Plan:
    return make_plan(exact_cpu_profile, Bounds(2000.0, 250.0), WORKLOAD, created="now", command="c")


def test_tbt_holds_in_every_state_that_allows_it(plan, exact_cpu_profile):
    smallest = [min(plan.modes.values(), key=lambda mode: mode.chunk)]
    model, engine = fit_model(exact_cpu_profile), exact_cpu_profile.engine
    problem = Problem(model, engine, plan.bounds, lengths_of(WORKLOAD))
    gentlest = problem.outcomes(smallest, [row.state for row in plan.rows]).tbt_ms[0]
    for row, tbt_ms in zip(plan.rows, gentlest, strict=True):
        assert row.tbt_ms <= 250.0 or tbt_ms > 250.0


def test_a_looser_tbt_takes_larger_chunks(plan, exact_cpu_profile):
    looser = make_plan(exact_cpu_profile, Bounds(2000.0, 1000.0), WORKLOAD)
    tight, loose = (Table(each).row(4, 1000, 10_000) for each in (plan, looser))
    assert int(tight.mode.removeprefix("fused-")) < int(loose.mode.removeprefix("fused-"))


def test_infeasible_bounds_name_the_nearest(exact_cpu_profile):
    with pytest.raises(InfeasibleError, match=r"TBT of 5 ms.*TTFT of 100 ms.*nearest bounds"):
        make_plan(exact_cpu_profile, Bounds(100.0, 5.0), WORKLOAD)


def test_nearest_bounds_are_feasible(exact_cpu_profile):
    with pytest.raises(InfeasibleError) as error:
        make_plan(exact_cpu_profile, Bounds(100.0, 5.0), WORKLOAD)
    words = str(error.value).split()
    ttft, tbt = (float(words[words.index(flag) + 1]) for flag in ("--ttft-ms", "--tbt-ms"))
    assert make_plan(exact_cpu_profile, Bounds(ttft, tbt), WORKLOAD).rows


def test_too_few_samples_is_one_line(exact_cpu_profile):
    from dataclasses import replace

    without = [sample for sample in exact_cpu_profile.samples if sample.mode != "fused"]
    with pytest.raises(DocumentError, match="0 fused samples on all 2 SMs"):
        make_plan(replace(exact_cpu_profile, samples=tuple(without)), Bounds(2000.0, 200.0))


def test_plan_round_trips(plan, tmp_path):
    write_plan(tmp_path / "plan.yaml", plan)
    assert read_plan(tmp_path / "plan.yaml") == plan


def test_verdict_is_one_paragraph(plan, exact_cpu_profile):
    text = describe(plan, exact_cpu_profile)
    assert "\n" not in text
    assert "requests/s" in text
    assert "no partitions" in text or "one mode for all loads" in text


@pytest.mark.parametrize(
    ("engine", "error", "told"),
    [
        (Engine(8192, 512, 16, kv_tokens=1), InfeasibleError, "cannot hold one request"),
        (Engine(1, 512, 16, 10**6), DocumentError, "no fused step within"),
    ],
)
def test_an_engine_too_small_for_any_request_is_said_so(
    engine: Engine, error: type[Exception], told: str
) -> None:
    (path,) = [path for path in shipped_profiles() if path.stem == "qwen2.5-3b"]
    profile = read_profile(path)
    with pytest.raises(error, match=told):
        make_plan(replace(profile, engine=engine), Bounds(1000, 25))


def test_a_trace_is_judged_with_its_own_arrivals(cpu_profile: Profile) -> None:
    rng = np.random.default_rng(3)
    inputs, outputs = rng.integers(20, 200, 1500), rng.integers(5, 20, 1500)
    bursts = np.repeat(np.arange(300.0), 5)
    trace = Requests(bursts, Lengths("bursts", inputs, outputs))

    def plan_search(workload: Lengths | Requests) -> PlanSearch:
        bounds = Bounds(2000.0, 500.0)
        return make_plan_search(cpu_profile, bounds, workload, cpu_profile.provenance)

    own, random = plan_search(trace), plan_search(trace.lengths)
    judged = own.evaluator.requests
    (start,) = [at for at in range(1001) if (inputs[at : at + 500] == judged.lengths.inputs).all()]
    assert judged.arrivals_s.tolist() == bursts[start : start + 500].tolist()
    # They are those that are most like all.
    means = [inputs[at : at + 500].mean() for at in (0, start)]
    assert abs(means[1] - inputs.mean()) <= abs(means[0] - inputs.mean())
    # Of what comes in bursts less is in time.
    shares = [
        one.evaluator.attainment(stock_system(512), 0.2 * one.limit.per_s) for one in (own, random)
    ]
    assert shares[0] < shares[1]
    # Too few tell nothing of their arrivals, and what comes all at once has no rate.
    for other in (trace.window(0, 150), replace(trace, arrivals_s=np.zeros(1500))):
        times = plan_search(other).evaluator.requests.arrivals_s
        assert len(set(times)) == len(times) >= 200
