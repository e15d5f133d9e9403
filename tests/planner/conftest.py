"""Profiles to plan from: made by a formula, so that the right answer is known."""

from collections.abc import Callable, Iterator

import numpy as np
import pytest

from nexus.profiles.schema import Engine, Machine, Model, Profile, Provenance, Sample

MODEL = Model(
    name="tiny",
    config_hash="0" * 16,
    dtype="float32",
    num_layers=30,
    hidden_size=576,
    num_heads=9,
    num_kv_heads=3,
    head_size=64,
    max_model_len=8192,
)
CPU_CHUNKS = (16, 32, 64, 128, 256, 512, 1024)
CPU_BATCHES = (1, 2, 4, 8, 16, 32)


def cpu_step_ms(
    chunk: int, prefill_context: int, batch: int, context: int, cores: float = 2.0
) -> float:
    """A step's time on an imagined 2-core CPU: a floor, then compute; attention; KV reads."""
    tokens = chunk + batch
    compute = max(12.0, 3.9 * tokens)
    attention = 1.2e-3 * chunk * (prefill_context + chunk / 2) + 2e-4 * batch * context
    return 8.0 + (compute + attention) * 2.0 / cores


def _cpu_samples(noise: float) -> Iterator[Sample]:
    rng = np.random.default_rng(1)

    def timed(chunk: int, prefill_context: int, batch: int, context: int, cores: int) -> float:
        ms = cpu_step_ms(chunk, prefill_context, batch, context, cores)
        return float(ms * np.exp(rng.normal(0.0, noise)))

    for cores in (1, 2):
        for context in (0, 512):
            for chunk in CPU_CHUNKS:
                ms = timed(chunk, context, 0, 0, cores)
                yield Sample(
                    "prefill", cores, 0, chunk, context, prefill_ms=ms, held_out=chunk == 128
                )
        for context in (128, 512):
            for batch in CPU_BATCHES:
                ms = timed(0, 0, batch, context, cores)
                yield Sample(
                    "decode",
                    0,
                    cores,
                    decode_batch=batch,
                    decode_context=context,
                    decode_ms=ms,
                    held_out=batch == 8,
                )
    for batch in CPU_BATCHES[1::2]:
        for chunk in CPU_CHUNKS[::2]:
            ms = timed(chunk, 0, batch, 128, 2)
            yield Sample(
                "fused",
                2,
                2,
                chunk,
                0,
                batch,
                128,
                ms,
                None,
                ms,
                held_out=(batch, chunk) == (8, 64),
            )


def make_cpu_profile(noise: float = 0.0) -> Profile:
    """A profile of the imagined CPU, each time off by a log-normal ``noise``."""
    return Profile(
        provenance=Provenance(created="2025-01-01T00:00:00+00:00", command="test", software={}),
        machine=Machine(device="cpu", name="imagined CPU", sms=2),
        model=MODEL,
        engine=Engine(max_num_batched_tokens=1024, max_num_seqs=32, block_size=16, kv_tokens=65536),
        samples=tuple(_cpu_samples(noise)),
    )


@pytest.fixture(scope="session")
def cpu_profile() -> Profile:
    return make_cpu_profile(noise=0.03)


@pytest.fixture(scope="session")
def exact_cpu_profile() -> Profile:
    return make_cpu_profile()


@pytest.fixture(scope="session")
def cpu_ms() -> Callable[..., float]:
    return cpu_step_ms
