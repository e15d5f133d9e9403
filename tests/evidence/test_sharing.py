"""The table of where sharing pays: gains at equal TBT, from measured samples alone."""

import runpy
from dataclasses import replace
from pathlib import Path

import pytest

from nexus.profiles.schema import Profile, Sample, read_profile

ROOT = Path(__file__).parents[2]
SHARING = runpy.run_path(str(ROOT / "evidence" / "sharing.py"))


def _batch(chunk: int, ms: float) -> Sample:
    return Sample("fused", 132, 132, chunk, 0, 32, 1024, prefill_ms=ms, decode_ms=ms)


def _overlap(prefill_ms: float, tbt_ms: float, before: int = 0, decodes: int = 32) -> Sample:
    shape = (1000, before, decodes, 1024)
    return Sample("overlap", 64, 132, *shape, prefill_ms=prefill_ms, decode_ms=tbt_ms)


@pytest.fixture
def profile() -> Profile:
    shipped = read_profile(ROOT / "profiles" / "h200" / "llama-3.1-8b.yaml")
    batches = (_batch(100, 10.0), _batch(400, 20.0), _batch(150, 19.0))  # the last is no better
    return replace(
        shipped, samples=batches, kernels=(), stock=(_batch(100, 10.0), _batch(200, 20.0))
    )


def test_a_gain_is_over_what_one_batch_prefills_at_the_same_tbt(profile: Profile) -> None:
    # At 15 ms batches give 15 tokens/ms, halfway between 10 and 20; stock vLLM's give 10.
    shared = (_overlap(50.0, 15.0), _overlap(100.0, 14.0), _overlap(1.0, 30.0), _overlap(1.0, 9.0))
    (row,) = SHARING["rows"](replace(profile, samples=(*profile.samples, *shared)))
    assert row.best == shared[0]
    assert row.over_batch == pytest.approx(20 / 15)
    assert row.over_stock == pytest.approx(20 / 10)
    assert (row.gaining, row.ways) == (1, 2)  # beyond the batches nothing is said
    assert len(row.cells) == len(SHARING["HEAD"])


def test_only_batches_beside_the_same_decodes_and_after_the_same_context_count(
    profile: Profile,
) -> None:
    other = (_overlap(50.0, 15.0, before=4096), _overlap(50.0, 15.0, decodes=8))
    assert not list(SHARING["rows"](replace(profile, samples=(*profile.samples, *other))))


def test_stock_vllm_that_was_not_measured_is_left_out(profile: Profile) -> None:
    shared = replace(profile, samples=(*profile.samples, _overlap(50.0, 15.0)), stock=())
    (row,) = SHARING["rows"](shared)
    assert row.over_stock is None
