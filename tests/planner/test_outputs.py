"""What a plan is turned into: verdict, report, pdmux YAML; and the paper's policy."""

import re
from dataclasses import replace

import pytest
import yaml

from nexus.core.errors import MismatchError, UserError
from nexus.core.io.documents import Provenance
from nexus.core.plan import Mode, Plan, Workload
from nexus.core.slo import Bounds
from nexus.planner.report.export import export_pdmux
from nexus.planner.report.page import report, write_report
from nexus.planner.report.replay import plan_system, replay
from nexus.planner.report.verdict import describe
from nexus.planner.search.solve import make_plan, make_plan_search
from nexus.planner.simulator.simulate import stock_system
from nexus.planner.workload.requests import lengths_of, poisson
from nexus.profiles.schema import KernelSample

WORKLOAD = Workload("means", 1155.0, 211.0)


@pytest.fixture(scope="module")
def plan(h200_profile) -> Plan:
    return make_plan(h200_profile, Bounds(500.0, 15.0), WORKLOAD, created="now", command="test")


@pytest.fixture(scope="module")
def shared(h200_profile) -> Plan:
    """Long prompts and answers, so that decodes are many and long, and sharing pays."""
    return make_plan(h200_profile, Bounds(1000.0, 40.0), Workload("means", 2000.0, 2000.0))


@pytest.fixture(scope="module")
def paper(h200_profile) -> Plan:
    return make_plan(h200_profile, Bounds(500.0, 15.0), WORKLOAD, policy="nexus-paper")


def test_the_plan_is_not_worse_than_what_it_was_played_against(plan):
    said = plan.prediction
    assert said.capacity_per_s >= 0.97 * said.best_fixed_capacity_per_s
    assert said.capacity_per_s > said.baseline_capacity_per_s
    assert said.binding == "TBT"


def test_few_partitions_are_used(h200_profile, plan):
    assert sum(mode.mode != "fused" for mode in plan.modes.values()) <= 4
    none = make_plan(h200_profile, Bounds(500.0, 15.0), WORKLOAD, max_partitions=0)
    if none.policy == "nexus":
        assert all(mode.mode == "fused" for mode in none.modes.values())
    assert none.prediction.capacity_per_s <= plan.prediction.capacity_per_s * 1.02


def test_the_verdict_says_where_sharing_pays(h200_profile, shared):
    text = describe(shared, h200_profile)
    somewhere = r"Sharing \(.*(split|overlap)-\d+.*\) pays in \d+% of the states"
    assert re.search(somewhere + r"|the plan is (split|overlap)-[\d-]+ everywhere", text)
    assert "bound is what limits it" in text


def test_predictions_are_made_at_the_rate_asked_for(h200_profile):
    plan = make_plan(h200_profile, Bounds(1000.0, 25.0), WORKLOAD, rate=5.0)
    assert plan.prediction.rate_per_s == 5.0
    assert "At 5 requests/s expect" in describe(plan, h200_profile)


def test_a_fixed_plan_is_one_mode(h200_profile):
    plan = make_plan(h200_profile, Bounds(1000.0, 25.0), WORKLOAD, policy="fixed")
    assert plan.policy == "fixed"
    assert len(plan.modes) == 1
    assert "one mode for all loads" in describe(plan, h200_profile)


def test_the_papers_policy_only_splits(paper, plan):
    assert {mode.mode for mode in paper.modes.values()} == {"split"}
    assert paper.prediction.capacity_per_s <= plan.prediction.capacity_per_s * 1.01


def test_the_papers_policy_needs_splits(cpu_profile):
    with pytest.raises(UserError, match="split"):
        make_plan(cpu_profile, Bounds(9000.0, 250.0), WORKLOAD, policy="nexus-paper")


def test_pdmux_yaml_is_what_sglang_reads(paper):
    text = export_pdmux(paper)
    said = yaml.safe_load(text)
    assert said["sm_group_num"] == len(said["manual_divisions"]) + 2
    thresholds = [row[2] for row in said["manual_divisions"]]
    assert thresholds[0] == 0
    assert thresholds == sorted(set(thresholds))
    assert all(p + d <= paper.machine.sms for p, d, _ in said["manual_divisions"])
    assert "cannot say" in text


def test_pdmux_needs_a_split(plan):
    fused = Mode("fused", 512)
    rows = tuple(replace(row, mode=fused.name) for row in plan.rows)
    with pytest.raises(UserError, match="no split"):
        export_pdmux(replace(plan, modes={fused.name: fused}, rows=rows))


def test_the_report_stands_alone(h200_profile, plan, tmp_path):
    kernels = tuple(
        KernelSample("prefill", sms, 2048, 0, 0, kind, 32, 10.0 * 132 / sms)
        for sms in (32, 132)
        for kind in ("gemm", "attention")
    )
    profile = replace(h200_profile, kernels=kernels)
    assert plan.engine == h200_profile.engine
    two = replace(plan.engine, tensor_parallel_size=2)
    made = replace(plan, profile_hash=profile.hash, engine=two)
    write_report(tmp_path / "report.html", made, profile)
    page = (tmp_path / "report.html").read_text()
    assert page.count("<section>") == 8
    assert f"<h1>{plan.model.name} on {plan.machine.name}, tensor parallel size 2</h1>" in page
    assert "Where a step" in page
    assert not re.search(r"<(script|link|img)[^>]+(src|href)=", page)
    assert page.count("Plotly.newPlot(") >= 6


def test_a_report_of_another_profile_is_refused(plan, cpu_profile):
    with pytest.raises(MismatchError):
        report(plan, cpu_profile)


def test_replay_plays_plan_and_stock_on_the_same_requests(h200_profile, plan):
    requests = poisson(lengths_of(WORKLOAD), 300)
    ours, stock = replay(
        h200_profile, plan, requests, 14.0, systems=(plan_system(plan), stock_system(8192))
    )
    assert ours.metrics.tbt_ms.p99 * 3 < stock.metrics.tbt_ms.p99
    assert ours.metrics.attainment > stock.metrics.attainment
    assert len(ours.curve) == len(stock.curve)
    assert any("TTFT" in line for line in ours.lines())


def test_stock_vllm_runs_no_more_sequences_than_its_budget_holds(exact_cpu_profile):
    """As vLLM, which refuses such a budget."""
    by = Provenance(created="now", command="c", software={})
    work, bounds = Workload("means", 8.0, 200.0), Bounds(2000.0, 250.0)
    plan_search = make_plan_search(exact_cpu_profile, bounds, work, by)
    evaluator = replace(plan_search.evaluator, requests=poisson(lengths_of(work), 80))
    assert stock_system(16).max_num_seqs == 16
    few = replace(stock_system(256), max_num_seqs=4)
    for system, most in ((few, 4), (stock_system(256), exact_cpu_profile.engine.max_num_seqs)):
        run = evaluator.evaluate(system, 50.0, record=True)
        assert max(event.decode_batch for event in run.events) == most
    stock = plan_search.best_stock().system
    assert stock.mode is not None
    assert stock == stock_system(stock.mode.chunk, stock.max_queued_tokens)


def test_replay_refuses_another_profile(cpu_profile, plan):
    with pytest.raises(MismatchError):
        replay(cpu_profile, plan, poisson(lengths_of(WORKLOAD), 10))
