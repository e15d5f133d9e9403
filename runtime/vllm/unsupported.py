"""What the prefill lane serves, and the refusal of all else.

Attention and KV caches are served if a test compares the lane's tokens with stock vLLM's
(``tests/runtime/vllm/test_lane_models.py``). What a model's configuration tells is refused
here, before an engine starts; what only its layers tell, in ``lane_cache.py``.
"""

from collections.abc import Callable
from typing import Any

from nexus.core.errors import EngineError

SERVED_LAYER_TYPES = frozenset({"attention", "full_attention", "sliding_attention"})
"""Of Hugging Face's ``layer_types``; "attention" is an older name of "full_attention"."""


def refuse_unsupported(config: Any) -> None:
    """Raise EngineError, naming option or kind, where passes on a lane would be wrong or are
    compared with vLLM's by no test.
    """
    from nexus.runtime.vllm.compat import is_quantized_kv_cache

    parallel, model = config.parallel_config, config.model_config
    text, cache_type = model.hf_text_config, config.cache_config.cache_dtype
    others = sorted(set(getattr(text, "layer_types", None) or ()) - SERVED_LAYER_TYPES)
    checks: list[tuple[Callable[[], Any], str]] = [
        (lambda: parallel.tensor_parallel_size > 1, "--tensor-parallel-size above 1"),
        (lambda: parallel.pipeline_parallel_size > 1, "--pipeline-parallel-size above 1"),
        (lambda: parallel.data_parallel_size > 1, "--data-parallel-size above 1"),
        (
            lambda: getattr(parallel, "decode_context_parallel_size", 1) > 1,
            "--decode-context-parallel-size above 1",
        ),
        (
            lambda: getattr(parallel, "prefill_context_parallel_size", 1) > 1,
            "--prefill-context-parallel-size above 1",
        ),
        (lambda: getattr(parallel, "enable_dbo", False), "--enable-dbo"),
        (lambda: config.speculative_config is not None, "--speculative-config"),
        (lambda: config.lora_config is not None, "--enable-lora"),
        (lambda: model.is_encoder_decoder, "an encoder-decoder model"),
        (lambda: model.is_multimodal_model, "a multimodal model"),
        (lambda: model.uses_mrope, "a model with multi-dimensional positions"),
        (lambda: model.use_mla, "a model with multi-head latent attention"),
        (lambda: model.runner_type != "generate", "a model that does not generate"),
        (lambda: others, f"layers of type {', '.join(others)}"),
        (lambda: model.attn_type != "decoder", f"a model of attention type {model.attn_type}"),
        (lambda: model.attention_chunk_size is not None, "chunked local attention"),
        (lambda: model.uses_alibi, "attention with linear biases (ALiBi)"),
        (lambda: getattr(text, "num_kv_shared_layers", 0), "layers that share a KV cache"),
        (lambda: is_quantized_kv_cache(cache_type), f"a KV cache of type {cache_type}"),
    ]
    for applies, what in checks:
        if applies():
            raise EngineError(f"the prefill lane does not support {what}")


def refuse_whole_prompts(config: Any, *, told: bool = False) -> None:
    """Raise EngineError where vLLM computes each prompt in one step, whatever its length.

    ``told``: the user gave the option that does so; else vLLM decided it.
    """
    if config.scheduler_config.enable_chunked_prefill:
        return
    model = config.model_config
    if told:
        reason = "--no-enable-chunked-prefill turns off"
    elif model.use_mla:
        reason = "vLLM turns off here, for multi-head latent attention on this device"
    elif model.runner_type != "generate":
        reason = "vLLM turns off for a model that does not generate"
    else:
        reason = f"vLLM turns off for {', '.join(model.architectures)}"
    raise EngineError(f"a plan's batches need chunked prefill, which {reason}")
