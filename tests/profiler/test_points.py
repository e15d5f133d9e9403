"""Which points are measured: within the limits, once each, the needed ones first."""

from typing import get_args

from hypothesis import given
from hypothesis import strategies as st

from nexus.profiler.points import (
    Limits,
    Point,
    core_counts,
    core_points,
    gpu_points,
    kernel_points,
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


def test_a_gpu_grid_has_every_mode_and_sixteen_sm_counts() -> None:
    limit = Limits(tokens=8192, sequences=512, kv_tokens=800_000, context=32_768)
    sizes = [*range(8, 132, 8), 132]
    pairs = [(prefill, 128 - prefill) for prefill in range(16, 128, 16)]
    grid = gpu_points(sizes, pairs, limit)
    assert {point.mode for point in grid.coarse} == set(get_args(SampleMode))
    for phase in ("prefill", "decode"):
        curve = {max(p.prefill_sms, p.decode_sms) for p in grid.points if p.mode == phase}
        assert len(curve) >= 16
        assert {8, 132} <= curve
    for point in grid.points:
        assert limit.allow(point)
        if point.mode == "split":
            assert (point.prefill_sms, point.decode_sms) in pairs
        if point.mode == "fused":
            assert (point.chunk + point.decode_batch) % 32 == 0
    steps = kernel_points(sizes, limit)
    assert {point.mode for point in steps} == {"prefill", "decode"}


def test_a_point_s_sample_has_its_key() -> None:
    point = Point("fused", 2, 2, 64, 128, 8, 512, held_out=True)
    sample = point.sample(prefill_ms=1.0, decode_ms=1.0, repeats=3)
    assert isinstance(sample, Sample)
    assert sample.key == point.key
    assert sample.held_out
