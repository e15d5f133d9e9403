"""What users of vLLM switch on: served beside a plan as stock vLLM serves it, or refused in one line.

From this table come the refusals (``unsupported.py``), docs/features.md (``python
scripts/features.py``) and their tests. What works names the test that compares it with stock
vLLM, or sees it at work.
"""

from collections.abc import Callable
from typing import Any

from nexus.runtime.vllm.support.support import Feature, PassedOn, Refused, Works

UNTESTED = Refused("compared with stock vLLM by no test")
ONE_STEP = Refused("its passes are those of one engine on one GPU")
NOT_TWICE = Refused("does not fit two engines behind a router")
TAKEN = Refused("Nexus sets it itself")
CHUNKED = Refused("a plan's batches are chunks of prompts")
PASSED_ON = PassedOn()

_FEATURES = "runtime/vllm/test_features.py::test_"
_ALONE = "runtime/vllm/scheduling/test_scheduler_alone.py::test_"
DEPLOYED = Works("runtime/vllm/test_deployments.py")
FUSED = Works(f"{_FEATURES}requests_of_every_kind_beside_a_fused_plan")
ENGINES = Works("runtime/vllm/test_metrics.py::test_engines_of_a_server_have_numbers_of_their_own")
LANE = Works(f"{_FEATURES}requests_of_every_kind_on_the_lane")
MODELS = Works("runtime/vllm/lane/test_lane_models.py::test_same_tokens_as_stock_vllm")
SCHEDULED = Works(f"{_ALONE}every_step_moves_and_every_request_ends")
IMAGES = Works(f"{_ALONE}an_image_is_never_cut")
FRONT = Works("runtime/vllm/test_front_end.py")
CONFIGURED = Works("runtime/vllm/test_options.py::test_a_config_file_is_below_the_command_line")

SERVED_LAYER_TYPES = frozenset({"attention", "full_attention", "sliding_attention"})
"""Of Hugging Face's ``layer_types``; "attention" is an older name of "full_attention"."""

Look = Callable[[Any], Any]


def _above_one(name: str) -> Look:
    words = f"--{name.replace('_', '-')} above 1"
    return lambda config: getattr(config.parallel_config, name, 1) > 1 and words


def _set(part: str, name: str, words: str) -> Look:
    """``words`` where ``name`` of this ``part`` of the configuration is set."""
    return lambda config: getattr(getattr(config, part), name, None) and words


def _model(name: str, words: str) -> Look:
    return _set("model_config", name, words)


def _other_layers(config: Any) -> str:
    kinds = getattr(config.model_config.hf_text_config, "layer_types", None) or ()
    others = sorted(set(kinds) - SERVED_LAYER_TYPES)
    return f"layers of type {', '.join(others)}" if others else ""


def _shared_cache(config: Any) -> str:
    shared = getattr(config.model_config.hf_text_config, "num_kv_shared_layers", 0)
    return "layers that share a KV cache" if shared else ""


def _quantized(config: Any) -> str:
    from nexus.runtime.vllm.compat import is_quantized_kv_cache

    kind = config.cache_config.cache_dtype
    return f"a KV cache of type {kind}" if is_quantized_kv_cache(kind) else ""


def _not_causal(config: Any) -> str:
    kind = config.model_config.attn_type
    return "" if kind == "decoder" else f"a model of attention type {kind}"


def _generates_nothing(config: Any) -> str:
    return "" if config.model_config.runner_type == "generate" else "a model that does not generate"


def _drafts(config: Any) -> str:
    return "" if config.speculative_config is None else "--speculative-config"


def _adapters(config: Any) -> str:
    return "" if config.lora_config is None else "--enable-lora"


def _windowed_locally(config: Any) -> str:
    return "" if config.model_config.attention_chunk_size is None else "chunked local attention"


_PARALLEL = (
    Feature("tensor parallel", Works("runtime/vllm/test_parallel.py"), ONE_STEP, NOT_TWICE).by(
        "--tensor-parallel-size", "-tp", used=_above_one("tensor_parallel_size")
    ),
    Feature("pipeline parallel", UNTESTED, ONE_STEP, NOT_TWICE).by(
        "--pipeline-parallel-size", "-pp", used=_above_one("pipeline_parallel_size")
    ),
    Feature("context parallel in decode", UNTESTED, ONE_STEP, NOT_TWICE).by(
        "--decode-context-parallel-size", "-dcp", used=_above_one("decode_context_parallel_size")
    ),
    Feature("context parallel in prefill", UNTESTED, ONE_STEP, NOT_TWICE).by(
        "--prefill-context-parallel-size", "-pcp", used=_above_one("prefill_context_parallel_size")
    ),
    Feature("expert parallel", UNTESTED, ONE_STEP, UNTESTED).by(
        "--enable-expert-parallel",
        "-ep",
        used=_set("parallel_config", "enable_expert_parallel", "--enable-expert-parallel"),
    ),
    Feature("data parallel", ENGINES, ONE_STEP, NOT_TWICE).by(
        "--data-parallel-size", "-dp", used=_above_one("data_parallel_size")
    ),
    Feature("dual batch overlap", UNTESTED, UNTESTED, UNTESTED).by(
        "--enable-dbo", used=_set("parallel_config", "enable_dbo", "--enable-dbo")
    ),
)

_ENGINE = (
    Feature("speculative decoding", DEPLOYED, UNTESTED, UNTESTED).by(
        "--speculative-config", "-sc", used=_drafts
    ),
    Feature("LoRA", Works(f"{_FEATURES}adapters_beside_a_fused_plan"), UNTESTED, UNTESTED).by(
        "--enable-lora", used=_adapters
    ),
    Feature(
        "quantized KV cache",
        UNTESTED,
        UNTESTED,
        UNTESTED,
    ).by("--kv-cache-dtype", used=_quantized),
    Feature("KV connectors", Works(f"{_FEATURES}a_connector_beside_a_fused_plan"), TAKEN, TAKEN).by(
        "--kv-transfer-config", given=lambda args: args.kv_transfer_config is not None
    ),
    Feature("KV offloading", UNTESTED, TAKEN, UNTESTED).by(
        "--kv-offloading-size", given=lambda args: getattr(args, "kv_offloading_size", None)
    ),
    Feature("sleep mode", UNTESTED, UNTESTED, UNTESTED).by(
        "--enable-sleep-mode", given=lambda args: getattr(args, "enable_sleep_mode", False)
    ),
    Feature("a scheduler of one's own", TAKEN, TAKEN, UNTESTED).by(
        "--scheduler-cls", given=lambda args: args.scheduler_cls is not None
    ),
    Feature("vLLM's additional configuration", TAKEN, TAKEN, UNTESTED).by(
        "--additional-config", given=lambda args: args.additional_config not in (None, {})
    ),
    Feature("a worker of one's own", PASSED_ON, TAKEN, UNTESTED).by(
        "--worker-cls", given=lambda args: args.worker_cls != "auto"
    ),
    Feature("prompts in one step whatever their length", CHUNKED, CHUNKED, PASSED_ON).by(
        "--no-enable-chunked-prefill", given=lambda args: args.enable_chunked_prefill is False
    ),
    Feature("hybrid KV cache manager, forced", PASSED_ON, UNTESTED, PASSED_ON).by(
        "--no-disable-hybrid-kv-cache-manager",
        given=lambda args: args.disable_hybrid_kv_cache_manager is False,
    ),
)

_MODELS = (
    Feature("sliding windows", MODELS, MODELS, PASSED_ON),
    Feature("mixture of experts", MODELS, MODELS, PASSED_ON),
    Feature(
        "embedding models", Works(f"{_FEATURES}embeddings_beside_a_fused_plan"), UNTESTED, PASSED_ON
    ).by(used=_generates_nothing),
    Feature("encoder-decoder models", UNTESTED, UNTESTED, PASSED_ON).by(
        used=_model("is_encoder_decoder", "an encoder-decoder model")
    ),
    Feature("multimodal models", IMAGES, UNTESTED, PASSED_ON).by(
        used=_model("is_multimodal_model", "a multimodal model")
    ),
    Feature("multi-dimensional positions", IMAGES, UNTESTED, PASSED_ON).by(
        used=_model("uses_mrope", "a model with multi-dimensional positions")
    ),
    Feature("hybrid models (Mamba, linear attention)", SCHEDULED, UNTESTED, PASSED_ON).by(
        used=_other_layers
    ),
    Feature("multi-head latent attention", SCHEDULED, UNTESTED, PASSED_ON).by(
        used=_model("use_mla", "a model with multi-head latent attention")
    ),
    Feature("chunked local attention", SCHEDULED, UNTESTED, PASSED_ON).by(used=_windowed_locally),
    Feature("linear biases (ALiBi)", SCHEDULED, UNTESTED, PASSED_ON).by(
        used=_model("uses_alibi", "attention with linear biases (ALiBi)")
    ),
    Feature("layers that share a KV cache", SCHEDULED, UNTESTED, PASSED_ON).by(used=_shared_cache),
    Feature("attention that is not causal", UNTESTED, UNTESTED, PASSED_ON).by(used=_not_causal),
)

_REQUESTS = (
    Feature("logprobs and prompt logprobs", FUSED, LANE, PASSED_ON),
    Feature("structured output", FUSED, LANE, PASSED_ON),
    Feature("n above 1, stop strings, penalties, minimum tokens", FUSED, LANE, PASSED_ON),
    Feature("priorities", FUSED, UNTESTED, PASSED_ON).by(
        used=lambda config: (
            config.scheduler_config.policy == "priority" and "--scheduling-policy priority"
        )
    ),
    Feature(
        "requests given up", DEPLOYED, Works("runtime/vllm/lane/test_lane_server.py"), PASSED_ON
    ),
)

_SERVER = (
    Feature(
        "several API servers", DEPLOYED, Works("runtime/vllm/lane/test_lane_server.py"), UNTESTED
    ).by("--api-server-count", "-asc"),
    Feature("--config", CONFIGURED, CONFIGURED, CONFIGURED),
    Feature("Unix socket", FRONT, FRONT, NOT_TWICE).by("--uds"),
    Feature("TLS", FRONT, FRONT, NOT_TWICE).by("--ssl-certfile", "--ssl-keyfile"),
    Feature("API key", FRONT, FRONT, NOT_TWICE).by("--api-key"),
    Feature("a root path behind a proxy", PASSED_ON, PASSED_ON, NOT_TWICE).by("--root-path"),
    Feature("engines without a front end", UNTESTED, UNTESTED, NOT_TWICE).by(
        "--headless", given=lambda args: getattr(args, "headless", False)
    ),
)

FEATURES: tuple[Feature, ...] = (*_PARALLEL, *_ENGINE, *_MODELS, *_REQUESTS, *_SERVER)
