from dataclasses import replace
from pathlib import Path

import pytest

from nexus.benchmarks.agenda import Grid
from nexus.benchmarks.metrics import Objective
from nexus.benchmarks.plans import Plans, kinds_of
from nexus.benchmarks.systems import systems_called
from nexus.core.errors import UserError
from nexus.core.plan import read_plan, write_plan
from nexus.profiles.schema import read_profile

PROFILE = (
    Path(__file__).parents[2] / "evidence" / "results" / "h200" / "vllm-0.26" / "llama-3.1-8b.yaml"
)


def test_each_kind_of_sharing_has_its_plan(tmp_path: Path) -> None:
    profile = read_profile(PROFILE)
    systems = systems_called("vllm-default,nexus-fcfs-fused,nexus-spf-fused,nexus-spf-overlap")
    grid = Grid(systems, ("random:1024:64",), (Objective.parse("1000/25"),))
    kinds = kinds_of(grid)
    assert [sharing for sharing, _, _ in kinds] == ["fused", "overlap"]
    plans = Plans(profile, 4096, kinds, tmp_path)
    fused, overlap = (plans.get(kind) for kind in kinds)
    assert {mode.mode for mode in fused.modes.values()} == {"fused"}
    assert [mode.mode for mode in overlap.modes.values()] == ["overlap"]
    assert {plan.profile_hash for plan in (fused, overlap)} == {profile.hash}
    kept = sorted(path.name for path in tmp_path.iterdir())
    assert kept == ["fused_1000-25_random-1024-64.yaml", "overlap_1000-25_random-1024-64.yaml"]
    path = tmp_path / kept[0]
    marked = replace(fused, provenance=replace(fused.provenance, created="kept"))
    write_plan(path, marked)
    again = Plans(profile, 4096, kinds, tmp_path, "elsewhere/profile.yaml")
    assert [again.get(kind) for kind in kinds] == [marked, overlap]
    # Of the same profile, but for requests that are cut to another length.
    longer = Plans(profile, 8192, kinds[:1], tmp_path).get(kinds[0])
    assert longer.provenance.created != "kept"
    assert "--max-model-len 8192" in read_plan(path).provenance.command


def test_mps_is_one_more_system(tmp_path: Path) -> None:
    (system,) = systems_called("nexus-mps")
    assert system in systems_called("all")
    profile = read_profile(PROFILE)
    kinds = kinds_of(Grid((system,), ("random:1024:64",), (Objective.parse("1000/25"),)))
    plans = Plans(profile, 4096, kinds, tmp_path)
    plan = plans.get(kinds[0])
    assert plan.partitioner == "mps"
    assert [mode.mode for mode in plan.modes.values()] in (["split"], ["overlap"])
    words = system.words("model", ("--option",), tmp_path / "plan.yaml")
    assert words[-2:] == ["--partitioner", "mps"]
    assert "--prefill-order" not in words
    assert Plans(profile, 4096, kinds, tmp_path).get(kinds[0]).hash == plan.hash


def test_a_plan_that_cannot_be_made_fails_when_asked_for() -> None:
    kind = kinds_of(
        Grid(systems_called("nexus-spf-plan"), ("random:512:64",), (Objective.parse("1/0.001"),))
    )
    plans = Plans(read_profile(PROFILE), 4096, kind, None)
    with pytest.raises(UserError):
        plans.get(kind[0])
