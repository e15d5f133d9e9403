"""Plans for MPS: one share, chosen by simulation, honest about what it costs."""

from dataclasses import replace
from pathlib import Path

import pytest

from nexus.core.errors import UserError
from nexus.core.plan import Mode, Shares, Workload, read_plan, write_plan
from nexus.core.slo import Bounds
from nexus.planner.report.page import report
from nexus.planner.report.replay import plan_system, replay
from nexus.planner.report.verdict import describe
from nexus.planner.search.solve import make_plan
from nexus.planner.search.static import StaticPlan, make_static_plan, shares_of
from nexus.planner.workload.requests import lengths_of
from nexus.profiles.schema import Profile

BOUNDS = Bounds(1000, 25)
WORKLOAD = Workload("test", 1200, 200)
WORKLOAD_LENGTHS = lengths_of(WORKLOAD)


@pytest.fixture(scope="module")
def made(h200_profile) -> StaticPlan:
    return make_static_plan(h200_profile, BOUNDS, WORKLOAD, green=h200_profile)


def under_mps(profile: Profile) -> Profile:
    return replace(profile, partitioner="mps")


def test_the_share_is_one_and_measured(made, h200_profile, tmp_path: Path) -> None:
    plan = made.plan
    (mode,) = plan.modes.values()
    assert plan.partitioner == "mps"
    assert plan.shares == shares_of(mode, h200_profile)
    measured = {(s.mode, s.prefill_sms, s.decode_sms) for s in h200_profile.samples}
    assert (mode.mode, mode.prefill_sms, mode.decode_sms or 132) in measured
    write_plan(tmp_path / "plan.yaml", plan)
    assert read_plan(tmp_path / "plan.yaml") == plan


def test_it_says_what_it_costs(made, h200_profile) -> None:
    said, dynamic = made.plan.prediction, made.dynamic.prediction
    assert 0 < said.capacity_per_s <= dynamic.capacity_per_s == said.dynamic_capacity_per_s
    assert said.rate_per_s == dynamic.rate_per_s
    words = describe(made.plan, h200_profile)
    change = said.capacity_per_s / dynamic.capacity_per_s - 1
    assert f"{change:+.0%} against the {dynamic.capacity_per_s:.3g}" in words
    assert "not under MPS" in words
    assert f"{dynamic.ttft_ms:.0f} (p95" in made.comparison()


def test_its_rows_are_what_the_engines_do_at_the_usual_load(made) -> None:
    """Decode is slower beside prefill, prefill beside decode; idle neighbours lend nothing."""
    idle, prefill, decode, both = made.plan.rows
    assert idle.tbt_ms == prefill.tbt_ms == idle.prefill_tokens_per_s == 0
    assert 0 < decode.tbt_ms <= both.tbt_ms
    assert prefill.prefill_tokens_per_s >= both.prefill_tokens_per_s > 0


def test_it_is_simulated_and_drawn_as_two_engines(made, h200_profile) -> None:
    system = plan_system(made.plan)
    assert (system.shares, system.order) == (made.plan.shares, "fcfs")
    (run,) = replay(h200_profile, made.plan, WORKLOAD_LENGTHS, num_requests=200, curve=False)
    assert run.metrics.attainment > 0.9
    assert "mps" in report(made.plan, h200_profile).lower()


def test_a_profile_under_mps_plans_for_mps_alone(h200_profile) -> None:
    profile = under_mps(h200_profile)
    with pytest.raises(UserError, match="--partitioner mps"):
        make_plan(profile, BOUNDS, WORKLOAD)
    made = make_static_plan(profile, BOUNDS, WORKLOAD, green=None)
    assert made.dynamic is None
    assert "no dynamic plan" in made.comparison()
    assert "not under MPS" not in describe(made.plan, profile)


def test_caps_may_overlap(h200_profile) -> None:
    """Such as 84 and 84 SMs, where a profile under MPS has them."""
    samples = tuple(
        replace(s, decode_sms=84) if (s.mode, s.prefill_sms) == ("split", 84) else s
        for s in h200_profile.samples
        if s.mode not in ("split", "overlap") or (s.mode, s.prefill_sms) == ("split", 84)
    )
    profile = under_mps(replace(h200_profile, samples=samples))
    plan = make_static_plan(profile, BOUNDS, WORKLOAD, green=h200_profile).plan
    (mode,) = plan.modes.values()
    assert (mode.prefill_sms, mode.decode_sms) == (84, 84)
    assert plan.shares is not None
    assert (plan.shares.prefill_percent, plan.shares.decode_percent) == (64, 64)


def test_nothing_shared_means_no_share(cpu_profile) -> None:
    with pytest.raises(UserError, match="both phases at once"):
        make_static_plan(cpu_profile, Bounds(60_000, 2000), Workload("t", 100, 10), green=None)


def test_memory_is_shared_out(h200_profile) -> None:
    mode = Mode("split", 1024, 84, 48)
    green, mps = shares_of(mode, h200_profile), shares_of(mode, under_mps(h200_profile))
    assert isinstance(green, Shares)
    assert mps.prefill_kv_tokens + mps.decode_kv_tokens == h200_profile.engine.kv_tokens
    assert green.prefill_kv_tokens >= h200_profile.model.max_model_len
    assert green.decode_kv_tokens < mps.decode_kv_tokens
