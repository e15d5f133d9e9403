"""What the profiler adds to vLLM's worker, called through ``collective_rpc``."""

import logging
from dataclasses import asdict
from importlib import import_module
from typing import Any

from nexus.core.machine import PARALLEL_SIZES
from nexus.profiler.points import Point

log = logging.getLogger("nexus")


class ProfilerExtension:
    """Mixed into the worker class by ``--worker-extension-cls``.

    Its names carry the project's prefix: vLLM refuses an extension that shadows a
    worker's own.
    """

    def nexus_describe(self: Any) -> dict[str, Any]:
        """The whole model's shape and the engine's limits, as plain values."""
        from nexus.runtime.vllm.compat import ParallelConfig, get_kv_cache_capacity

        config = self.vllm_config
        model, parallel, scheduler = (
            config.model_config,
            config.parallel_config,
            config.scheduler_config,
        )
        kv_config, whole = self.model_runner.kv_cache_config, ParallelConfig()
        kv_tokens, _ = get_kv_cache_capacity(config, kv_config)
        return {
            "num_layers": model.get_num_layers(whole),
            "hidden_size": model.get_hidden_size(),
            "num_heads": model.get_num_attention_heads(whole),
            "num_kv_heads": model.get_num_kv_heads(whole),
            "head_size": model.get_head_size(),
            "dtype": str(model.dtype).removeprefix("torch."),
            "max_model_len": model.max_model_len,
            "max_num_batched_tokens": scheduler.max_num_batched_tokens,
            "max_num_seqs": scheduler.max_num_seqs,
            "block_size": min(g.kv_cache_spec.block_size for g in kv_config.kv_cache_groups),
            "kv_tokens": kv_tokens,
            "enforce_eager": bool(model.enforce_eager),
            **{name: getattr(parallel, name) for name in PARALLEL_SIZES},
        }

    def nexus_measure(self: Any, point: dict[str, Any], way: str = "measure") -> dict[str, Any]:
        """Time one point (``Point`` as a dict); a failure is a sample with its reason.

        ``way`` is a meter's method: ``measure``, or on a GPU ``stock`` for a fused step.
        """
        wanted = Point(**point)
        try:
            return asdict(getattr(meter_of(self), way)(wanted))
        except Exception as error:
            log.debug("a point failed", exc_info=True)
            return asdict(wanted.sample(error=reason(error)))

    def nexus_kernels(self: Any, point: dict[str, Any]) -> list[dict[str, Any]]:
        """Kernel times by class at one solo point; none where CUPTI cannot tell."""
        try:
            return [asdict(sample) for sample in meter_of(self).kernels(Point(**point))]
        except Exception as error:  # noqa: BLE001  as above
            log.warning("no kernel times: %s", reason(error))
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
