"""What the verdict says of prompts that a fixed bound on TTFT is too short for."""

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from nexus.core.plan import Plan, Workload, read_plan
from nexus.core.slo import Bounds
from nexus.planner.report.reach import reach_of_bound
from nexus.planner.search.predict import _late_alone
from nexus.planner.search.solve import make_plan_search
from nexus.planner.workload.requests import Lengths
from nexus.profiles.schema import Profile, read_profile

ROOT = Path(__file__).parents[2]
LENGTHS = Lengths("drawn", np.array([100, 200, 300, 16_000]), np.full(4, 10))


@pytest.fixture(scope="module")
def profile() -> Profile:
    return read_profile(ROOT / "profiles" / "h200" / "llama-3.1-8b.yaml")


@pytest.fixture(scope="module")
def plan() -> Plan:
    plan = read_plan(ROOT / "evidence/results/h200/azure_conv-500-15.plan.yaml")
    return replace(plan, bounds=Bounds(1000, 25))


def test_a_prompt_that_takes_longer_than_the_bound_alone_is_named(
    plan: Plan, profile: Profile
) -> None:
    (said,) = reach_of_bound(replace(plan, bounds=Bounds(200, 25)), profile, LENGTHS)
    assert said.startswith("25% of these prompts can never meet a bound of 200 ms")
    (said,) = reach_of_bound(plan, profile, LENGTHS)
    assert said.startswith("Every one of these prompts can meet a bound of 1000 ms")


def test_the_slope_that_is_named_is_enough_for_the_longest(plan: Plan, profile: Profile) -> None:
    (said,) = reach_of_bound(replace(plan, bounds=Bounds(200, 25)), profile, LENGTHS)
    slope = float(said.split("--ttft-ms-per-1k-tokens ")[1].split()[0])
    longest_ms = float(said.split("takes ")[1].split()[0])
    sloped = Bounds(200, 25, slope)
    assert sloped.ttft_ms_for(16_000) > 2.5 * longest_ms
    assert reach_of_bound(replace(plan, bounds=sloped), profile, LENGTHS) == []


def test_a_bound_that_grows_with_the_prompt_is_one_that_it_can_meet(exact_cpu_profile) -> None:
    by, work = exact_cpu_profile.provenance, Workload("means", 400.0, 20.0)
    shares = []
    for slope in (0.0, 1e6):
        bounds = Bounds(1800.0, 1e4, slope)
        shares.append(_late_alone(make_plan_search(exact_cpu_profile, bounds, work, by)).mean())
    assert 0.0 < shares[0] < 1.0
    assert shares[1] == 0.0
