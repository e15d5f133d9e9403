"""vLLM's worker with graphs for the plan's batches, and with a prefill lane beside its steps."""

import gc
import os
import time
from functools import cached_property
from typing import Any

from nexus.core.plan import Plan, read_plan
from nexus.runtime.vllm import compat
from nexus.runtime.vllm.compat import (
    AttentionLayerBase,
    SchedulerOutput,
    current_platform,
    get_kv_transfer_group,
    get_layers_from_vllm_config,
    log,
)
from nexus.runtime.vllm.context import ServeContext
from nexus.runtime.vllm.graphs.sizes import mixed_sizes
from nexus.runtime.vllm.lane import (
    LaneConnector,
    LaneDriver,
    PrefillLane,
    SerialLauncher,
    whole_cache,
)
from nexus.runtime.vllm.trace import ServeTrace

_Worker: Any = compat.CPUWorker if current_platform.is_cpu() else compat.Worker


class PlannedWorker(_Worker):
    """What ``--worker-cls`` is set to for a plan of fused modes alone."""

    def compile_or_warm_up_model(self) -> Any:
        """As vLLM's, then the graphs of the plan's batches."""
        times = super().compile_or_warm_up_model()
        if not current_platform.is_cpu():
            self._capture_mixed()
        return times

    @cached_property
    def _nexus_plan(self) -> Plan:
        return read_plan(ServeContext.of(self.vllm_config).table)

    def _capture_mixed(self) -> None:
        from nexus.runtime.vllm.graphs.mixed import MixedGraphs, most_tokens

        sizes = mixed_sizes(self._nexus_plan, most_tokens(self.model_runner))
        if not sizes:
            log.info("steps with prompts: vLLM's own graphs")
            return
        start = time.perf_counter()
        graphs = MixedGraphs(self.model_runner, sizes)
        log.info(
            "steps with prompts: %d graphs of up to %d tokens took %.1f s",
            graphs.num_mixed,
            sizes[-1],
            time.perf_counter() - start,
        )


class LaneWorker(PlannedWorker):
    """The same for plans that share the GPU; runs each step in the partition of its mode."""

    _nexus_driver: LaneDriver | None = None
    _nexus_lanes: Any = None

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        """As vLLM calls it."""
        # Where layers with a window share a KV cache group with others, vLLM's CPU kernel
        # counts attention sinks too often once it splits a row's keys among cores.
        os.environ["VLLM_CPU_ATTN_SPLIT_KV"] = "0"
        super().__init__(*args, **kwargs)

    def get_kv_cache_spec(self) -> dict[str, Any]:
        """As vLLM's, with blocks for every token; raises EngineError for what no lane serves."""
        layers = get_layers_from_vllm_config(self.vllm_config, AttentionLayerBase)
        return whole_cache(super().get_kv_cache_spec(), layers.keys())

    def compile_or_warm_up_model(self) -> Any:
        """As vLLM's and the plan's, then the lanes' own."""
        times = super().compile_or_warm_up_model()
        start = time.perf_counter()
        context = ServeContext.of(self.vllm_config)
        trace = ServeTrace(context.trace) if context.trace else None
        lane = PrefillLane(self.model_runner)
        if current_platform.is_cpu():
            self._nexus_lanes = SerialLauncher(lane, trace)
        else:
            from nexus.runtime.vllm.lane import Partitions

            self._nexus_lanes = Partitions(self.model_runner, lane, self._nexus_plan, trace)
        self._nexus_driver = LaneDriver(self._nexus_lanes, lane.max_tokens, lane.max_rows)
        connector = get_kv_transfer_group()
        assert isinstance(connector, LaneConnector)
        connector.driver = self._nexus_driver
        log.info(
            "prefill lane: ready in %.1f s; %s",
            time.perf_counter() - start,
            self._nexus_lanes.describe(),
        )
        gc.collect()
        gc.freeze()  # as vLLM does with what lives as long as the server
        return times

    def execute_model(self, scheduler_output: SchedulerOutput) -> Any:
        """One step of vLLM, on the decode lane of the step's mode."""
        if self._nexus_driver is None:  # vLLM's own warm-up
            return super().execute_model(scheduler_output)
        mode = self._nexus_driver.begin_step(scheduler_output.kv_connector_metadata)
        with self._nexus_lanes.step(mode, scheduler_output):
            return super().execute_model(scheduler_output)

    def sample_tokens(self, grammar_output: Any) -> Any:
        """The second half of the same step."""
        if self._nexus_driver is None:
            return super().sample_tokens(grammar_output)
        with self._nexus_lanes.same_step():
            return super().sample_tokens(grammar_output)
