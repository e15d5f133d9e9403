"""Fixtures for all tests: a model small enough for any machine."""

import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from hypothesis import settings

# How long an example takes says how busy the machine is.
settings.register_profile("any machine", deadline=None)
settings.load_profile("any machine")

os.environ.setdefault("HF_HUB_OFFLINE", "1")
os.environ.setdefault("VLLM_LOGGING_LEVEL", "ERROR")
os.environ.setdefault("VLLM_NO_USAGE_STATS", "1")

VOCABULARY = 512
SHAPE = {
    "vocab_size": VOCABULARY,
    "hidden_size": 64,
    "intermediate_size": 128,
    "num_hidden_layers": 2,
    "num_attention_heads": 2,
    "num_key_value_heads": 1,
    "head_dim": 32,
    "max_position_embeddings": 4096,
    "bos_token_id": 1,
    "eos_token_id": 2,
}
EXPERTS = {"num_experts": 4, "num_experts_per_tok": 2, "moe_intermediate_size": 64}
WINDOW = {"sliding_window": 256}
KINDS: dict[str, dict[str, Any]] = {
    "mistral": WINDOW,  # in every layer
    "gemma2": WINDOW | {"query_pre_attn_scalar": 32},  # in half of the layers; capped scores
    "gpt_oss": WINDOW | {"num_local_experts": 4, "num_experts_per_tok": 2},  # in half; sinks
    "qwen3_moe": EXPERTS,
    "qwen3_next": EXPERTS  # linear attention in three layers of four
    | {"num_hidden_layers": 4, "shared_expert_intermediate_size": 64}
    | {"linear_num_key_heads": 2, "linear_num_value_heads": 2}
    | {"linear_key_head_dim": 32, "linear_value_head_dim": 32},
    "deepseek_v3": {"num_key_value_heads": 2, "head_dim": 16}  # multi-head latent attention
    | {"kv_lora_rank": 32, "q_lora_rank": 32, "qk_rope_head_dim": 16}
    | {"qk_nope_head_dim": 32, "v_head_dim": 32}
    | {"n_routed_experts": 4, "num_experts_per_tok": 2, "n_group": 1, "topk_group": 1}
    | {"moe_intermediate_size": 64},
}
"""By Transformers' model type, what a tiny model has beside ``SHAPE``."""


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Skip what is marked ``gpu`` where there is none."""
    marked = [item for item in items if item.get_closest_marker("gpu")]
    if not marked:
        return
    import torch

    if not torch.cuda.is_available():
        for item in marked:
            item.add_marker(pytest.mark.skip(reason="no GPU"))


@pytest.fixture(scope="session")
def tiny_model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with a random float32 Llama of two layers and a word-level tokenizer."""
    import torch
    from tokenizers import Tokenizer, models, pre_tokenizers
    from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast

    folder = tmp_path_factory.mktemp("models") / "tiny"
    with torch.random.fork_rng():
        torch.manual_seed(0)
        LlamaForCausalLM(LlamaConfig(**SHAPE)).float().save_pretrained(folder)
    words = Tokenizer(models.WordLevel({f"w{i}": i for i in range(VOCABULARY)}, unk_token="w0"))
    words.pre_tokenizer = pre_tokenizers.Whitespace()
    tokenizer = PreTrainedTokenizerFast(
        tokenizer_object=words, unk_token="w0", bos_token="w1", eos_token="w2"
    )
    tokenizer.chat_template = "{% for message in messages %}{{ message.content }} {% endfor %}"
    tokenizer.save_pretrained(folder)
    return folder


@pytest.fixture(scope="session")
def model_of_kind(tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], Path]:
    """``model_of_kind(kind)``: a folder with a random float32 model of ``KINDS``, no tokenizer."""
    made: dict[str, Path] = {}

    def make(kind: str) -> Path:
        if kind not in made:
            made[kind] = tmp_path_factory.mktemp("models") / kind
            _save_tiny(kind, made[kind])
        return made[kind]

    return make


def _save_tiny(kind: str, folder: Path) -> None:
    import torch
    from transformers import AutoConfig, AutoModelForCausalLM
    from vllm import ModelRegistry

    config = AutoConfig.for_model(kind, pad_token_id=0, **SHAPE | KINDS[kind])
    with torch.random.fork_rng():
        torch.manual_seed(0)
        model = AutoModelForCausalLM.from_config(config).float()
    model.save_pretrained(folder)
    # vLLM looks at a class that it knows by name in a process of its own, for ten seconds.
    (architecture,) = model.config.architectures
    known = ModelRegistry.models[architecture].load_model_cls()
    ModelRegistry.register_model(architecture, known)
