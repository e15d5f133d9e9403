"""The refusals, in one line each, of what a plan does not serve: those of the table of features.

What a model's configuration tells is refused here, before an engine starts; what only its
layers tell, by the lane's worker.
"""

from typing import Any

from nexus.core.errors import EngineError
from nexus.runtime.vllm.support.features import FEATURES
from nexus.runtime.vllm.support.support import WAYS, Way


def refuse_used(config: Any, way: Way) -> None:
    """Raise EngineError, naming option or kind, where ``config`` has what ``way`` does not serve."""
    for feature in FEATURES:
        what = feature.used(config) if feature.used and feature.is_refused(way) else None
        if what:
            raise EngineError(f"{WAYS[way]} does not support {what}")


def refuse_given(arguments: Any, way: Way, beside: str) -> None:
    """Raise EngineError where vLLM's parsed options have what ``way`` does not serve.

    ``beside`` is what the option cannot be combined with.
    """
    for feature in FEATURES:
        if feature.given and feature.is_refused(way) and feature.given(arguments):
            raise EngineError(f"{feature.options[0]} cannot be combined with {beside}")


def refuse_unsupported(config: Any) -> None:
    """Raise EngineError where passes on a lane would be wrong or are compared by no test."""
    refuse_used(config, "lane")


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
