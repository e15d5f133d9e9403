"""What the prefill lane cannot serve."""

from collections.abc import Callable
from typing import Any

from nexus.errors import EngineError


def refuse_unsupported(config: Any) -> None:
    """Raise EngineError, naming the option, where passes on a lane would be wrong."""
    parallel, model = config.parallel_config, config.model_config
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
    ]
    for applies, what in checks:
        if applies():
            raise EngineError(f"the prefill lane does not support {what}")
