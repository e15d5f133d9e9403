"""The profiler on a real engine: it measures, keeps, and goes on where it stopped."""

import os
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from nexus.core.errors import DocumentError, EngineError, MismatchError, UserError
from nexus.profiler.points import Point
from nexus.profiler.session import slowest
from nexus.profiles.schema import read_profile, write_profile
from nexus.profiles.shipped import shipped_profiles
from nexus.runtime.machine import config_hash, this_machine

OPTIONS = (
    "--enforce-eager --dtype float32 --max-model-len 2048 --max-num-seqs 16"
    " --kv-cache-memory-bytes 64M --max-num-batched-tokens 512"
).split()


@pytest.fixture
def open_run(tiny_model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Any:
    monkeypatch.setenv("VLLM_LOGGING_LEVEL", "ERROR")
    monkeypatch.setenv("VLLM_ENABLE_V1_MULTIPROCESSING", "0")
    monkeypatch.setenv("VLLM_CPU_OMP_THREADS_BIND", "nobind")

    def open_one(*extra: str, fresh: bool = False, model: Path = tiny_model) -> Any:
        from nexus.profiler.session import open_session

        path = tmp_path / "profile.yaml"
        options = [*OPTIONS, *extra]
        return open_session(str(model), options, path, "nexus profile", "2026-01-01", fresh=fresh)

    open_one.model = tiny_model  # type: ignore[attr-defined]
    return open_one


@pytest.mark.parametrize("name", ["--max-num-seqs", "--max_num_seqs"])
def test_what_the_user_gives_is_not_overridden(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    from nexus.profiler import session

    seen: list[str] = []

    def refuse(model: str, options: list[str]) -> None:
        seen.extend(options)
        raise EngineError("seen")

    monkeypatch.setattr(session, "parse_engine", refuse)
    for on_cpu in (False, True):
        with pytest.raises(EngineError, match="seen"):
            session.start_engine("m", [name, "64", "--enforce_eager"], on_cpu)
    assert "--gpu-memory-utilization" in seen
    assert [word for word in seen if word.endswith("seqs")] == [name] * 2
    assert "--enforce-eager" not in seen


@pytest.mark.engine
def test_an_engine_without_chunked_prefill_is_refused_before_it_starts(
    open_run: Any, model_of_kind: Any
) -> None:
    from nexus.profiler.session import start_engine

    with pytest.raises(EngineError, match=r"which --no-enable-chunked-prefill turns off$"):
        start_engine(str(open_run.model), ["--no-enable-chunked-prefill"], on_cpu=True)
    latent = str(model_of_kind("deepseek_v3"))
    with pytest.raises(EngineError, match="vLLM turns off here, for multi-head latent") as caught:
        start_engine(latent, ["--attention-backend", "CPU_MLA"], on_cpu=True)  # as without AMX
    assert "\n" not in str(caught.value)


@pytest.mark.engine
def test_a_profile_of_something_else_is_refused_before_vllm_starts(
    open_run: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from nexus.profiler import session

    monkeypatch.setattr(session, "start_engine", lambda *_: pytest.fail("an engine started"))
    profile = read_profile(shipped_profiles()[0])
    here = replace(profile, machine=this_machine(), samples=(), kernels=())
    hashed = config_hash(str(open_run.model))
    ours = replace(here, model=replace(profile.model, config_hash=hashed))
    two = replace(ours, engine=replace(profile.engine, tensor_parallel_size=2))
    for other, named in (
        (profile, "another machine"),
        (here, "another model"),
        (two, "another tensor-parallel-size"),
        (ours, "other software"),
    ):
        write_profile(tmp_path / "profile.yaml", other)
        with pytest.raises(UserError, match=f"{named}.*--force"), open_run():
            pass


def test_no_file_of_the_model_is_replaced(tiny_model: Path) -> None:
    from nexus.profiler.session import open_session

    path = tiny_model / "config.json"
    with (
        pytest.raises(DocumentError, match="would overwrite"),
        open_session(str(tiny_model), [], path, "", "", fresh=True),
    ):
        pass


@pytest.mark.parametrize(
    ("options", "told"),
    [
        (["-pp", "2"], "--pipeline-parallel-size"),
        (["--data-parallel-size=2"], "--data-parallel-size"),
        (["--worker-extension-cls", "x.Y"], "--worker-extension-cls"),
        (["--revision", "x", "--hf-config-path", "none"], "no such model: none "),
    ],
)
def test_what_no_profile_can_be_of_is_refused(open_run: Any, options: list[str], told: str) -> None:
    with pytest.raises(EngineError, match=told), open_run(*options):
        pass


@pytest.mark.engine
def test_a_profile_of_nothing_says_why(open_run: Any, tmp_path: Path) -> None:
    """Every step fails: vLLM's CPU kernels compute this model in bfloat16 alone."""
    from transformers import Qwen3NextConfig, Qwen3NextForCausalLM

    sizes = "hidden_size intermediate_size moe_intermediate_size vocab_size".split()
    config = Qwen3NextConfig(
        **dict.fromkeys([*sizes, "shared_expert_intermediate_size"], 64),
        num_attention_heads=2,
        num_key_value_heads=1,
        head_dim=32,
        linear_num_key_heads=1,
        linear_num_value_heads=2,
        num_experts=2,
        num_experts_per_tok=1,
        num_hidden_layers=2,
        layer_types=["linear_attention", "full_attention"],
        max_position_embeddings=4096,
    )
    model = tmp_path / "model"
    Qwen3NextForCausalLM(config).bfloat16().save_pretrained(model)
    seen = []
    with open_run("--skip-tokenizer-init", model=model) as session:
        why = "nothing could be measured: AssertionError: CPU GDN attention requires BF16"
        with pytest.raises(EngineError, match=why):
            session.measure(5.0, lambda done, total, sample: seen.append(sample))
    assert 1 < len(seen) < len(session.grid().coarse)
    assert read_profile(tmp_path / "profile.yaml").samples == tuple(seen)


@pytest.mark.engine
def test_weights_of_something_else_are_one_line(open_run: Any, tmp_path: Path) -> None:
    from safetensors.torch import load_file, save_file
    from transformers import FalconConfig, FalconForCausalLM

    model, sizes = tmp_path / "model", dict.fromkeys(("hidden_size", "vocab_size"), 64)
    config = FalconConfig(**sizes, num_hidden_layers=1, num_attention_heads=2)
    FalconForCausalLM(config).float().save_pretrained(model)
    weights = load_file(model / "model.safetensors")
    weights["transformer.h.0.alien"] = weights["transformer.ln_f.weight"].clone()
    save_file(weights, model / "model.safetensors", {"format": "pt"})
    with pytest.raises(EngineError) as told, open_run("--skip-tokenizer-init", model=model):
        pass
    assert str(told.value) == "vLLM: KeyError: 'h.0.alien'"


@pytest.mark.engine
def test_kv_tokens_are_what_vllm_says(open_run: Any, tmp_path: Path) -> None:
    """Of a model with several KV cache groups: five layers in six see a window of 256 tokens."""
    from transformers import Gemma3ForCausalLM, Gemma3TextConfig

    config = Gemma3TextConfig(
        vocab_size=64,
        hidden_size=64,
        intermediate_size=64,
        num_hidden_layers=8,
        num_attention_heads=2,
        num_key_value_heads=1,
        head_dim=32,
        sliding_window=256,
        max_position_embeddings=4096,
        pad_token_id=0,
    )
    model = tmp_path / "model"
    Gemma3ForCausalLM(config).float().save_pretrained(model)
    small = ("--skip-tokenizer-init", "--kv-cache-memory-bytes", "16M")
    with open_run(*small, model=model) as session:
        kv_tokens = session.profile.engine.kv_tokens
        cache = session._engine.vllm_config.cache_config
        assert kv_tokens == cache.kv_cache_size_tokens
        assert 2 * kv_tokens < cache.num_gpu_blocks * cache.block_size
        # They fit, as what a window has left behind takes no blocks.
        full = Point("decode", 0, 1, decode_batch=kv_tokens // 2048, decode_context=1900)
        assert session._sample(full).error is None
        too_full = replace(full, decode_batch=16)
        assert session._sample(too_full).error == (
            "MemoryError: the KV cache is too small for this point"
        )
        # Whatever a step raises is its own failure.
        too_long = replace(full, decode_batch=1, decode_context=4000)
        assert session._sample(too_long).error.startswith("ValueError: ")
        assert session._sample(full).error is None


def test_the_slowest_rank_decides() -> None:
    point = Point("fused", 2, 2, chunk=60, decode_batch=4, decode_context=128)
    fast, slow = (point.sample(prefill_ms=ms, decode_ms=ms, repeats=5) for ms in (2.0, 2.5))
    assert slowest([fast]) == fast
    assert slowest([fast, slow]) == slowest([slow, fast]) == replace(slow, rank_spread_ms=0.5)
    failed = point.sample(error="MemoryError: none")
    assert slowest([fast, failed]) == failed


class _Interrupt:
    """Presses Ctrl-C after some points."""

    def __init__(self, after: int) -> None:
        self.after = after

    def __call__(self, done: int, total: int, sample: Any) -> None:
        if done == self.after:
            raise KeyboardInterrupt


@pytest.mark.engine
def test_a_run_is_kept_resumed_and_finished(open_run: Any, tmp_path: Path) -> None:
    path = tmp_path / "profile.yaml"
    with open_run() as session, pytest.raises(KeyboardInterrupt):
        session.measure(5.0, _Interrupt(after=4))
    kept = read_profile(path).samples
    assert len(kept) == 4

    seen = []
    with open_run() as session:
        points = session.grid().points
        session.measure(5.0, lambda done, total, sample: seen.append((done, total)))
    profile = read_profile(path)
    assert profile.samples[:4] == kept
    assert seen[0] == (5, len(points))
    assert seen[-1] == (len(profile.samples), len(points))
    measured = {sample.key for sample in profile.samples}
    assert {point.key for point in session.grid().coarse} <= measured
    assert measured <= {point.key for point in points}
    assert [sample.error for sample in profile.samples if sample.error] == []
    assert {s.prefill_sms or s.decode_sms for s in profile.samples} >= {1, os.cpu_count()}
    assert all(sample.repeats >= 3 for sample in profile.samples)

    with pytest.raises(MismatchError, match="another engine"), open_run("--max-num-seqs", "8"):
        pass
    with open_run("--max-num-seqs", "8", fresh=True) as session:
        assert session.profile.samples == ()
