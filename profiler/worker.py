"""What the profiler adds to vLLM's worker, called through ``collective_rpc``."""

from dataclasses import asdict
from typing import Any

from nexus.profiler.points import Point
from nexus.profiler.steps import StepDriver


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

    def nexus_measure(self: Any, point: dict[str, Any]) -> dict[str, Any]:
        """Time one point (``Point`` as a dict); a failure is a sample with its reason."""
        wanted = Point(**point)
        try:
            return asdict(_measure(self, wanted))
        except (MemoryError, RuntimeError) as error:
            reason = (str(error).splitlines() or [""])[0][:200]
            return asdict(wanted.sample(error=f"{type(error).__name__}: {reason}"))


def _measure(worker: Any, point: Point) -> Any:
    driver = getattr(worker, "_nexus_driver", None)
    if driver is None:
        driver = worker._nexus_driver = StepDriver(worker)
    if worker.device.type == "cpu":
        from nexus.profiler.measure import measure_on_cores

        return measure_on_cores(driver, point)
    raise RuntimeError(f"no way to measure on {worker.device.type}")
