"""Which points are measured: within the limits, once each, the needed ones first."""

from typing import get_args

import pytest
from hypothesis import given
from hypothesis import strategies as st

from nexus.profiler.points import (
    BATCHES,
    Limits,
    Point,
    core_counts,
    core_points,
    gpu_points,
    kernel_points,
    stock_points,
)
from nexus.profiles.schema import Sample, SampleMode

limits = st.builds(
    Limits,
    tokens=st.sampled_from([512, 2048, 8192]),
    sequences=st.sampled_from([4, 64, 256]),
    kv_tokens=st.sampled_from([2_000, 50_000, 1_000_000]),
    context=st.sampled_from([256, 2048, 8192]),
)


@given(st.integers(1, 64), limits)
def test_every_point_is_possible_and_asked_once(cores: int, limit: Limits) -> None:
    points = core_points(cores, limit, max_chunk=512, max_batch=32).points
    assert all(limit.allow(point) for point in points)
    assert len({point.key for point in points}) == len(points)
    assert {point.mode for point in points} <= {"prefill", "decode", "fused"}


@given(st.integers(1, 64))
def test_core_counts_end_with_all(cores: int) -> None:
    counts = core_counts(cores)
    assert counts == sorted(set(counts))
    assert counts[-1] == cores
    assert counts[0] >= 1


def test_the_coarse_grid_comes_first_and_is_never_held_out() -> None:
    limit = Limits(tokens=2048, sequences=128, kv_tokens=1_000_000, context=4096)
    grid = core_points(2, limit, max_chunk=512, max_batch=32)
    assert not any(point.held_out for point in grid.coarse)
    assert {point.mode for point in grid.coarse} == {"prefill", "decode", "fused"}
    held_out = sum(point.held_out for point in grid.finer)
    assert 0 < held_out < len(grid.points) / 4


SIZES = [*range(8, 132, 8), 132]
PAIRS = [(size, 132 - size) for size in SIZES[:-1]]

gpu_limits = st.builds(
    Limits,
    tokens=st.sampled_from([512, 2048, 8192, 16_384]),
    sequences=st.sampled_from([1, 16, 64, 256, 512, 1024]),
    kv_tokens=st.integers(40_000, 5_000_000),
    context=st.sampled_from([4096, 8192, 20_000, 32_768, 131_072, 1_000_000]),
)


def _alone(points: tuple[Point, ...], mode: str) -> list[Point]:
    return [p for p in points if p.mode == mode and 132 in (p.prefill_sms, p.decode_sms)]


@given(gpu_limits, st.sampled_from([[132], [64, 132], SIZES]))
def test_every_point_of_a_gpu_grid_is_possible_and_asked_once(
    limit: Limits, sizes: list[int]
) -> None:
    pairs = [(prefill, 132 - prefill) for prefill in sizes[:-1]]
    points = gpu_points(sizes, pairs, limit).points
    assert len({point.key for point in points}) == len(points)
    for point in points:
        assert limit.allow(point)
        point.sample(
            prefill_ms=1.0 if point.chunk else None, decode_ms=1.0 if point.decode_batch else None
        )
        if point.mode == "split":
            assert (point.prefill_sms, point.decode_sms) in pairs
        if point.mode == "fused" and not point.held_out:
            assert (point.chunk + point.decode_batch) % 32 == 0


@given(gpu_limits)
def test_the_coarse_grid_reaches_the_engine_s_limits(limit: Limits) -> None:
    coarse = gpu_points(SIZES, PAIRS, limit).coarse
    decodes, prompts = _alone(coarse, "decode"), _alone(coarse, "prefill")
    assert {point.decode_batch for point in decodes} >= {
        batch for batch in BATCHES if batch <= limit.sequences and batch * 1024 < limit.kv_tokens
    }
    longest = min(limit.context, limit.kv_tokens) - 2048
    assert max(p.prefill_context + p.chunk for p in prompts) >= longest
    assert max(p.decode_context for p in decodes) >= longest
    assert max(p.chunk for p in prompts) >= min(8192, limit.tokens, limit.context // 2)
    batch = max(batch for batch in BATCHES if batch <= limit.sequences)
    most = min(limit.kv_tokens, batch * limit.context)
    assert max(p.decode_batch * (p.decode_context + 700) for p in decodes) >= 0.9 * most


@given(gpu_limits)
def test_the_coarse_grid_holds_out_some_of_each_curve_that_has_others(limit: Limits) -> None:
    coarse = gpu_points(SIZES, PAIRS, limit).coarse
    fitted = {point.key[:3] for point in coarse if not point.held_out}
    held_out = [point for point in coarse if point.held_out]
    assert {point.key[:3] for point in held_out} <= fitted
    for mode in get_args(SampleMode):
        several = limit.tokens >= 2048 and limit.sequences > 128 and limit.kv_tokens > 400_000
        if several and limit.context > 8192:
            assert sum(point.mode == mode for point in held_out) >= 6


H200_8B = Limits(tokens=8192, sequences=512, kv_tokens=782_384, context=32_768)
H200_14B = Limits(tokens=8192, sequences=512, kv_tokens=450_208, context=32_768)


@pytest.mark.parametrize("limit", [H200_8B, H200_14B], ids=["8B", "14B"])
def test_a_gpu_s_coarse_grid_has_every_mode_each_phase_s_curve_and_long_contexts(
    limit: Limits,
) -> None:
    grid = gpu_points(SIZES, PAIRS, limit)
    assert len(grid.coarse) <= 380  # 0.8 s each: some five minutes
    of = {mode: [p for p in grid.coarse if p.mode == mode] for mode in get_args(SampleMode)}
    for mode in ("prefill", "decode"):
        curve = {max(p.prefill_sms, p.decode_sms) for p in of[mode]}
        assert len(curve) >= 16
        assert {8, 132} <= curve
    for mode in ("split", "overlap"):
        assert len({(p.prefill_sms, p.decode_sms) for p in of[mode]}) >= 7
    for mode in ("fused", "split", "overlap"):
        assert max(p.decode_context for p in of[mode]) >= 16_384
        assert max(p.prefill_context for p in of[mode]) >= 16_384
        assert max(p.decode_batch for p in of[mode]) >= 256
    assert max(p.prefill_context for p in of["fused"]) >= 29_000
    assert max(p.decode_context for p in of["fused"]) >= 31_000
    first = grid.coarse[:60]
    assert {point.mode for point in first} == {"prefill", "decode", "fused"}  # enough for a plan


def test_kernels_are_timed_at_every_count_of_the_curves() -> None:
    steps = kernel_points(SIZES, H200_8B)
    assert {point.mode for point in steps} == {"prefill", "decode"}
    assert len({max(point.prefill_sms, point.decode_sms) for point in steps}) >= 16


def test_a_point_s_sample_has_its_key() -> None:
    point = Point("fused", 2, 2, 64, 128, 8, 512, held_out=True)
    sample = point.sample(prefill_ms=1.0, decode_ms=1.0, repeats=3)
    assert isinstance(sample, Sample)
    assert sample.key == point.key
    assert sample.held_out


def test_stock_vllm_s_steps_are_those_beside_shared_decodes() -> None:
    times = {"prefill_ms": 1.0, "decode_ms": 1.0}
    shared = [
        Point("overlap", 64, 132, 1024, 0, 32, 1024).sample(**times),
        Point("split", 64, 68, 1024, 0, 32, 1024).sample(**times),
        Point("split", 64, 68, 512, 16_384, 256, 1024).sample(**times),
        Point("split", 64, 68, 768, 0, 64, 768, held_out=True).sample(**times),
    ]
    points = stock_points(132, shared, H200_8B)
    assert {p.mode for p in points} == {"fused"}
    assert {(p.decode_batch, p.decode_context, p.prefill_context) for p in points} == {
        (32, 1024, 0),
        (256, 1024, 16_384),
    }
    totals = {p.chunk + p.decode_batch for p in points if p.decode_batch == 32}
    assert totals == {128, 256, 512, 1024, 2048}
    assert stock_points(132, [], H200_8B) == []
