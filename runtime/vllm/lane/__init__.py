"""The prefill lane: prompts computed beside decode steps. Other folders import from here alone.

Each name is imported when it is asked for: options need no vLLM, and a CPU no partitions.
"""

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from nexus.runtime.vllm.lane.attention import whole_cache as whole_cache
    from nexus.runtime.vllm.lane.connector import LaneConnector as LaneConnector
    from nexus.runtime.vllm.lane.driver import LaneDriver as LaneDriver
    from nexus.runtime.vllm.lane.driver import SerialLauncher as SerialLauncher
    from nexus.runtime.vllm.lane.options import lane_modes as lane_modes
    from nexus.runtime.vllm.lane.options import plug_in_graphs as plug_in_graphs
    from nexus.runtime.vllm.lane.options import plug_in_lane as plug_in_lane
    from nexus.runtime.vllm.lane.options import refuse_unservable as refuse_unservable
    from nexus.runtime.vllm.lane.partitions import Partitions as Partitions
    from nexus.runtime.vllm.lane.pass_inputs import Row as Row
    from nexus.runtime.vllm.lane.prefill_lane import LanePass as LanePass
    from nexus.runtime.vllm.lane.prefill_lane import PrefillLane as PrefillLane

_MODULES = {
    "attention": ("whole_cache",),
    "connector": ("LaneConnector",),
    "driver": ("LaneDriver", "SerialLauncher"),
    "options": ("lane_modes", "plug_in_graphs", "plug_in_lane", "refuse_unservable"),
    "partitions": ("Partitions",),
    "pass_inputs": ("Row",),
    "prefill_lane": ("LanePass", "PrefillLane"),
}


def __getattr__(name: str) -> Any:
    """One of the names above."""
    for module, names in _MODULES.items():
        if name in names:
            return getattr(import_module(f"{__name__}.{module}"), name)
    raise AttributeError(f"the prefill lane has no {name} for others")
