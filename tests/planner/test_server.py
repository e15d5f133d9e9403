"""The host that schedules ahead of its device, the prefill lane, and what they cost."""

import itertools
from dataclasses import dataclass, replace

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from nexus.core.machine import Engine
from nexus.core.plan import Mode
from nexus.planner.latency.model import LatencyModel, fit_model
from nexus.planner.latency.serving import Serving
from nexus.planner.latency.steptimes import StepTimes
from nexus.planner.simulator.lane import SimLane
from nexus.planner.simulator.sequence import Sequence
from nexus.planner.simulator.simulate import Run, System, simulate
from nexus.planner.workload.requests import Lengths, Requests

ENGINE = Engine(max_num_batched_tokens=8192, max_num_seqs=64, block_size=16, kv_tokens=800_000)
STOCK = System("stock", Mode(mode="fused", chunk=8192), order="fcfs", stock=True)
SPLIT = System("split", Mode(mode="split", chunk=1024, prefill_sms=84, decode_sms=48))


@pytest.fixture(scope="module")
def model(h200_profile) -> LatencyModel:
    return fit_model(h200_profile)


def served(model: LatencyModel, serving: Serving, system: System, rows: list[list[float]]) -> Run:
    """``rows``: prompt and output tokens, and seconds of arrival."""
    inputs, outputs, arrivals = (np.array(column) for column in zip(*rows, strict=True))
    requests = Requests(arrivals, Lengths("given", inputs.astype(int), outputs.astype(int)))
    times = StepTimes(replace(model, serving=serving))
    return simulate(times, ENGINE, requests, system, record=True)


def step_s(model: LatencyModel, chunk: int, batch: int, kv: float) -> float:
    return StepTimes(model).step_ms(chunk, 0.0, batch, kv) / 1e3


def test_scheduled_ahead_a_request_waits_for_a_step_more(model):
    """It comes during a step; the next one is launched already, so it runs after that."""
    rows = [[100, 50, 0.0], [400, 2, 0.1]]
    at_once, ahead = (served(model, Serving(steps_in_flight=n), STOCK, rows) for n in (0, 1))
    step = np.median(at_once.gaps_s[:10])
    late = (ahead.ttft_ms[1] - at_once.ttft_ms[1]) / 1e3
    assert 0.9 * step < late < 1.1 * step
    assert ahead.ttft_ms[0] == pytest.approx(at_once.ttft_ms[0])


def test_the_front_end_adds_to_ttft_and_not_to_gaps(model):
    rows = [[400, 20, 0.0], [400, 20, 0.5]]
    plain = served(model, Serving(steps_in_flight=1), STOCK, rows)
    slow = Serving(steps_in_flight=1, intake_ms=2.0, reply_ms=1.0, reply_token_ms=0.5)
    run = served(model, slow, STOCK, rows)
    assert run.ttft_ms == pytest.approx(plain.ttft_ms + 3.5)
    assert run.gaps_s == pytest.approx(plain.gaps_s)


def test_a_step_without_graphs_waits_for_its_host(model):
    """A host that takes longer to launch a step than the device to run it decides."""
    rows = [[100.0, 2.0, 0.0]]
    eager = Serving(eager_ms=40.0, graph_tokens=64)
    assert served(model, eager, STOCK, rows).ttft_ms[0] == pytest.approx(40.0)
    graphs = replace(eager, graph_tokens=512)
    assert served(model, graphs, STOCK, rows).ttft_ms[0] < 20.0


def test_a_longer_context_slows_the_batch(model):
    serving = Serving(context_skew_decode_ms=1.0)
    alike = [[1000, 40, 0.0]] * 4
    uneven = [[3000, 40, 0.0], *[[400, 40, 0.0]] * 2, [200, 40, 0.0]]
    gaps = [float(served(model, serving, STOCK, rows).gaps_s[-1]) for rows in (alike, uneven)]
    assert gaps[0] == pytest.approx(step_s(model, 0, 4, 4 * 1039), rel=1e-3)
    assert gaps[1] - gaps[0] == pytest.approx(2e-3, rel=1e-2)


def test_a_pass_that_the_host_launches_slowly_delays_the_tokens_beside_it(model):
    rows = [[64, 200, 0.0]] * 8 + [[4096, 2, 0.3]]
    quick, slow = (
        served(model, Serving(steps_in_flight=1, pass_ms=ms), SPLIT, rows).gaps_s.max()
        for ms in (0.5, 30.0)
    )
    assert quick < 0.02
    assert slow > 0.03


def test_a_foreseen_hand_over_saves_a_step(model):
    rows = [[64, 300, 0.0]] * 8 + [[900, 2, 0.2 + 0.05 * number] for number in range(20)]
    seen, foreseen = (
        served(model, Serving(steps_in_flight=1, prelaunches=yes), SPLIT, rows).ttft_ms[8:]
        for yes in (False, True)
    )
    assert 0.5 < np.mean(seen - foreseen) < 15.0


def test_passes_and_steps_stay_in_their_lanes(model):
    """Passes follow one another, steps too, and both run at the same time."""
    rows = [[64, 200, 0.0]] * 8 + [[3000, 2, 0.1], [2000, 2, 0.11]]
    events = served(model, Serving(steps_in_flight=1, pass_ms=1.0), SPLIT, rows).events
    passes = [event for event in events if event.lane == "prefill"]
    steps = [event for event in events if event.lane != "prefill"]
    for lane in (passes, steps):
        assert all(a.end_s <= b.start_s + 1e-9 for a, b in itertools.pairwise(lane))
    assert sum(event.chunk for event in passes) == 2999 + 1999 + 8 * 63
    assert any(p.start_s < s.start_s < s.end_s < p.end_s for p in passes for s in steps)


def test_a_prompt_that_the_lane_gives_up_comes_back_when_its_pass_is_over(model):
    """As the runtime's queue has it: the pass ends, and nothing more of the prompt is launched."""
    lane = SimLane(StepTimes(model), padded=False)
    begun, fresh = (
        Sequence(index, 0.0, prompt=5000, output=2, remaining=5000, rank=(index,))
        for index in (0, 1)
    )
    lane.add(begun)
    lane.add(fresh)
    assert SPLIT.mode is not None
    made = lane.launch(SPLIT.mode, 0.0, 0.0, 4, 4000.0)
    lane.withdraw(1024)
    assert not lane.waits
    assert lane.given_up() == [fresh]
    assert lane.given_up() == []
    lane.over(made.end_s)
    assert lane.given_up() == [begun]
    assert (begun.computed, begun.remaining, lane.num_prompts) == (1024, 3976, 0)


@dataclass(frozen=True)
class Alternating(System):
    """A split for some decisions, then chunks for as many."""

    def chooser(self, times, longest):
        count = itertools.count()
        modes = [SPLIT.mode, Mode(mode="fused", chunk=256)]
        return lambda *_: (modes[next(count) // 5 % 2], 0.0), None


ALTERNATING = Alternating("alternating")


@settings(max_examples=30, deadline=None)
@given(
    rows=st.lists(
        st.tuples(st.integers(1, 3000), st.integers(1, 40), st.floats(0, 2)),
        min_size=1,
        max_size=25,
    ),
    serving=st.builds(
        Serving,
        steps_in_flight=st.integers(0, 1),
        pass_ms=st.sampled_from([0.0, 10.0]),
        prelaunches=st.booleans(),
        eager_ms=st.sampled_from([0.0, 8.0]),
        result_ms=st.sampled_from([0.0, 0.3]),
    ),
    system=st.sampled_from([STOCK, SPLIT, ALTERNATING]),
)
def test_nobody_is_lost(model, rows, serving, system):
    rows = sorted(rows, key=lambda row: row[2])
    run = served(model, serving, system, [list(row) for row in rows])
    tokens = np.bincount(run.owner.astype(int), minlength=len(rows)) + 1
    assert tokens.tolist() == [row[1] for row in rows]
    assert (run.ttft_ms > 0).all()
