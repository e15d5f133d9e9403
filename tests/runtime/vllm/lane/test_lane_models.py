"""The lane on models of all kinds: stock vLLM's tokens, or a refusal in one line."""

import random
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from nexus.core.errors import EngineError
from nexus.core.plan import Mode
from nexus.runtime.vllm.front_end.server import serve

pytestmark = pytest.mark.engine

OVERLAP = Mode("overlap", 128, prefill_sms=1)
SPLIT = Mode("split", 96, prefill_sms=1, decode_sms=1)
# Full attention alone: test_lane_serving.py.
SERVED = ("mistral", "gemma2", "gpt_oss", "qwen3_moe")


def prompts() -> list[list[int]]:
    """Most of them longer than windows are, as is what three of them have in common."""
    generator = random.Random(3)
    start = [generator.randrange(3, 500) for _ in range(300)]
    rest = [
        [generator.randrange(3, 500) for _ in range(length)]
        for length in (33, 120, 300, 500, 700, 900, 1200, 1500)
    ]
    return [start + each if index % 3 == 0 else each for index, each in enumerate(rest)]


def generate(llm: Any, wanted: list[list[int]]) -> list[tuple[int, ...]]:
    from vllm import SamplingParams

    params = SamplingParams(temperature=0, max_tokens=8, ignore_eos=True)
    outputs = llm.generate(
        [{"prompt_token_ids": prompt} for prompt in wanted], params, use_tqdm=False
    )
    return [tuple(output.outputs[0].token_ids) for output in outputs]


@pytest.mark.parametrize("kind", SERVED)
def test_same_tokens_as_stock_vllm(
    open_engine: Any, make_plan: Any, lane_plan: Any, model_of_kind: Any, kind: str
) -> None:
    options = {"model": str(model_of_kind(kind)), "skip_tokenizer_init": True}
    with open_engine(**options) as llm:
        expected = generate(llm, prompts())
    with open_engine(make_plan((96,)), **options) as llm:
        assert generate(llm, prompts()) == expected
    with open_engine(lane_plan((OVERLAP, SPLIT)), lane=True, **options) as llm:
        assert generate(llm, prompts()) == expected
        assert generate(llm, prompts()) == expected  # with prefixes in the cache


@pytest.fixture
def refusal(lane_plan: Any) -> Callable[..., str]:
    """What ``nexus serve MODEL OPTIONS`` with a lane plan says instead of starting."""

    def refused(model: Path, *options: str) -> str:
        words = ["--dtype", "float32", "--max-model-len", "2048", "--port", "0", *options]
        with pytest.raises(EngineError) as caught:
            serve(str(model), words, lane_plan((OVERLAP,)), "deadline", 500.0, force=True)
        assert "\n" not in str(caught.value)
        assert caught.value.exit_code == 2
        return str(caught.value)

    return refused


def test_linear_attention_is_refused_before_the_engine_starts(
    refusal: Any, model_of_kind: Any
) -> None:
    told = refusal(model_of_kind("qwen3_next"))
    assert "does not support layers of type linear_attention (the plan has overlap-1)" in told


@pytest.mark.parametrize(
    ("options", "named"),
    [
        (("--hf-overrides", '{"attention_chunk_size": 128}'), "chunked local attention"),
        (("--hf-overrides", '{"layer_types": ["full_attention", "conv"]}'), "type conv"),
        (("--hf-overrides", '{"num_kv_shared_layers": 1}'), "layers that share a KV cache"),
        (("--hf-overrides", '{"alibi": true}'), "ALiBi"),
        (("--kv-cache-dtype", "fp8"), "KV cache of type fp8"),
        (("--no-disable-hybrid-kv-cache-manager",), "--no-disable-hybrid-kv-cache-manager"),
    ],
)
def test_what_no_test_compares_is_refused(
    refusal: Any, tiny_model: Path, options: tuple[str, ...], named: str
) -> None:
    assert named in refusal(tiny_model, *options)


def test_latent_attention_on_a_cpu_names_what_vllm_turned_off(
    refusal: Any, model_of_kind: Any
) -> None:
    model = model_of_kind("deepseek_v3")
    told = refusal(model, "--attention-backend", "CPU_MLA")  # what there is without AMX
    assert "chunked prefill, which vLLM turns off" in told
    assert "multi-head latent attention" in told
    assert "--no-enable-chunked-prefill" not in told


def test_an_option_that_turns_chunked_prefill_off_is_named(refusal: Any, tiny_model: Path) -> None:
    assert "--no-enable-chunked-prefill" in refusal(tiny_model, "--no-enable-chunked-prefill")


def test_the_worker_refuses_what_only_the_layers_tell(
    open_engine: Any, lane_plan: Any, model_of_kind: Any
) -> None:
    options = {"model": str(model_of_kind("qwen3_next")), "skip_tokenizer_init": True}
    with (
        pytest.raises(EngineError, match=r"^the prefill lane does not support .*MambaSpec$"),
        open_engine(lane_plan((OVERLAP,)), lane=True, **options),
    ):
        raise AssertionError("the engine started")


def test_the_scheduler_refuses_whole_prompts(open_engine: Any, make_plan: Any) -> None:
    with (
        pytest.raises(EngineError, match="batches need chunked prefill"),
        open_engine(make_plan((64,)), enable_chunked_prefill=False),
    ):
        raise AssertionError("the engine started")


def full(**more: Any) -> Any:
    """The KV cache of a layer with full attention."""
    import torch
    from vllm.v1.kv_cache_interface import FullAttentionSpec

    common = {"block_size": 16, "num_kv_heads": 2, "head_size": 64, "dtype": torch.float32}
    return FullAttentionSpec(**common | more)


def windowed(window: int, **more: Any) -> Any:
    """The KV cache of a layer with a sliding window."""
    from vllm.v1.kv_cache_interface import SlidingWindowSpec

    plain = full()
    common = {name: getattr(plain, name) for name in ("block_size", "num_kv_heads", "dtype")}
    return SlidingWindowSpec(
        **common | {"head_size": plain.head_size, "sliding_window": window} | more
    )


def test_windows_have_blocks_for_every_token() -> None:
    from nexus.runtime.vllm.lane.attention import whole_cache

    assert whole_cache({"a": windowed(128)}, "a") == {"a": full(sliding_window=128)}
    mixed = {"a": windowed(128, block_size=32), "b": full()}
    assert whole_cache(mixed, "ab") == {"a": full(sliding_window=128), "b": full()}


def test_caches_that_no_test_compares_are_refused() -> None:
    from vllm.v1.kv_cache_interface import (
        ChunkedLocalAttentionSpec,
        CrossAttentionSpec,
        KVQuantMode,
        MambaSpec,
        MLAAttentionSpec,
        RSWASpec,
    )

    from nexus.runtime.vllm.lane.attention import whole_cache

    plain = full()
    shape = {name: getattr(plain, name) for name in ("block_size", "num_kv_heads", "dtype")}
    shape["head_size"] = plain.head_size
    cases = {
        "ChunkedLocalAttentionSpec": ChunkedLocalAttentionSpec(attention_chunk_size=64, **shape),
        "CrossAttentionSpec": CrossAttentionSpec(**shape),
        "MLAAttentionSpec": MLAAttentionSpec(**shape),
        "MambaSpec": MambaSpec(block_size=16, shapes=((2, 2),), dtypes=(plain.dtype,)),
        "RSWASpec": RSWASpec(rswa_window=64, **shape),
        "FP8_PER_TENSOR": replace(plain, kv_quant_mode=KVQuantMode.FP8_PER_TENSOR),
        "not causal": replace(plain, non_causal=True),
        "chunked": replace(plain, attention_chunk_size=64),
        "differ": full(head_size=128),
    }
    for named, spec in cases.items():
        with pytest.raises(EngineError, match=f"prefill lane does not support .*{named}"):
            whole_cache({"a": spec, "b": plain}, "ab")
    with pytest.raises(EngineError, match="sliding windows differ"):
        whole_cache({"a": windowed(64), "b": windowed(128)}, "ab")
    with pytest.raises(EngineError, match="share a KV cache"):
        whole_cache({"a": plain}, "ab")
