"""Two stock engines under MPS in virtual time: what is conserved, and what it costs."""

from dataclasses import replace
from itertools import pairwise

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from nexus.core.machine import Engine
from nexus.core.plan import Mode, Shares, percent_for
from nexus.core.slo import Bounds
from nexus.planner.latency.model import LatencyModel, fit_model
from nexus.planner.latency.steptimes import StepTimes
from nexus.planner.simulator.pair import HANDOVER, SimPair
from nexus.planner.simulator.sequence import EarlyStop, Sequence
from nexus.planner.simulator.simulate import System, simulate, simulate_while
from nexus.planner.workload.requests import Lengths, Requests

SPLIT = Mode("split", 1024, 84, 48)
OVERLAP = Mode("overlap", 1024, 100)
LENGTHS = st.lists(
    st.tuples(st.integers(1, 3000), st.integers(1, 60), st.floats(0.0, 0.5)),
    min_size=1,
    max_size=40,
)


@pytest.fixture(scope="module")
def model(h200_profile) -> LatencyModel:
    return fit_model(h200_profile)


def shares(mode: Mode, prefill_kv: int = 100_000, decode_kv: int = 700_000) -> Shares:
    decode_sms = mode.decode_sms or 132
    return Shares(
        percent_for(mode.prefill_sms, 132), percent_for(decode_sms, 132), prefill_kv, decode_kv
    )


def requests_of(*rows: tuple[float, int, int]) -> Requests:
    """Rows of (arrival in s, prompt, output)."""
    arrivals, inputs, outputs = (np.array(column) for column in zip(*rows, strict=True))
    return Requests(arrivals.astype(float), Lengths("drawn", inputs, outputs))


@settings(max_examples=40)
@given(
    rows=LENGTHS,
    mode=st.sampled_from([SPLIT, OVERLAP]),
    prefill_kv=st.sampled_from([3100, 100_000]),
    decode_kv=st.sampled_from([3500, 6000, 700_000]),
)
def test_every_token_comes_out_in_order(model, rows, mode, prefill_kv, decode_kv):
    arrivals = np.cumsum([gap for _, _, gap in rows])
    requests = requests_of(*((at, p, o) for at, (p, o, _) in zip(arrivals, rows, strict=True)))
    system = System("pair", mode, shares=shares(mode, prefill_kv, decode_kv))
    run = simulate(StepTimes(model), Engine(8192, 16, 16, 800_000), requests, system, record=True)
    tokens = np.bincount(run.owner.astype(int), minlength=len(rows)) + 1
    assert (tokens == requests.lengths.outputs).all()
    assert (run.ttft_ms > HANDOVER.router_ms).all()
    assert (run.gaps_s > 0).all()
    assert all(event.decode_batch <= 16 for event in run.events)
    passes = [event for event in run.events if event.lane == "prefill"]
    assert sum(event.chunk for event in passes) == requests.lengths.inputs.sum()
    assert all(a.end_s <= b.start_s for a, b in pairwise(passes))


@pytest.mark.parametrize("mode", [SPLIT, OVERLAP])
def test_nothing_is_held_at_the_end(model, mode):
    """KV caches are empty again, after preemption too."""
    sequences = [Sequence(i, 0.01 * i, 400 + 7 * i, 200, remaining=400 + 7 * i) for i in range(30)]
    limits = Engine(8192, 64, 16, 800_000)
    pair = SimPair(StepTimes(model), limits, mode, shares(mode, 2000, 9000))
    assert pair.run(sequences)
    assert pair.preemptions > 0
    for engine in (pair._prefill, pair._decode):
        assert engine._kv_used == pytest.approx(0.0, abs=1e-6)
        assert engine._in_flight == engine._batch == 0


def test_an_engine_keeps_to_its_sms_when_the_other_is_idle(model):
    """A request alone decodes at the pace of its 48 SMs, not of the device."""
    times, limits = StepTimes(model), Engine(8192, 64, 16, 800_000)
    run = simulate(
        times, limits, requests_of((0, 1000, 50)), System("", SPLIT, shares=shares(SPLIT))
    )
    lane = times.lane(SPLIT)
    alone = [lane.decode_alone(0, 0.0, 1, 1000 + i) for i in range(1, 50)]
    assert 1e3 * run.gaps_s == pytest.approx(alone, rel=0.01)
    prefill = lane.prefill_alone(1000, 0.0, 0, 0.0)
    handover = HANDOVER.router_ms + HANDOVER.copy_ms_per_token * 1000
    serving = times.serving
    front_end = serving.intake_ms + serving.reply_ms + serving.reply_token_ms
    expected = front_end + prefill + handover + alone[0]
    assert run.ttft_ms[0] == pytest.approx(expected, rel=0.01)


def test_a_prompt_that_comes_during_a_pass_waits_for_what_is_scheduled(model):
    """The next pass is settled when one begins: later prompts wait for both."""
    times, limits = StepTimes(model), Engine(8192, 64, 16, 800_000)
    rows = [(0.0, 1500, 1), (0.002, 100, 1), (0.003, 100, 1)]
    run = simulate(
        times, limits, requests_of(*rows), System("", SPLIT, shares=shares(SPLIT)), record=True
    )
    passes = [event for event in run.events if event.lane == "prefill"]
    assert [event.chunk for event in passes] == [1024, 476, 200]


def test_long_prompts_do_not_stop_decode(model):
    """While a prompt of 8192 tokens is computed, gaps stay those of a step beside it."""
    times, limits = StepTimes(model), Engine(8192, 64, 16, 800_000)
    run = simulate(
        times, limits, requests_of((0, 100, 200), (0.3, 8192, 2)), System("", SPLIT, shares=shares(SPLIT))
    )  # fmt: skip
    beside = times.lane(SPLIT).decode(1024, 7000.0, 1, 300)
    assert 1e3 * run.gaps_s[:199].max() < 1.1 * beside


def test_an_early_stop_ends_a_hopeless_run(model):
    times, limits = StepTimes(model), Engine(8192, 64, 16, 800_000)
    requests = requests_of(*((0.001 * i, 3000, 10) for i in range(50)))
    system = System("", SPLIT, shares=shares(SPLIT))
    assert (
        simulate_while(times, limits, requests, system, EarlyStop(Bounds(500.0, 1e9), 0, 5)) is None
    )
    assert (
        simulate_while(times, limits, requests, system, EarlyStop(Bounds(6e4, 1e9), 0, 5))
        is not None
    )


def test_a_full_prefill_engine_waits_for_the_other(model):
    """Its KV is freed only when read, so a full decode engine stops it: first come, first served."""
    times, limits = StepTimes(model), Engine(8192, 2, 16, 800_000)
    requests = requests_of(*((0.0, 1000, 100) for _ in range(8)))
    run = simulate(times, limits, requests, System("", SPLIT, shares=shares(SPLIT, 2100)))
    assert (np.diff(run.ttft_ms) >= 0).all()
    large = replace(limits, max_num_seqs=8)
    faster = simulate(times, large, requests, System("", SPLIT, shares=shares(SPLIT)))
    assert faster.ttft_ms[-1] < run.ttft_ms[-1]
