"""How Nexus's workers get into vLLM's options, and what cannot be combined with the lane."""

import argparse
import logging
from typing import Any

from nexus.core.errors import EngineError
from nexus.core.machine import Machine
from nexus.core.plan import Plan
from nexus.runtime.machine import seen_apart
from nexus.runtime.vllm.support.unsupported import refuse_unsupported

_WORKERS = "nexus.runtime.vllm.worker"

log = logging.getLogger("nexus")


def lane_modes(plan: Plan) -> list[str]:
    """Names of the plan's modes that run prefill beside decode."""
    return sorted(name for name, mode in plan.modes.items() if mode.mode != "fused")


def plug_in_graphs(arguments: argparse.Namespace, machine: Machine) -> None:
    """Set the worker that captures a plan's batches, where it is not taken."""
    if machine.device == "cuda" and arguments.worker_cls == "auto":
        arguments.worker_cls = f"{_WORKERS}.PlannedWorker"


def plug_in_lane(arguments: argparse.Namespace, plan: Plan, machine: Machine) -> None:
    """Set connector and worker."""
    from nexus.runtime.vllm.compat import KVTransferConfig
    from nexus.runtime.vllm.lane.connector import transfer_config

    modes = ", ".join(lane_modes(plan))
    if machine.device == "cpu":
        log.warning("nexus: no partitions on a CPU; in %s prefill and decode take turns", modes)
    arguments.kv_transfer_config = KVTransferConfig(**transfer_config())
    arguments.worker_cls = f"{_WORKERS}.LaneWorker"


def refuse_unservable(config: Any, plan: Plan) -> None:
    """Raise EngineError where vLLM's whole configuration leaves the lane no way to serve.

    And PartitionError where the driver has other partitions than the plan names.
    """
    on_gpu = config.device_config.device_type == "cuda"
    try:
        refuse_unsupported(config)
        if on_gpu and not config.use_v2_model_runner:
            raise EngineError("the prefill lane does not support vLLM's V1 model runner on a GPU")
    except EngineError as error:
        raise EngineError(f"{error} (the plan has {', '.join(lane_modes(plan))})") from None
    if on_gpu:
        from nexus.runtime.partition.green import check_partitions

        seen_apart(check_partitions, [plan.modes[name] for name in lane_modes(plan)])
