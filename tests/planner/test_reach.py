"""What the verdict says of prompts that a fixed bound on TTFT is too short for."""

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from nexus.core.plan import Plan, read_plan
from nexus.core.slo import Bounds
from nexus.planner.report.reach import reach_of_bound
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
