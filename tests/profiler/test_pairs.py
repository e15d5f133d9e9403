"""Engines in pairs: which run together, what counts, and real ones on a CPU's cores."""

import os
import signal
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from nexus.core.errors import EngineError, MismatchError
from nexus.core.plan import Workload, percent_for
from nexus.core.slo import Bounds
from nexus.planner.search.static import make_static_plan
from nexus.profiler.nvml import Condition
from nexus.profiler.pairs.loop import STEPS, WARM_UP, Loop
from nexus.profiler.pairs.points import (
    GPU_LOADS,
    EngineSpec,
    Round,
    allowed,
    core_rounds,
    gpu_rounds,
    pair_points,
    solo_points,
)
from nexus.profiler.pairs.wire import Order, Times
from nexus.profiler.points import Limits, Point
from nexus.profiles.schema import read_profile

OPTIONS = (
    "--enforce-eager --dtype float32 --max-model-len 2048 --max-num-seqs 16"
    " --kv-cache-memory-bytes 64M --max-num-batched-tokens 512"
).split()


def starts(rounds: tuple[Round, ...]) -> int:
    """How many engines are started in all: those that go on are not."""
    alive: set[EngineSpec] = set()
    count = 0
    for each in rounds:
        count += len(set(each.specs) - alive)
        alive = set(each.specs)
    return count


def test_an_h200_has_eight_starts_and_the_splits_of_green_contexts() -> None:
    rounds = gpu_rounds(132)
    assert starts(rounds) == 8
    assert max(len(each.specs) for each in rounds) == 3
    pairs = {(p, d) for each in rounds for p in each.prefill for d in each.decode}
    assert {(100, 32), (84, 48), (68, 64), (100, 132), (132, 132)} <= pairs
    # A whole percentage gives each of these after the driver's rounding down to 2 SMs.
    for sms in {sms for pair in pairs for sms in pair}:
        assert percent_for(sms, 132) * 132 // 100 // 2 * 2 == sms


@given(st.integers(40, 400))
def test_every_gpu_has_rounds_of_shares_that_fit(total: int) -> None:
    for each in gpu_rounds(total):
        assert all(0 < spec.sms <= total for spec in each.specs)
        assert len(set(each.specs)) == len(each.specs)
    assert EngineSpec("decode", total) in gpu_rounds(total)[0].specs
    assert EngineSpec("prefill", total) in gpu_rounds(total)[0].specs


@given(st.integers(1, 64))
def test_cores_are_shared_out_once(total: int) -> None:
    last = core_rounds(total)[-1]
    assert total == 1 or last.prefill[0] + last.decode[0] == total


def test_an_engine_has_only_points_that_fit_it() -> None:
    prefill, decode = Limits(8192, 512, 32_800, 32_768), Limits(8192, 512, 450_000, 32_768)
    points = allowed(pair_points(84, 48, 132, GPU_LOADS), prefill, decode)
    assert points == pair_points(84, 48, 132, GPU_LOADS)
    small = allowed(points, prefill, Limits(8192, 512, 200_000, 32_768))
    assert {(point.decode_batch, point.decode_context) for point in small} == {
        (32, 1024),
        (128, 1024),
    }
    whole = {point.mode for point in pair_points(84, 132, 132, GPU_LOADS)}
    assert whole == {"overlap"}
    solo = list(solo_points(EngineSpec("prefill", 84), 132, GPU_LOADS))
    assert {(point.mode, point.prefill_sms) for point in solo} == {("prefill", 84)}


class Script:
    """A clock whose steps take 1 ms, and 100 ms right after sequences began."""

    def __init__(self) -> None:
        self.ends: list[float] = []
        self.begun = 0
        self.slow = 0

    @property
    def steps(self) -> Any:
        return self

    def begin(self, decode_batch: int, decode_context: int, steps: int) -> None:
        self.begun += 1
        self.slow = WARM_UP

    def end(self) -> None:
        pass

    def step(self, chunk: int, context: int) -> None:
        self.slow, ms = max(self.slow - 1, 0), 100.0 if self.slow else 1.0
        self.ends.append((self.ends[-1] if self.ends else 0.0) + ms)

    def settle(self) -> None:
        pass

    def ended(self) -> int:
        return len(self.ends)

    def interval_ms(self, step: int) -> float:
        return self.ends[step] - self.ends[step - 1]

    def condition(self) -> Condition:
        return Condition()

    def forget(self) -> None:
        self.ends.clear()


DECODE = Point("decode", 0, 2, decode_batch=2, decode_context=128)


def test_what_follows_a_beginning_does_not_count() -> None:
    times = Loop(Script()).alone(DECODE)
    assert (times.median, times.p95) == (1.0, 1.0)


def test_a_loop_counts_from_the_mark_and_goes_on_until_told(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr("nexus.profiler.pairs.loop.BESIDE_SECONDS", -1.0)
    clock = Script()
    said: list[Times | None] = []

    def orders() -> Iterator[Order | None]:
        yield from [None] * 3
        yield "mark"
        yield from [None] * (3 * STEPS)
        yield "stop"

    script = orders()
    Loop(clock).beside(DECODE, said.append, lambda: next(script))
    assert said[0] is None
    (times,) = said[1:]
    assert isinstance(times, Times)
    assert (times.median, times.p95) == (1.0, 1.0)
    assert clock.begun == 4  # sequences that have grown to their room begin anew


@pytest.fixture
def run(tiny_model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Any:
    monkeypatch.setenv("VLLM_LOGGING_LEVEL", "ERROR")
    monkeypatch.setenv("OMP_WAIT_POLICY", "passive")  # two engines on the same cores

    def open_one() -> Any:
        from nexus.profiler.pairs.session import open_pair_session

        path = tmp_path / "profile.yaml"
        return open_pair_session(
            str(tiny_model), OPTIONS, path, "nexus profile", "2026-01-01", fresh=False
        )

    return open_one


@pytest.mark.engine
@pytest.mark.skipif(len(os.sched_getaffinity(0)) < 2, reason="a share is a core at least")
def test_two_engines_are_measured_kept_and_planned_from(run: Any, tmp_path: Path) -> None:
    path = tmp_path / "profile.yaml"

    def lose_one(done: int, total: int, sample: Any) -> None:
        if sample.mode == "overlap":
            engine = next(iter(session._crew._alive.values()))
            os.kill(engine._process.pid, signal.SIGKILL)

    with run() as session, pytest.raises(EngineError, match="engine on 2 SMs ended"):
        session.measure(0.01, lose_one)
    kept = read_profile(path).samples
    assert [sample.mode for sample in kept][-1] == "overlap"

    with run() as session:
        session.measure(0.01, lambda *_: None)
        points = session.grid().points
        children = [engine._process for engine in session._crew._alive.values()]
    profile = read_profile(path)
    assert profile.samples[: len(kept)] == kept
    assert profile.partitioner == "mps"
    assert {sample.key for sample in profile.measured} == {point.key for point in points}
    assert {sample.mode for sample in profile.samples} == {
        "prefill", "decode", "fused", "overlap", "split"
    }  # fmt: skip
    assert all(child.exit_code() is not None for child in children)

    plan = make_static_plan(profile, Bounds(5000, 500), Workload("t", 64, 16), green=None).plan
    assert plan.partitioner == "mps"
    green = profile.__class__(**{**vars(profile), "partitioner": "green"})
    from nexus.profiler.session import resumed

    with pytest.raises(MismatchError, match="another partitioner"):
        resumed(profile, green, path)
