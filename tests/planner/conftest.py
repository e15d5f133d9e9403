"""Profiles to plan from: made by a formula, so that the right answer is known."""

import csv
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from nexus.core.io.documents import Provenance
from nexus.core.machine import Engine, Machine, Model
from nexus.profiles.schema import Profile, Sample

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


H200_ENGINE = Engine(
    max_num_batched_tokens=8192, max_num_seqs=256, block_size=16, kv_tokens=800_000
)
H200_SMS = (16, 24, 32, 40, 48, 56, 64, 68, 72, 80, 84, 88, 96, 100, 108, 116, 124, 132)


def h200_decode_ms(sms: int, batch: int, context: int) -> float:
    """Alone: weights, sequences and KV tokens; below 80 SMs bandwidth is not saturated."""
    full = 4.33 + 0.0275 * batch + 2.675e-5 * batch * context
    return full / min(1.0, (sms / 80) ** 0.8)


def h200_prefill_ms(sms: int, chunk: int, context: int) -> float:
    """Alone: 42,700 tokens/s on all SMs, less than proportionally slower on fewer."""
    speed = 42.7 * min(1.0, 0.66 * (sms / 68) ** 0.75)
    return 3.0 + max(5.0, (chunk + 2.2e-5 * chunk * (context + chunk / 2)) / speed)


def _h200_solo() -> Iterator[Sample]:
    for sms in H200_SMS:
        for chunk in (128, 256, 512, 1024, 2048, 4096, 8192):
            for context in (0, 4096):
                ms = h200_prefill_ms(sms, chunk, context)
                yield Sample("prefill", sms, 0, chunk, context, prefill_ms=ms)
        for batch in (1, 4, 16, 32, 64, 128, 256):
            for context in (256, 1200, 4000):
                ms = h200_decode_ms(sms, batch, context)
                yield Sample("decode", 0, sms, 0, 0, batch, context, decode_ms=ms)


def _h200_measured() -> list[Sample]:
    """What ``h200_frontier.csv`` holds: really measured, beside 2 prompts of 1024 tokens."""
    samples = []
    with (Path(__file__).parent / "h200_frontier.csv").open(newline="") as file:
        for row in csv.DictReader(file):
            p, d, chunk, batch, context = (int(row[key]) for key in list(row)[1:6])
            tbt, prefill = float(row["tbt_ms"]), 1e3 * chunk / float(row["prefill_tokens_per_s"])
            prefill = tbt if row["mode"] == "fused" else prefill
            samples.append(
                Sample(row["mode"], p, d, chunk, 0, batch, context, prefill, None, tbt)  # type: ignore[arg-type]
            )
    return samples


def _h200_between(measured: list[Sample]) -> Iterator[Sample]:
    """Made up from the measured slowdowns: other batches and contexts, some held out."""
    for index, sample in enumerate(measured):
        if sample.mode == "fused":
            # The fused step's extra over decode alone, carried to other batches.
            for batch in (8, 16):
                ms = sample.prefill_ms or 0.0
                ms *= h200_decode_ms(132, batch, 1200) / h200_decode_ms(132, 32, 1200)
                if sample.decode_batch == 32:
                    floor = h200_prefill_ms(132, sample.chunk, 0)
                    ms = max(ms, floor)
                    yield Sample(
                        "fused", 132, 132, sample.chunk, 0, batch, 1200, ms, None, ms,
                        held_out=index % 5 == 0,
                    )  # fmt: skip
            continue
        p, d, batch, context = (
            sample.prefill_sms, sample.decode_sms, sample.decode_batch, sample.decode_context,
        )  # fmt: skip
        slow_d = (sample.decode_ms or 0.0) / h200_decode_ms(d, batch, context)
        slow_p = (sample.prefill_ms or 0.0) / h200_prefill_ms(p, sample.chunk, 0)
        for other, chunk in ((batch // 2, 1024), (batch * 3 // 4, 512), (batch // 4, 2048)):
            yield Sample(
                sample.mode, p, d, chunk, 0, other, context,
                h200_prefill_ms(p, chunk, 0) * slow_p, None,
                h200_decode_ms(d, other, context) * slow_d,
                held_out=chunk == 512,
            )  # fmt: skip


def make_h200_profile() -> Profile:
    """A profile of an H200 with Llama-3.1-8B's shape: measured co-runs, solo by formula."""
    measured = _h200_measured()
    return Profile(
        provenance=Provenance(created="2025-01-01T00:00:00+00:00", command="test", software={}),
        machine=Machine(device="cuda", name="H200", sms=132, driver="580", cuda="13.0"),
        model=replace(MODEL, name="8b", dtype="bfloat16", num_layers=32, max_model_len=16384),
        engine=H200_ENGINE,
        samples=(*_h200_solo(), *measured, *_h200_between(measured)),
    )


@pytest.fixture(scope="session")
def h200_profile() -> Profile:
    return make_h200_profile()
