"""Which models are alike: those whose configurations differ in nothing that shapes a step.

Everything in a ``config.json`` counts but what is listed here, so that what an architecture
calls its sizes need not be known.
"""

import hashlib
import json
from collections.abc import Mapping
from fnmatch import fnmatchcase
from typing import Any

# What cannot change a step's time, by the field's name: names and classes, token ids, data types
# (compared apart), what only training reads, constants of norms, and positions.
NEUTRAL = (
    *("_*", "auto_map", "finetuning_task", "id2label", "label2id", "prefix", "problem_type"),
    *("task_specific_params", "tokenizer_class", "transformers_version"),
    *("*_token_id", "*_token_ids", "*_token_index", "suppress_tokens", "begin_suppress_tokens"),
    *("dtype", "torch_dtype", "output_attentions", "output_hidden_states", "output_router_logits"),
    *("return_dict", "use_cache"),
    *("*dropout*", "*_loss_coef", "*_pdrop", "gradient_checkpointing", "init_std"),
    *("initializer_*", "pretraining_tp", "router_jitter_noise", "summary_*"),
    *("*_eps", "*_epsilon"),
    *("max_position_embeddings", "n_ctx", "n_positions", "original_max_position_embeddings"),
    *("rope_local_base_freq", "rope_parameters", "rope_scaling", "rope_theta", "rotary_emb_base"),
)


def shape_hash(config: Mapping[str, Any]) -> str:
    """Equal for configurations of one shape: 16 hexadecimal digits."""
    return hashlib.sha256(json.dumps(shape_of(config), sort_keys=True).encode()).hexdigest()[:16]


def shape_of(config: Mapping[str, Any]) -> dict[str, Any]:
    """What of a ``config.json`` shapes a step.

    What is off, null or empty is as if it were not there, and so is what follows from the rest:
    a usual ``head_dim``, the model's type where its class is named, the window that
    ``use_sliding_window`` switches off, and ``layer_types`` that are all full attention.
    """
    shape = {
        name: _value(value)
        for name, value in config.items()
        if not _says_nothing(value) and not any(fnmatchcase(name, each) for each in NEUTRAL)
    }
    match shape:
        case {"hidden_size": int(width), "num_attention_heads": int(heads), "head_dim": int(size)}:
            if heads and size == width // heads:
                del shape["head_dim"]
    if "architectures" in shape:
        shape.pop("model_type", None)
    if config.get("use_sliding_window", True) is False:
        shape.pop("max_window_layers", None)
        shape.pop("sliding_window", None)
    match shape:
        case {"layer_types": [*kinds]} if all(kind == "full_attention" for kind in kinds):
            del shape["layer_types"]
    return shape


def updated(config: Mapping[str, Any], changes: Mapping[str, Any]) -> dict[str, Any]:
    """``config`` with ``changes``, field by field in nested ones too."""
    merged = dict(config)
    for name, value in changes.items():
        old = merged.get(name)
        if isinstance(old, Mapping) and isinstance(value, Mapping):
            value = updated(old, value)
        merged[name] = value
    return merged


def _value(value: Any) -> Any:
    if isinstance(value, Mapping):
        return shape_of(value)
    if isinstance(value, list):
        return [_value(each) for each in value]
    return value


def _says_nothing(value: Any) -> bool:
    return value is None or value is False or value in ("", [], {})
