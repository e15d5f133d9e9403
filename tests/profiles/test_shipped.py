"""What every profile that comes with Nexus has: all that a plan and a judgement of it need."""

from dataclasses import replace
from pathlib import Path

import pytest

from nexus.profiler.points import Limits, gpu_points, kernel_points
from nexus.profiles.schema import KernelSample, Profile, read_profile
from nexus.profiles.shipped import shipped_profiles

SM_COUNTS, PARTITIONS, HELD_OUT = 16, 7, 4


@pytest.mark.parametrize(
    "path",
    shipped_profiles(),
    ids=lambda path: path.stem,
)
def test_a_shipped_profile_is_whole(path: Path) -> None:
    assert missing(read_profile(path)) == []


@pytest.mark.parametrize("path", shipped_profiles(), ids=lambda path: path.stem)
def test_the_coarse_grid_makes_a_whole_profile(path: Path) -> None:
    shipped = read_profile(path)
    sizes = [*range(8, 132, 8), 132]
    pairs = [(size, 132 - size) for size in sizes[:-1]]
    limits = Limits.of(shipped.engine, shipped.model.max_model_len)
    samples = tuple(
        point.sample(
            prefill_ms=1.0 if point.chunk else None, decode_ms=1.0 if point.decode_batch else None
        )
        for point in gpu_points(sizes, pairs, limits).coarse
    )
    kernels = tuple(
        KernelSample(
            phase="prefill" if point.chunk else "decode",
            sms=max(point.prefill_sms, point.decode_sms),
            chunk=point.chunk,
            context=point.decode_context,
            batch=point.decode_batch,
            kernel_class="gemm",
            count=1,
            ms=1.0,
        )
        for point in kernel_points(sizes, limits)
    )
    assert missing(replace(shipped, samples=samples, kernels=kernels)) == []


def missing(profile: Profile) -> list[str]:
    """What the profile of a GPU lacks, in words."""
    limits, sms = profile.engine, profile.machine.sms
    of = {
        mode: [sample for sample in profile.measured if sample.mode == mode]
        for mode in ("prefill", "decode", "fused", "split", "overlap")
    }
    whole = [s for s in of["decode"] if s.decode_sms == sms]
    longest = min(profile.model.max_model_len, limits.kv_tokens) - 2048
    counts = {"prefill": {s.prefill_sms for s in of["prefill"]}}
    counts |= {"decode": {s.decode_sms for s in of["decode"]}}
    wanted = {
        f"{SM_COUNTS} SM counts of {phase}": len(found) >= SM_COUNTS
        for phase, found in counts.items()
    }
    for mode in ("split", "overlap"):
        partitions = {(s.prefill_sms, s.decode_sms) for s in of[mode]}
        wanted[f"{PARTITIONS} partitions of {mode}"] = len(partitions) >= PARTITIONS
    for mode, samples in of.items():
        held_out = sum(sample.held_out for sample in samples)
        wanted[f"{HELD_OUT} samples of {mode} held out"] = held_out >= HELD_OUT
    for mode in ("prefill", "fused"):
        reached = max((s.prefill_context + s.chunk for s in of[mode]), default=0)
        wanted[f"{mode} at the longest context"] = reached >= longest
    for mode, samples in (("decode", whole), ("fused", of["fused"])):
        reached = max((s.decode_context for s in samples), default=0)
        wanted[f"{mode} of the longest context"] = reached >= longest
    for mode in ("split", "overlap"):
        reached = max((s.decode_context for s in of[mode]), default=0)
        wanted[f"{mode} of long contexts"] = reached >= min(16_384, longest)
    batches = max((s.decode_batch for s in whole), default=0)
    held = max((s.decode_batch * s.decode_context for s in whole), default=0)
    wanted["the largest decode batch"] = batches >= min(512, limits.max_num_seqs)
    wanted["a KV cache that is nearly full"] = held >= 0.5 * limits.kv_tokens
    for phase in ("prefill", "decode"):
        timed = {sample.sms for sample in profile.kernels if sample.phase == phase}
        wanted[f"kernels of {phase}"] = len(timed) >= SM_COUNTS
    return [what for what, there in wanted.items() if not there]
