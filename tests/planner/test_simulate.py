"""Virtual time: the engine's rules, what is conserved, and the array model beside the scalar one."""

import json

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from nexus.core.arrays import Floats
from nexus.core.machine import Engine
from nexus.core.plan import Mode
from nexus.core.prefill.ranking import ORDERS
from nexus.core.slo import Bounds
from nexus.planner.latency.frontier import mode_times, shared_modes
from nexus.planner.latency.model import LatencyModel, fit_model
from nexus.planner.latency.shape import Shape
from nexus.planner.latency.steptimes import StepTimes
from nexus.planner.report.chrome import chrome_trace
from nexus.planner.simulator.idle import IdleServer
from nexus.planner.simulator.metrics import Metrics, Waits
from nexus.planner.simulator.simulate import Run, System, simulate, stock_system
from nexus.planner.workload.requests import Lengths, Requests, poisson

LENGTHS = st.lists(
    st.tuples(st.integers(1, 3000), st.integers(1, 60), st.floats(0.0, 0.5)),
    min_size=1,
    max_size=40,
)
MODES = st.sampled_from(
    [
        System("stock", Mode(mode="fused", chunk=512), order="fcfs", stock=True),
        System("fused", Mode(mode="fused", chunk=256)),
        System("split", Mode(mode="split", chunk=1024, prefill_sms=84, decode_sms=48)),
        System("overlap", Mode(mode="overlap", chunk=1024, prefill_sms=100), order="fcfs"),
    ]
)


@pytest.fixture(scope="module")
def model(h200_profile) -> LatencyModel:
    return fit_model(h200_profile)


def requests_of(rows: list[tuple[int, int, float]]) -> Requests:
    inputs, outputs, gaps = (np.array(column) for column in zip(*rows, strict=True))
    return Requests(np.cumsum(gaps), Lengths("drawn", inputs, outputs))


def tokens_of(run: Run) -> Floats:
    counts = np.bincount(run.owner.astype(int), minlength=len(run.arrivals_s))
    return counts.astype(np.float64) + 1.0


@settings(max_examples=40)
@given(rows=LENGTHS, system=MODES, kv_tokens=st.sampled_from([3500, 6000, 800_000]))
def test_every_token_comes_out_in_order(model, h200_profile, rows, system, kv_tokens):
    limits = Engine(8192, 16, 16, kv_tokens)
    requests = requests_of(rows)
    run = simulate(StepTimes(model), limits, requests, system, record=True)
    assert (tokens_of(run) == requests.lengths.outputs).all()
    assert (run.ttft_ms > 0).all()
    assert (run.gaps_s > 0).all()
    assert (run.last_token_s >= run.first_token_s).all()
    assert all(event.decode_batch <= limits.max_num_seqs for event in run.events)
    # Without a record, decode steps that are alike are not simulated one by one.
    quick = simulate(StepTimes(model), limits, requests, system)
    assert quick.preemptions == run.preemptions
    assert quick.gaps_s == pytest.approx(run.gaps_s, rel=1e-9)
    assert quick.first_token_s == pytest.approx(run.first_token_s, rel=1e-9)


@settings(max_examples=60)
@given(
    chunk=st.integers(1, 9000),
    context=st.floats(-2000.0, 9000.0),
    batch=st.integers(1, 300),
    each=st.floats(1.0, 9000.0),
    which=st.integers(0, 7),
)
def test_scalar_times_are_the_models(model, h200_profile, chunk, context, batch, each, which):
    times = StepTimes(model)
    shape = Shape.of(chunk, context, batch, each)
    alike = np.zeros(())
    fused, _, _ = mode_times(model, Mode(mode="fused", chunk=512), shape, alike)
    inside = min(chunk, times.max_chunk)
    under_load = model.serving.sustained * times.step_ms(chunk, context, batch, batch * each)
    assert under_load == pytest.approx(float(fused))
    mode = shared_modes(h200_profile, model, 64.0)[which]
    prefill, decode, _ = mode_times(model, mode, shape, alike)
    lane = times.lane(mode)
    assert inside > 0
    # Nothing has been asked of these timers before, so that no evaluation is shared.
    together = lane.prefill(chunk, context, batch, batch * each)
    begin_ms = model.serving.begin_ms
    assert begin_ms + together == pytest.approx(float(prefill), rel=1e-9)
    together = lane.decode(chunk, context, batch, batch * each)
    assert together == pytest.approx(float(decode), rel=1e-9)


def test_alone_a_request_takes_its_steps(cpu_profile):
    """On a CPU nothing but the steps counts."""
    times = StepTimes(fit_model(cpu_profile))
    requests = requests_of([(1000, 3, 0.0)])
    fused = System("fused", Mode(mode="fused", chunk=512))
    run = simulate(times, cpu_profile.engine, requests, fused)
    first = times.step_ms(512, 0.0, 0, 0.0) + times.step_ms(488, 512.0, 0, 0.0)
    assert run.ttft_ms[0] == pytest.approx(first)
    expected = [times.step_ms(0, 0.0, 1, 1000.0), times.step_ms(0, 0.0, 1, 1001.0)]
    assert 1e3 * run.gaps_s == pytest.approx(expected)


def test_a_full_cache_puts_the_last_one_back(model):
    limits = Engine(8192, 16, 16, 2200)
    fused = System("fused", Mode(mode="fused", chunk=2048))
    run = simulate(StepTimes(model), limits, requests_of([(1000, 400, 0.0)] * 2), fused)
    assert run.preemptions > 0
    assert run.last_token_s[0] < run.last_token_s[1]


def test_shortest_first_passes_a_long_prompt(model, h200_profile):
    rows = [(16_000, 2, 0.0)] + [(100, 2, 0.001)] * 20
    ttft = {
        order: simulate(
            StepTimes(model),
            h200_profile.engine,
            requests_of(rows),
            System("fused", Mode(mode="fused", chunk=512), order=order),
        ).ttft_ms
        for order in ORDERS
    }
    for order in ("spf", "deadline"):
        assert ttft[order][1:].mean() * 3 < ttft["fcfs"][1:].mean()


def test_decode_goes_on_beside_the_lane(model, h200_profile):
    """A long prompt in a split leaves decode's gaps as short as the co-run sample has them."""
    rows = [(200, 200, 0.0)] * 8 + [(8000, 2, 0.5)]
    split = System("split", Mode(mode="split", chunk=2048, prefill_sms=68, decode_sms=64))
    stock = System("stock", Mode(mode="fused", chunk=8192), order="fcfs", stock=True)
    worst = {
        system.name: simulate(StepTimes(model), h200_profile.engine, requests_of(rows), system)
        .gaps_s[: 8 * 199]
        .max()
        for system in (split, stock)
    }
    assert worst["split"] * 5 < worst["stock"]


def test_attainment_falls_with_the_rate_and_metrics_add_up(model, h200_profile):
    lengths = Lengths("drawn", np.full(50, 800), np.full(50, 50))
    requests = poisson(lengths, 300)
    bounds = Bounds(500.0, 25.0)
    fused = System("fused", Mode(mode="fused", chunk=512))
    shares = []
    for rate in (5.0, 30.0, 80.0):
        run = simulate(StepTimes(model), h200_profile.engine, requests.at_rate(rate), fused)
        shares.append(Metrics.of(run, rate, bounds).attainment)
    assert shares[0] > 0.99
    assert shares == sorted(shares, reverse=True)
    assert shares[-1] < 0.5


def test_slowdown_is_one_on_an_idle_server_and_grows_with_the_load(model, h200_profile):
    times, engine = StepTimes(model), h200_profile.engine
    idle = IdleServer.of(times, engine, 4000)
    assert (np.diff(idle.ttft_ms) >= 0).all()
    assert idle.ms_per_1k_tokens() > 0
    lengths = Lengths("drawn", np.array([100, 4000] * 50), np.full(100, 10))
    requests = poisson(lengths, 100)
    stock = stock_system(min(engine.max_num_batched_tokens, times.max_chunk))
    calm, busy = (
        Waits.of(simulate(times, engine, requests.at_rate(rate), stock), idle)
        for rate in (0.001, 100.0)
    )
    assert calm.slowdown.mean == pytest.approx(1.0, rel=0.2)
    assert busy.slowdown.p99 > 2
    assert busy.ttft_longest_ms.p50 >= calm.ttft_longest_ms.p50


def test_a_bound_with_a_slope_lets_longer_prompts_take_longer(model, h200_profile):
    lengths = Lengths("drawn", np.array([100, 8000]), np.full(2, 1))
    run = simulate(
        StepTimes(model),
        h200_profile.engine,
        Requests(np.array([0.0, 100.0]), lengths),
        stock_system(512),
    )
    fixed_ms = float(run.ttft_ms[0]) + 1.0
    assert run.good(Bounds(fixed_ms, 25.0)).tolist() == [True, False]
    assert run.good(Bounds(fixed_ms, 25.0, float(run.ttft_ms[1]))).all()


def test_chrome_trace_has_both_lanes(model, h200_profile):
    overlap = System("overlap", Mode(mode="overlap", chunk=1024, prefill_sms=100))
    rows = [(500, 20, 0.0), (4000, 5, 0.05)]
    run = simulate(StepTimes(model), h200_profile.engine, requests_of(rows), overlap, record=True)
    events = json.loads(chrome_trace(run, "test"))["traceEvents"]
    assert {event["tid"] for event in events if event["ph"] == "X"} == {1, 2}
    assert all(event["dur"] > 0 for event in events if event["ph"] == "X")
