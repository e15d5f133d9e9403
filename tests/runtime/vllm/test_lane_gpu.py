"""Serving with real partitions: the answers of stock vLLM, and nothing left behind."""

import gc
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from nexus.planner.table import Mode, read_plan, write_plan

pytestmark = [pytest.mark.engine, pytest.mark.gpu]

PROMPTS = [
    [(31 * place + 7 * length) % 500 for place in range(length)] for length in (40, 300, 900)
]
TOLERANCE = 0.02  # bfloat16, and batches of other compositions


@pytest.fixture(autouse=True)
def _needs_a_gpu() -> None:
    import torch

    if not torch.cuda.is_available():
        pytest.skip("no GPU")


@contextmanager
def engine(model: Path, plan: Path | None, patch: pytest.MonkeyPatch) -> Iterator[Any]:
    from vllm import LLM
    from vllm.config import KVTransferConfig
    from vllm.distributed import cleanup_dist_env_and_memory

    from nexus.runtime.vllm.connector import transfer_config
    from nexus.runtime.vllm.context import ServeContext
    from nexus.runtime.vllm.lane_options import WORKER

    patch.setenv("VLLM_ENABLE_V1_MULTIPROCESSING", "0")
    options: dict[str, Any] = {}
    if plan is not None:
        options = {
            "scheduler_cls": "nexus.runtime.vllm.scheduler.PlannedAsyncScheduler",
            "additional_config": ServeContext(plan),
            "kv_transfer_config": KVTransferConfig(**transfer_config()),
            "worker_cls": WORKER,
        }
    llm = LLM(
        model=str(model),
        dtype="bfloat16",
        kv_cache_memory_bytes=1 << 28,
        max_model_len=2048,
        max_num_batched_tokens=2048,
        max_num_seqs=64,
        use_tqdm_on_load=False,
        **options,
    )
    try:
        yield llm
    finally:
        llm.llm_engine.engine_core.shutdown()
        del llm
        cleanup_dist_env_and_memory()
        gc.collect()


def logprobs(llm: Any) -> list[dict[int, float]]:
    """Of each prompt's first token, the likeliest ones."""
    from vllm import SamplingParams

    params = SamplingParams(temperature=0.0, max_tokens=24, logprobs=10, ignore_eos=True)
    outputs = llm.generate([{"prompt_token_ids": p} for p in PROMPTS], params, use_tqdm=False)
    return [
        {token: entry.logprob for token, entry in output.outputs[0].logprobs[0].items()}
        for output in outputs
    ]


@pytest.mark.parametrize(
    "modes",
    [
        (Mode("overlap", 256, prefill_sms=100),),
        (Mode("split", 256, prefill_sms=84, decode_sms=48),),
        (
            Mode("split", 256, prefill_sms=84, decode_sms=48),
            Mode("overlap", 256, prefill_sms=100),
            Mode("fused", 64),
        ),
    ],
    ids=["overlap", "split", "all three"],
)
def test_first_tokens_are_stock_vllm_s(
    tiny_model: Path,
    make_plan: Any,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    modes: tuple[Mode, ...],
) -> None:
    import torch

    sms = torch.cuda.get_device_properties(0).multi_processor_count
    plan = read_plan(make_plan((64,)))
    names = [mode.name for mode in modes]
    rows = tuple(replace(row, mode=names[i % len(names)]) for i, row in enumerate(plan.rows))
    machine = replace(plan.machine, device="cuda", sms=sms)
    path = tmp_path / "plan.yaml"
    write_plan(
        path,
        replace(plan, machine=machine, modes=dict(zip(names, modes, strict=True)), rows=rows),
    )
    with engine(tiny_model, None, monkeypatch) as llm:
        expected = logprobs(llm)
    with engine(tiny_model, path, monkeypatch) as llm:
        found = logprobs(llm)
        core = llm.llm_engine.engine_core.engine_core
        while core.scheduler.has_requests():
            llm.llm_engine.step()
        pool = core.scheduler.kv_cache_manager.block_pool
        assert pool.get_num_free_blocks() == pool.num_gpu_blocks - 1
    for ours, theirs in zip(found, expected, strict=True):
        for token in ours.keys() & theirs.keys():
            assert ours[token] == pytest.approx(theirs[token], abs=TOLERANCE)
