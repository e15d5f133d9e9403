"""The evidence about the lane: figures out of records, traces and answers."""

import json
import shlex
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from nexus.core.errors import DocumentError, UserError
from nexus.core.plan import Mode, Plan, read_plan
from nexus.evidence.lane.__main__ import main
from nexus.evidence.lane.activity import Stream, both, busiest, summary
from nexus.evidence.lane.answers import (
    FORCED_TOKENS,
    Answer,
    differences,
    forced,
    mixed_asks,
    trickling,
)
from nexus.evidence.lane.engine import lane_modes_of, with_modes
from nexus.evidence.lane.handover import beside_passes, hand_overs
from nexus.evidence.lane.handover import summary as lane_summary
from nexus.evidence.lane.tracefile import read_trace
from nexus.evidence.lane.window import MOST_BYTES, write_window
from nexus.profiler.kernels import KernelRecord
from nexus.runtime.vllm.trace import FIRST_TOKENS, LEFT_LANE, PASSES, STEPS, ServeTrace

MS = 1_000_000
SHIPPED = Path(__file__).parents[2] / "evidence/results/h200/azure_conv-500-15.plan.yaml"
PREFILL = {Stream(5, 20)}
RECORDS = [
    KernelRecord("nvjet_a", 0, 10 * MS, stream=20, context=5),
    KernelRecord("flash_fwd", 12 * MS, 20 * MS, stream=20, context=5),
    KernelRecord("nvjet_b", 5 * MS, 15 * MS, stream=7, context=1),
    KernelRecord("triton_poi_fused", 5 * MS, 6 * MS, stream=9, context=1),
]


@pytest.fixture(scope="module")
def plan() -> Plan:
    return read_plan(SHIPPED)


def test_records_tell_the_lanes_apart_and_what_they_share() -> None:
    told = summary(RECORDS, PREFILL)
    assert (told["prefill_busy_ms"], told["decode_busy_ms"], told["both_busy_ms"]) == (18, 10, 8)
    assert told["prefill_time_beside_decode"] == pytest.approx(8 / 18, abs=1e-4)
    assert told["decode_time_beside_prefill"] == 0.8
    phases = {(lane["context"], lane["stream"]): lane["phase"] for lane in told["streams"]}
    assert phases == {(5, 20): "prefill", (1, 7): "decode", (1, 9): "decode"}
    assert summary([], PREFILL) == {"kernels": 0}


def test_spans_meet_where_both_are() -> None:
    assert both([(0, 5), (8, 9)], [(3, 8), (8, 20)]) == [(3, 5), (8, 9)]


def test_a_window_s_trace_is_small_and_shows_both_lanes(tmp_path: Path) -> None:
    many = [
        replace(record, start_ns=record.start_ns + n * 30 * MS, end_ns=record.end_ns + n * 30 * MS)
        for n in range(2)
        for record in RECORDS
    ] + [KernelRecord("nvjet", n * 4000, n * 4000 + 100, 7, 1) for n in range(20_000)]
    path = tmp_path / "kernels.json"
    assert write_window(path, many, PREFILL, {(5, 20): "prefill"}) < 50
    assert path.stat().st_size <= MOST_BYTES
    events = json.loads(path.read_text())
    assert {event["tid"] for event in events if event["ph"] == "X"} >= {1, 2}
    assert any(event["ph"] == "M" and event["args"]["name"] == "prefill" for event in events)
    assert busiest(RECORDS, PREFILL, 10 * MS) == 5 * MS


def traced(path: Path, ends: bool) -> Path:
    """Steps of 10 ms; a pass from 5 to 32 ms that ends prompt a, which speaks at 40 ms."""
    trace = ServeTrace(path, begin=True)
    told = {"decodes": 4, "prompt_tokens": 1, "kv_tokens": 100}
    for n in range(5):
        span = (n * 0.010, n * 0.010 + 0.010)
        trace.span(STEPS, "overlap-100", *span, **told, predicted_ms=8.0)
    known = {"ends": ["a"]} if ends else {}
    trace.span(PASSES, "overlap-100", 0.005, 0.032, prompts=1, tokens=500, **known)
    trace.span(
        PASSES, "overlap-100", 0.032, 0.049, prompts=1, tokens=300, **({"ends": []} if ends else {})
    )
    trace.mark(STEPS, LEFT_LANE, 0.031, requests=["a"])
    trace.mark(STEPS, FIRST_TOKENS, 0.0401, requests=["a", "fused"])
    return path


@pytest.mark.parametrize("ends", [True, False])
def test_hand_over_is_from_the_pass_s_end_to_the_first_token(tmp_path: Path, ends: bool) -> None:
    trace = read_trace(traced(tmp_path / "trace.json", ends))  # of a server that still runs
    (over,) = hand_overs(trace)
    assert over.ms == pytest.approx(8.1)
    assert over.noticed == pytest.approx(-1.0)
    assert over.steps == 1
    assert over.last_step == pytest.approx(10.0)
    told = lane_summary(trace, lambda step: step.ms / 2)
    assert told["hand_over"]["in_one_step_and_2_ms"] == 1.0
    assert told["hand_over"]["waits_one_step_and_2_ms"] == 1.0
    assert told["hand_over"]["passes_known"] is ends
    mode = told["steps_beside_passes"]["overlap-100"]
    assert mode["tbt_ms"]["count"] == len(beside_passes(trace)) == 5
    assert mode["over_predicted"]["p50"] == 1.25
    assert mode["mean_over_profile"] == 2.0
    assert trace.between(0, 25).steps == trace.steps[:2]


def test_a_trace_that_is_none_is_refused(tmp_path: Path) -> None:
    with pytest.raises(DocumentError):
        read_trace(tmp_path / "none.json")


def test_the_command_is_told_as_it_was_given(
    tiny_model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    observed = {"churn": {"nothing_lost": True}}
    monkeypatch.setattr("nexus.evidence.lane.served.observe", lambda *_: observed)
    words = ["server", str(tiny_model), "--table", str(SHIPPED), "--requests", "5", "--rate=9"]
    words += ["--force", "--load-rate", "3", "--load-requests", "7", "--hf-overrides", '{"a": 1}']
    for number, output in enumerate((["-o", "{}"], ["-o{}"], ["--output={}"])):
        folder = tmp_path / str(number)
        assert main([*words, *(word.format(folder) for word in output)]) == 0
        told = json.loads((folder / "server.json").read_text())["command"]
        assert shlex.split(told) == ["python", "-m", "nexus.evidence.lane", *words]


def test_the_command_writes_over_nothing_that_it_reads(
    tiny_model: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    trace, table = traced(tmp_path / "trace.json", ends=True), tmp_path / "plan.yaml"
    table.write_bytes(SHIPPED.read_bytes())
    for words in (
        ["trace", str(trace), "-o", str(trace)],
        ["lane", str(tiny_model), "--table", str(table), "-o", str(tmp_path)],
    ):
        assert main(words) == 2
        assert "would overwrite" in capsys.readouterr().err
    assert table.read_bytes() == SHIPPED.read_bytes()
    assert len(read_trace(trace).steps) == 5


def test_a_table_can_be_held_to_one_mode(plan: Plan) -> None:
    lanes = lane_modes_of(plan, "")
    assert [mode.mode for mode in lanes] == ["overlap", "split"]
    held = with_modes(plan, lanes, lanes[1])
    assert {row.mode for row in held.rows if row.prefill_backlog} == {lanes[1].name}
    assert {row.mode for row in held.rows if not row.prefill_backlog} == {"fused-128"}
    named = {row.mode for row in with_modes(plan, lanes).rows if row.decode_batch == 64}
    assert named == {"fused-128", *(mode.name for mode in lanes)}
    own = {row.state: row for row in plan.rows}
    assert all(row.tbt_ms in (0.0, own[row.state].tbt_ms) for row in held.rows)
    (parsed,) = lane_modes_of(plan, "split-84-48")
    assert parsed == Mode("split", 2048, 84, 48)
    for wrong in ("fused-128", "overlap", "split-84"):
        with pytest.raises(UserError, match="no such lane mode"):
            lane_modes_of(plan, wrong)


def answer(*tokens: int, shift: float = 0.0) -> Answer:
    logprobs = tuple({token: -1.0 + shift, token + 50: -1.5} for token in tokens)
    return Answer(tokens, logprobs)


def test_answers_are_compared_up_to_the_first_other_token() -> None:
    theirs = {"plain-0": answer(1, 2, 3), "plain-1": answer(4, 5, 6)}
    ours = {"plain-0": answer(1, 2, 3, shift=0.125), "plain-1": answer(4, 9, 6)}
    told = differences(ours, theirs)
    assert (told["answers"], told["diverged"], told["missing"]) == (2, 1, [])
    assert told["first_token"]["max"] == told["all_steps"]["max"] == 0.125
    assert told["lead_at_divergence"]["max"] == 0.5
    assert told["all_steps"]["count"] == 8
    assert Answer.of_plain(json.loads(json.dumps(ours["plain-0"].plain()))) == ours["plain-0"]


def test_prompts_are_the_same_in_every_process_and_forced_ones_continue_them() -> None:
    asks = mixed_asks(500, 2000, 20)
    assert asks == mixed_asks(500, 2000, 20)
    told: dict[str, Any] = {ask.name: answer(*range(24)) for ask in asks}
    again = forced(asks, told)
    assert all(
        list(b.prompt) == [*a.prompt, *range(FORCED_TOKENS)]
        for a, b in zip(asks, again, strict=True)
    )
    assert sorted(ask.name for ask in trickling(asks)) == sorted(ask.name for ask in asks)
    assert len({ask.at for ask in trickling(asks)}) == len(asks)
