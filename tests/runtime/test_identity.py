"""Models are told apart by whatever shapes a step, and by nothing else."""

import json
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from nexus.runtime.identity import shape_hash, shape_of, updated

LLAMA = {
    "architectures": ["LlamaForCausalLM"],
    "hidden_size": 64,
    "model_type": "llama",
    "num_attention_heads": 2,
    "num_hidden_layers": 2,
    "vocab_size": 512,
}


@pytest.mark.parametrize(
    ("architecture", "one", "other"),
    [
        ("GPT2LMHeadModel", {"n_embd": 128, "n_layer": 2}, {"n_embd": 256, "n_layer": 8}),
        ("GPT2LMHeadModel", {"n_inner": None}, {"n_inner": 512}),
        ("GraniteMoeHybridForCausalLM", {"mamba_n_heads": 48}, {"mamba_n_heads": 96}),
        ("GraniteMoeHybridForCausalLM", {"mamba_d_state": 128}, {"mamba_d_state": 256}),
        ("GraniteMoeHybridForCausalLM", *({"shared_intermediate_size": n} for n in (64, 128))),
        ("JambaForCausalLM", {"attn_layer_period": 8}, {"attn_layer_period": 4}),
        ("JambaForCausalLM", {"expert_layer_period": 2}, {"expert_layer_period": 1}),
        ("Qwen3NextForCausalLM", *({"linear_num_value_heads": n} for n in (16, 32))),
        ("Qwen3NextForCausalLM", *({"shared_expert_intermediate_size": n} for n in (64, 512))),
        ("DeepseekV3ForCausalLM", {"first_k_dense_replace": 0}, {"first_k_dense_replace": 3}),
        ("DeepseekV3ForCausalLM", {"q_lora_rank": None}, {"q_lora_rank": 1536}),
        ("DeepseekV3ForCausalLM", {"v_head_dim": 64}, {"v_head_dim": 128}),
        ("DeepseekV3ForCausalLM", {"n_shared_experts": 1}, {"n_shared_experts": 2}),
        ("FalconH1ForCausalLM", {"mamba_d_ssm": 1024}, {"mamba_d_ssm": 2048}),
        ("FalconForCausalLM", {"multi_query": True}, {"multi_query": False}),
        ("Gemma3ForConditionalGeneration", *({"text_config": {"n_layer": n}} for n in (2, 4))),
        ("NemotronForCausalLM", *({"block_configs": [{"ffn": {"mult": n}}]} for n in (1, 2))),
        ("Qwen2ForCausalLM", {"use_sliding_window": False}, {"use_sliding_window": True}),
    ],
)
def test_another_size_is_another_model(
    architecture: str, one: dict[str, Any], other: dict[str, Any]
) -> None:
    hashes = {shape_hash({"architectures": [architecture], **sizes}) for sizes in (one, other)}
    assert len(hashes) == 2


@pytest.mark.parametrize(
    "alike",
    [
        {"_name_or_path": "acme/tiny", "transformers_version": "4.0", "use_cache": False},
        {"bos_token_id": 7, "eos_token_id": [1, 2], "pad_token_id": None, "image_token_index": 9},
        {"torch_dtype": "float16", "dtype": "bfloat16"},
        {"initializer_range": 0.1, "attention_dropout": 0.1, "resid_pdrop": 0.1},
        {"rms_norm_eps": 1e-6, "layer_norm_epsilon": 1e-5},
        {"rope_theta": 1e6, "rope_scaling": {"factor": 8}, "max_position_embeddings": 4096},
        {"mlp_bias": False, "attention_bias": False, "sliding_window": None, "pretraining_tp": 1},
        {"head_dim": 32, "layer_types": ["full_attention"] * 2},
        {"use_sliding_window": False, "max_window_layers": 28, "sliding_window": 4096},
        {"model_type": "another", "quantization_config": {}},
    ],
)
def test_what_shapes_no_step_makes_no_other_model(alike: dict[str, Any]) -> None:
    assert shape_hash({**LLAMA, **alike}) == shape_hash(LLAMA)
    nested = {"architectures": ["Gemma3ForConditionalGeneration"], "text_config": LLAMA}
    both = {**nested, "text_config": {**LLAMA, **alike}}
    assert shape_hash(both) == shape_hash(nested)


def test_a_type_counts_where_no_class_is_named() -> None:
    assert shape_hash({"model_type": "a", "n_layer": 2}) != shape_hash(
        {"model_type": "b", "n_layer": 2}
    )


names = st.text("abcdefgh_", min_size=1).map(lambda name: f"n_{name}")
values = st.recursive(
    st.integers() | st.just(value=True) | st.text("abc", min_size=1),
    lambda inner: st.lists(inner, min_size=1) | st.dictionaries(names, inner, min_size=1),
    max_leaves=8,
)


@given(st.dictionaries(names, values), names, values, values)
def test_any_field_that_is_not_known_to_be_neutral_counts(
    config: dict[str, Any], name: str, one: Any, other: Any
) -> None:
    base = {**LLAMA, **config}
    hashes = [shape_hash({**base, name: value}) for value in (one, other)]
    told = [json.dumps(value, sort_keys=True) for value in (one, other)]
    assert (hashes[0] == hashes[1]) == (told[0] == told[1])
    assert shape_hash({**base, name: None}) != hashes[0]
    # Where it stands in the file does not matter, nor a second reduction.
    assert shape_hash(dict(reversed({**base, name: one}.items()))) == hashes[0]
    assert shape_of(shape_of(base)) == shape_of(base)


def test_fields_are_overridden_in_nested_configurations_too() -> None:
    config = {"n_layer": 2, "text_config": {"n_layer": 2, "n_embd": 64}}
    changes = {"n_layer": 4, "text_config": {"n_layer": 8}}
    assert updated(config, changes) == {"n_layer": 4, "text_config": {"n_layer": 8, "n_embd": 64}}
