"""Serving with real partitions: the answers of stock vLLM, on the SMs promised, nothing left.

Eight layers of a real shape: kernels are those of serving, a step takes longer than the host
needs to start a pass beside it, and an engine starts soon.
"""

from collections.abc import Iterator
from dataclasses import replace
from functools import cache
from itertools import count
from pathlib import Path
from typing import Any

import pytest

from nexus.core.plan import Mode, Plan, read_plan
from nexus.evidence.lane import confinement
from nexus.evidence.lane.answers import (
    Answers,
    ask_all,
    at_once,
    differences,
    mixed_asks,
    trickling,
)
from nexus.evidence.lane.engine import (
    Ask,
    context_for,
    drain,
    follow,
    idle,
    open_engine,
    steps,
    with_modes,
    write,
)
from nexus.evidence.lane.tracefile import read_trace
from nexus.evidence.lane.window import Load, evidence, recording, watched
from nexus.runtime.machine import this_machine
from nexus.runtime.partition.green import GreenContexts
from nexus.runtime.vllm.graphs import mixed

pytestmark = [
    pytest.mark.engine,
    pytest.mark.gpu,
    pytest.mark.filterwarnings("ignore"),  # of libraries that a GPU's vLLM alone imports
]

ROOT = Path(__file__).parents[4]
SHAPE = ROOT / "benchmarks/shapes/llama-3.1-8b"
PLAN = ROOT / "evidence/results/h200/azure_conv-500-15.plan.yaml"
VOCABULARY = 128_256
OPTIONS = (
    *("--load-format", "dummy", "--skip-tokenizer-init", "--no-enable-prefix-caching"),
    *("--hf-overrides", '{"num_hidden_layers": 8}', "--max-model-len", "4096"),
    *("--max-num-seqs", "32", "--max-num-batched-tokens", "2048"),
    *("--kv-cache-memory-bytes", "4G", "--gpu-memory-utilization", "0.5"),
    *("--compilation-config", '{"cudagraph_capture_sizes": [1, 2, 4, 8, 16, 32, 128]}'),
)
TIMES_STOCK = 3.0
"""What the lane may differ from stock vLLM, in differences of two runs of stock vLLM."""
SLACK = 0.02


@cache
def modes() -> list[Mode]:
    contexts = GreenContexts()
    overlap = max(sms for sms in contexts.sizes() if sms < contexts.total_sms - 20)
    prefill, decode = max(pair for pair in contexts.pairs() if pair[1] >= 48)
    return [
        Mode("overlap", 512, prefill_sms=overlap),
        Mode("split", 512, prefill_sms=prefill, decode_sms=decode),
    ]


@pytest.fixture(scope="module")
def plan() -> Plan:
    """For the machine at hand, fused everywhere."""
    made = read_plan(PLAN)
    fused = Mode("fused", 128)
    rows = tuple(replace(row, mode=fused.name) for row in made.rows)
    return replace(made, machine=this_machine(), modes={fused.name: fused}, rows=rows)


@pytest.fixture(scope="module")
def asks() -> list[Ask]:
    return mixed_asks(VOCABULARY, 3000, 16)


@pytest.fixture(scope="module")
def stock(asks: list[Ask]) -> tuple[Answers, Answers]:
    with open_engine(str(SHAPE), OPTIONS, None) as engine:
        found = ask_all(engine, at_once(asks)), ask_all(engine, trickling(asks))
        assert idle(engine)
    _clean_up()
    return found


@pytest.fixture(scope="module")
def engine(
    stock: tuple[Answers, Answers], plan: Plan, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[Any]:
    """With both modes' partitions; ``follow`` says which are used."""
    folder = tmp_path_factory.mktemp("lane")
    table = write(with_modes(plan, modes()), folder / "plan.yaml")
    context = context_for(table, folder / "trace.json")
    with open_engine(str(SHAPE), OPTIONS, context, force=True) as running:
        yield running
    trace = read_trace(folder / "trace.json")
    assert {each.mode for each in trace.passes} == {mode.name for mode in modes()}
    assert all(each.end > each.start for each in trace.passes)
    assert trace.first
    _clean_up()


def _clean_up() -> None:
    import gc

    from vllm.distributed import cleanup_dist_env_and_memory

    cleanup_dist_env_and_memory()
    gc.collect()


def changing(plan: Plan) -> Plan:
    """Neighbouring states in different modes, fused among them."""
    held = with_modes(plan, modes())
    names = list(held.modes)
    rows = tuple(replace(row, mode=names[n % len(names)]) for n, row in enumerate(held.rows))
    return replace(held, rows=rows)


@pytest.mark.parametrize("way", ["fused", "fused in one call", "overlap", "split", "changing"])
def test_answers_are_as_near_to_stock_vllm_s_as_those_are_to_each_other(
    engine: Any,
    plan: Plan,
    asks: list[Ask],
    stock: tuple[Answers, Answers],
    way: str,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    named: dict[str, Plan] = {m.mode: with_modes(plan, modes(), m) for m in modes()}
    named |= {"fused": plan, "fused in one call": plan}
    if way == "fused in one call":
        monkeypatch.setattr(mixed, "LONG_CONTEXT", -1)
    follow(engine, named.get(way) or changing(plan))
    found = ask_all(engine, trickling(asks))
    assert idle(engine)
    yardstick = differences(*stock)
    for theirs in stock:
        told = differences(found, theirs)
        assert not told["missing"]
        for figure in ("first_token", "all_steps"):
            allowed = TIMES_STOCK * yardstick[figure]["max"] + SLACK
            assert told[figure]["max"] <= allowed, (figure, told, yardstick)


@pytest.mark.parametrize(("way", "long"), [("per phase", 4096), ("joint", -1)])
def test_steps_with_prompts_are_whole_graphs(
    engine: Any,
    plan: Plan,
    asks: list[Ask],
    way: str,
    long: int,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(mixed, "LONG_CONTEXT", long)
    (manager,) = engine.collective_rpc(lambda worker: worker.model_runner.cudagraph_manager)
    graphs = manager._managers[way]
    replay, sizes = graphs.run_fullgraph, []

    def noted(found: Any) -> Any:
        sizes.append(found.num_tokens)
        return replay(found)

    monkeypatch.setattr(graphs, "run_fullgraph", noted)
    follow(engine, plan)
    ask_all(engine, trickling(asks))
    assert set(sizes) <= {32, 64, 96, 128}
    assert len(sizes) > sum(len(ask.prompt) for ask in asks) / 128


def test_aborts_in_the_middle_leave_nothing(engine: Any, plan: Plan) -> None:
    follow(engine, with_modes(plan, modes()))
    asks = trickling(mixed_asks(VOCABULARY, 3000, 40))
    ticks = count()
    for tick, _ in enumerate(steps(engine, asks, lambda: float(next(ticks)))):
        if tick % 5 == 0:
            engine.abort_request([asks[tick // 5 % len(asks)].name])
    drain(engine, [ask.name for ask in asks])
    assert idle(engine)


def test_each_lane_has_the_sms_that_its_mode_says(engine: Any) -> None:
    (lanes,) = engine.collective_rpc(confinement.lanes_of)
    (stream,) = engine.collective_rpc(lambda worker: worker.model_runner.main_stream)
    for name, told in confinement.smids(lanes, stream).items():
        assert told["problems"] == [], name
        assert told["in_graph"] == told["on_stream"] == told["promised"], name
        assert told["graph_keeps_sms"] == {"prefill": True, "decode": True}, name


def test_the_lanes_run_at_once(engine: Any, plan: Plan, tmp_path: Path) -> None:
    pytest.importorskip("cupti")
    from nexus.evidence.lane.activity import ActivityRecorder

    (lanes,) = engine.collective_rpc(confinement.lanes_of)
    recorder = ActivityRecorder()
    numbers = confinement.numbers_of(recorder, lanes)
    load = Load(decodes=16, per_s=40.0, shortest=1000, longest=2500, warm_s=0.5, seconds=0.5)
    for mode in modes():
        follow(engine, with_modes(plan, modes(), mode))
        watch = recording(recorder, lanes)
        records, _ = watched(engine, load, VOCABULARY, 0, watch)
        told = evidence(records, recorder, numbers, tmp_path / f"{mode.name}.json")
        assert told["both_busy_ms"] > 0, told
        prefill = [lane for lane in told["streams"] if lane["phase"] == "prefill"]
        assert {lane["context_sms"] for lane in prefill} <= {mode.prefill_sms, None}
        driver = numbers[mode.name]["prefill"]["driver_sms"]
        assert driver == mode.prefill_sms
        assert idle(engine)
