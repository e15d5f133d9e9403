"""What the profiler adds to vLLM's worker, called through ``collective_rpc``."""

import logging
from dataclasses import asdict
from importlib import import_module
from typing import Any

from nexus.errors import UserError
from nexus.profiler.points import Point


class ProfilerExtension:
    """Mixed into the worker class by ``--worker-extension-cls``.

    Its names carry the project's prefix: vLLM refuses an extension that shadows a
    worker's own.
    """

    def nexus_describe(self: Any) -> dict[str, Any]:
        """The model's shape and the engine's limits, as plain values."""
        config = self.vllm_config
        model, cache = config.model_config, config.cache_config
        kv_config = self.model_runner.kv_cache_config
        block_size = kv_config.kv_cache_groups[0].kv_cache_spec.block_size
        return {
            "num_layers": model.get_num_layers(config.parallel_config),
            "hidden_size": model.get_hidden_size(),
            "num_heads": model.get_num_attention_heads(config.parallel_config),
            "num_kv_heads": model.get_num_kv_heads(config.parallel_config),
            "head_size": model.get_head_size(),
            "dtype": str(model.dtype).removeprefix("torch."),
            "max_model_len": model.max_model_len,
            "max_num_batched_tokens": config.scheduler_config.max_num_batched_tokens,
            "max_num_seqs": config.scheduler_config.max_num_seqs,
            "block_size": block_size,
            "kv_tokens": (cache.num_gpu_blocks - 1) * block_size,
            "enforce_eager": bool(model.enforce_eager),
        }

    def nexus_measure(self: Any, point: dict[str, Any], way: str = "measure") -> dict[str, Any]:
        """Time one point (``Point`` as a dict); a failure is a sample with its reason.

        ``way`` is a meter's method: ``measure``, or on a GPU ``stock`` for a fused step.
        """
        wanted = Point(**point)
        try:
            return asdict(getattr(meter_of(self), way)(wanted))
        except (MemoryError, RuntimeError, AssertionError, UserError) as error:
            return asdict(wanted.sample(error=reason(error)))

    def nexus_kernels(self: Any, point: dict[str, Any]) -> list[dict[str, Any]]:
        """Kernel times by class at one solo point; none where CUPTI cannot tell."""
        try:
            return [asdict(sample) for sample in meter_of(self).kernels(Point(**point))]
        except (MemoryError, RuntimeError, AssertionError, UserError) as error:
            logging.getLogger("nexus").warning("no kernel times: %s", reason(error))
            return []

    def nexus_sizes(self: Any) -> list[int]:
        """Every SM count that a phase can be confined to, all of them last."""
        return list(meter_of(self).sizes())

    def nexus_pairs(self: Any) -> list[list[int]]:
        """Every split of the SMs: those of prefill, and of decode."""
        return [list(pair) for pair in meter_of(self).pairs()]


def meter_of(worker: Any) -> Any:
    """The worker's meter, made at its first use, and there as long as the worker.

    What was captured on a partition must not outlive it, so neither is ever given back.
    """
    if not hasattr(worker, "_nexus_meter"):
        module = "measure" if worker.device.type == "cpu" else "gpu"
        meter = import_module(f"nexus.profiler.{module}")  # each imports what it needs alone
        worker._nexus_meter = meter.Meter(worker)
    return worker._nexus_meter


def reason(error: BaseException) -> str:
    """What went wrong, as a sample says it."""
    text = (str(error).splitlines() or [""])[0][:200]
    return f"{type(error).__name__}: {text}"
