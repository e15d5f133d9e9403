"""The evidence about the lane, gathered from real engines."""

import json
from dataclasses import replace
from pathlib import Path

import pytest

from nexus.core.plan import Mode, read_plan
from nexus.evidence.lane.gather import Results, lane_evidence, read_answers, stock_answers
from nexus.evidence.lane.window import Load
from nexus.runtime.machine import this_machine

PLAN = Path(__file__).parents[2] / "evidence/results/h200/azure_conv-500-15.plan.yaml"
OPTIONS = (
    *("--no-enable-prefix-caching", "--enforce-eager", "--dtype", "float32"),
    *("--max-model-len", "1024", "--max-num-seqs", "16", "--max-num-batched-tokens", "1024"),
    *("--kv-cache-memory-bytes", "64M"),
)

pytestmark = pytest.mark.engine


def test_on_a_cpu_the_lane_answers_as_stock_vllm(tiny_model: Path, tmp_path: Path) -> None:
    made = read_plan(PLAN)
    fused, lane = Mode("fused", 64), Mode("overlap", 256, prefill_sms=1)
    rows = tuple(replace(row, mode=fused.name) for row in made.rows)
    plan = replace(made, machine=this_machine(), modes={fused.name: fused}, rows=rows)
    answers = tmp_path / "stock.json"
    stock_answers(str(tiny_model), OPTIONS, plan, answers, 6)
    assert len(read_answers(answers)["trickling"]) == 12
    results = Results(tmp_path / "out", "engine.json", {})
    load = Load()
    lane_evidence(str(tiny_model), OPTIONS, plan, [lane], answers, results, 6, load, force=True)
    told = json.loads(results.path.read_text())
    assert told["failed"] == {}
    assert told["kv_blocks_all_free"] is True
    mode = told["answers"][lane.name]
    assert mode["modes_of_passes"] == [lane.name]
    assert 0 < mode["tokens_on_the_lane"] < mode["prompt_tokens"]
    for run in ("at_once", "trickling"):
        for kind in ("plain", "forced"):
            found = mode[f"and_stock_{run}"][kind]
            assert found["answers"] == 6
            assert found["diverged"] == 0
            assert found["all_steps"]["max"] < 1e-3
