"""Prompts that begin alike: what the imagined prefix cache has of them, and what that changes."""

from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from nexus.core.io.documents import Provenance
from nexus.core.machine import Engine
from nexus.core.plan import Mode, Shares, Workload, percent_for
from nexus.core.slo import Bounds
from nexus.planner.latency.model import LatencyModel, fit_model
from nexus.planner.latency.steptimes import StepTimes
from nexus.planner.report.verdict import describe
from nexus.planner.search.choice import rows_of_one
from nexus.planner.search.solve import make_plan_search
from nexus.planner.simulator.pair import SimPair
from nexus.planner.simulator.prefix_cache import PrefixCache
from nexus.planner.simulator.server import SimServer
from nexus.planner.simulator.simulate import Run, System, sequences_of, simulate, usual_hits
from nexus.planner.workload.prefixes import Prefixes
from nexus.planner.workload.requests import Lengths, Requests, lengths_of, poisson

ENGINE = Engine(max_num_batched_tokens=8192, max_num_seqs=16, block_size=16, kv_tokens=800_000)
CHUNKS = Mode(mode="fused", chunk=256)
FUSED = System("fused", CHUNKS)
PAIR_MODE = Mode(mode="split", chunk=1024, prefill_sms=84, decode_sms=48)
SHARES = Shares(percent_for(84, 132), percent_for(48, 132), 100_000, 700_000)
SYSTEMS = (
    System("stock", Mode(mode="fused", chunk=512), order="fcfs", stock=True),
    replace(FUSED, bounds=Bounds(500, 100)),
    System("split", PAIR_MODE),
    System("pair", PAIR_MODE, shares=SHARES),
)
ROWS = st.lists(
    st.tuples(
        st.integers(1, 3000),  # prompt
        st.integers(1, 60),  # output
        st.floats(0.0, 0.5),  # seconds after the one before
        st.lists(st.integers(0, 6), max_size=8),  # ids of its blocks
    ),
    min_size=1,
    max_size=30,
)
Rows = list[tuple[int, int, float, list[int]]]


@pytest.fixture(scope="module")
def model(h200_profile) -> LatencyModel:
    return fit_model(h200_profile)


def requests_of(rows: Rows, tokens: int = 512) -> Requests:
    inputs, outputs, gaps = (
        np.array(column) for column in zip(*(r[:3] for r in rows), strict=True)
    )
    ids = np.array([each for row in rows for each in row[3]], dtype=np.int64)
    prefixes = Prefixes.of(tokens, ids, np.array([len(row[3]) for row in rows]))
    return Requests(np.cumsum(gaps), Lengths("drawn", inputs, outputs), prefixes)


def same(one: Run, other: Run) -> bool:
    return all(
        np.array_equal(getattr(one, name), getattr(other, name))
        for name in ("first_token_s", "last_token_s", "gaps_s", "owner")
    )


@given(
    rows=ROWS, start=st.integers(0, 30), count=st.integers(1, 30), tokens=st.sampled_from([16, 512])
)
def test_blocks_go_with_their_requests(rows: Rows, start: int, count: int, tokens: int):
    whole = requests_of(rows, tokens)
    assert whole.prefixes is not None
    keys = whole.prefixes.keys(whole.lengths.inputs)
    for (prompt, _, _, ids), own in zip(rows, keys, strict=True):
        sizes = [whole.prefixes.size_of(key) for key in own]
        assert sum(sizes) == min(prompt, tokens * len(ids))
        assert all(size == tokens for size in sizes[:-1])
    part = whole.at_rate(2.0).window(start, count)
    assert part.prefixes is not None
    assert part.prefixes.keys(part.lengths.inputs) == keys[start : start + count]


@settings(max_examples=40)
@given(rows=ROWS, system=st.sampled_from(SYSTEMS), kv_tokens=st.sampled_from([3500, 800_000]))
def test_blocks_that_nobody_shares_change_nothing(model, rows: Rows, system, kv_tokens):
    limits = replace(ENGINE, kv_tokens=kv_tokens)
    counts = [len(row[3]) for row in rows]
    own = Prefixes(512, np.arange(sum(counts)), np.array(counts))
    plain = replace(requests_of(rows), prefixes=None)
    runs = [
        simulate(StepTimes(model), limits, requests, system)
        for requests in (plain, replace(plain, prefixes=own))
    ]
    if not runs[0].preemptions:  # who is preempted finds its own blocks
        assert same(*runs)
        assert runs[1].cached_share == 0.0


@settings(max_examples=60)
@given(rows=ROWS, system=st.sampled_from(SYSTEMS), kv_tokens=st.sampled_from([3500, 6000, 800_000]))
def test_every_token_comes_and_nothing_is_held_at_the_end(model, rows: Rows, system, kv_tokens):
    limits = replace(ENGINE, kv_tokens=kv_tokens)
    requests = requests_of(rows)
    run = simulate(StepTimes(model), limits, requests, system)
    tokens = np.bincount(run.owner.astype(int), minlength=len(rows)) + 1
    assert (tokens == requests.lengths.outputs).all()
    assert (run.ttft_ms > 0).all()
    assert (run.gaps_s > 0).all()
    assert requests.prefixes is not None
    times, cache = StepTimes(model), PrefixCache(requests.prefixes, limits.block_size)
    sequences = sequences_of(requests)
    engine: SimServer | SimPair
    if system.shares is not None:
        engine = SimPair(times, limits, PAIR_MODE, SHARES, cache=cache)
        first = engine._prefill
    else:
        choose, controller = system.chooser(times, 8192)
        engine = first = SimServer(  # type: ignore[assignment]
            times,
            limits,
            choose,
            ranker=system.ranker(),
            controller=controller,
            stock=system.stock,
            cache=cache,
        )
    assert engine.run(sequences)
    assert first._kv_used == pytest.approx(0.0, abs=1e-6)
    assert first._backlog == 0
    assert not any(cache._users.values())
    assert cache._kept_tokens == sum(map(cache._size_of, cache._kept)) <= first.limits.kv_tokens
    assert all(0 <= each.cached < each.prompt + each.output for each in sequences)


def test_a_prompt_that_was_served_is_computed_from_its_last_block_on(model):
    rows: Rows = [(2048, 2, 0.0, [1, 2, 3, 4]), (2048, 2, 5.0, [1, 2, 3, 4])]
    run = simulate(StepTimes(model), ENGINE, requests_of(rows), FUSED)
    assert run.cached_share == pytest.approx(2032 / 4096)
    times = StepTimes(model)
    step_ms = times.step_ms(16, 2032.0, 0, 0.0)
    front_ms = times.serving.intake_ms + times.serving.reply_ms + times.serving.reply_token_ms
    assert run.ttft_ms[1] - front_ms == pytest.approx(step_ms, rel=0.25)
    assert run.ttft_ms[0] > 5 * run.ttft_ms[1]


def test_blocks_of_prompts_that_still_run_are_shared(model):
    """The second has no room beside the first, but for what they share."""
    rows: Rows = [(2048, 200, 0.0, [1, 2, 3, 4]), (2100, 2, 0.1, [1, 2, 3, 4])]
    small = replace(ENGINE, kv_tokens=2500)
    together = simulate(StepTimes(model), small, requests_of(rows), FUSED)
    apart = simulate(StepTimes(model), small, replace(requests_of(rows), prefixes=None), FUSED)
    assert together.first_token_s[1] < together.last_token_s[0]
    assert apart.first_token_s[1] > apart.last_token_s[0]


def test_what_was_used_last_stays_longest(model):
    """Four prompts of 1,024 tokens, and room for three: the first has gone, the third has not."""
    rows: Rows = [(1024, 2, float(n), [2 * n, 2 * n + 1]) for n in range(4)]
    last_two: Rows = [(1024, 2, 4.0, [4, 5]), (1024, 2, 1.0, [0, 1])]
    small = replace(ENGINE, kv_tokens=3300)
    sequences = [
        simulate(StepTimes(model), small, requests_of([*rows, row]), FUSED).cached_share * 5 * 1024
        for row in last_two
    ]
    assert sequences == [pytest.approx(1008), pytest.approx(0)]
    requests = requests_of([*rows, *last_two])
    assert usual_hits(requests, small).tolist() == [0, 0, 0, 0, 1008, 0]


@pytest.mark.parametrize("order", ["deadline", "spf"])
@pytest.mark.parametrize("known", [False, True])
def test_a_cached_prompt_ranks_by_what_is_left(model, order, known):
    """The follow-up has 40 tokens to compute, those behind it 700 each."""
    warm: Rows = [(1536, 2, 0.0, [1, 2, 3])]
    rows: Rows = [*warm, (1576, 2, 5.0, [1, 2, 3]), *[(700, 2, 0.0, [])] * 20]
    requests = requests_of(rows)
    if known:
        hits = np.array([0, 1536, *[0] * 20])
        requests = replace(requests, prefixes=None, lengths=replace(requests.lengths, hits=hits))
    system = replace(FUSED, order=order, bounds=Bounds(2000, 100))
    run = simulate(StepTimes(model), ENGINE, requests, system)
    assert run.first_token_s[1] == run.first_token_s[1:].min()
    fcfs = simulate(StepTimes(model), ENGINE, requests, replace(system, order="fcfs"))
    assert run.ttft_ms[1] <= 1.5 * fcfs.ttft_ms[1]


def test_prompts_that_wait_rank_anew_when_their_prefix_is_there(model):
    """Ten prompts that share 2,000 tokens come at once, and one of 1,000 between: it passes one."""
    rows: Rows = [(4 * 512 + 40, 2, 0.0, [1, 2, 3, 4])] * 10 + [(1000, 2, 0.0, [])]
    system = replace(FUSED, order="spf")
    run = simulate(StepTimes(model), ENGINE, requests_of(rows), system)
    assert run.cached_share == pytest.approx(9 * 2048 / (10 * 2088 + 1000), rel=1e-3)
    requests = requests_of(rows)
    assert requests.prefixes is not None
    late = requests_of([*rows[:-1], (1000, 2, 0.06, [])])  # when the shared tokens are under way
    run = simulate(StepTimes(model), ENGINE, late, system)
    assert run.first_token_s[-1] >= run.first_token_s[1:10].max()


def test_known_hits_leave_less_to_compute_and_contexts_long(model):
    rows: Rows = [(8000, 50, 0.0, [])]
    plain = replace(requests_of(rows), prefixes=None)
    hits = replace(plain, lengths=replace(plain.lengths, hits=np.array([7000])))
    cold, warm = (simulate(StepTimes(model), ENGINE, each, FUSED) for each in (plain, hits))
    assert warm.ttft_ms[0] < cold.ttft_ms[0] / 5
    assert warm.gaps_s == pytest.approx(cold.gaps_s)
    assert warm.cached_share == 7 / 8


def test_random_requests_keep_the_cached_share():
    lengths = Lengths("drawn", np.arange(100, 1100), np.full(1000, 9), np.arange(100, 1100) // 2)
    drawn = poisson(lengths, 200).at_rate(3.0).window(20, 150).lengths
    assert (drawn.cached == drawn.inputs // 2).all()
    means = lengths_of(lengths.summary())
    assert means.cached_mean / means.input_mean == pytest.approx(0.5, rel=0.02)
    assert (means.cached < means.inputs).all()
    cut = lengths.cut_to(300)
    assert (cut.cached < cut.inputs).all()


def test_what_is_left_decides_what_is_sustained(h200_profile):
    """Three quarters cached: more requests, and contexts as long as before."""
    bounds, by = Bounds(1000.0, 25.0), Provenance(created="now", command="c", software={})
    cold = lengths_of(Workload("means", 4000.0, 200.0))
    warm = replace(cold, hits=(0.75 * cold.inputs).astype(np.int64))
    before, after = (make_plan_search(h200_profile, bounds, each, by) for each in (cold, warm))
    assert after.limit.per_s > 1.3 * before.limit.per_s
    assert warm.decode_context == cold.decode_context
    assert warm.prompt_position > 1.2 * cold.prompt_position
    fused = System("fused", Mode(mode="fused", chunk=512))
    rate = 1.2 * before.limit.per_s
    assert after.evaluator.attainment(fused, rate) > 0.9 > before.evaluator.attainment(fused, rate)


def test_a_plan_is_for_the_tokens_that_are_left(exact_cpu_profile):
    """Each prompt but the first begins with the same 256 tokens, of 300."""
    rows: Rows = [(300, 30, 1.0, [*range(16), 16 + n]) for n in range(200)]
    requests, bounds = requests_of(rows, 16), Bounds(2000.0, 250.0)
    by = Provenance(created="now", command="c", software={})
    warm, cold = (
        make_plan_search(exact_cpu_profile, bounds, each, by)
        for each in (requests, replace(requests, prefixes=None))
    )
    rate = 1.1 * cold.evaluate(cold.always(CHUNKS)).per_s
    assert warm.evaluator.sustains(warm.always(CHUNKS), 1.5 * rate)
    plan = warm.draft.plan(
        [CHUNKS], rows_of_one(warm.problem, CHUNKS, warm.draft.axes.states()), "fixed"
    )
    assert plan.workload.cached_tokens == pytest.approx(256 * 199 / 200)
    assert cold.problem.lengths.cached_mean == 0.0
    said = describe(plan, exact_cpu_profile)
    assert "requests of 300 (255 of them cached) + 30 tokens" in said
