"""Nexus's metrics on the server's own ``/metrics``.

The scheduler is in another process than the HTTP server. Its numbers travel as
prometheus_client lets those of a server of many processes travel: in a file that the one
process writes, a few bytes a step, and the other reads when it is asked.
"""

import os
import time
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Literal

from prometheus_client import REGISTRY
from prometheus_client.mmap_dict import MmapedDict, mmap_key
from prometheus_client.multiprocess import MultiProcessCollector

from nexus.runtime.vllm.watch import Tally

OF_ALL_PROCESSES = "PROMETHEUS_MULTIPROC_DIR"
"""Where vLLM itself keeps such files when it serves with several processes."""

COUNTERS = {
    "nexus_mode_steps": "Engine steps that computed something, by the plan's mode in force.",
    "nexus_steps_compared": (
        "Engine steps whose time the plan predicts: full batches, in the mode of the state's row."
    ),
    "nexus_step_predicted_seconds": "Predicted time of all steps compared, in seconds.",
    "nexus_step_measured_seconds": (
        "Measured time of all steps compared, in seconds; over the predicted time it should be"
        " near 1."
    ),
    "nexus_lane_failures": "Prompts that the prefill lane could not launch, served in batches instead.",
    "nexus_lane_prompt_tokens": "Prompt tokens launched on the prefill lane.",
}
GAUGES = {
    "nexus_batch_scale_ratio": (
        "Share of the plan's batch sizes in use: below 1 since steps took longer than the bound on"
        " the time between tokens allows."
    ),
    "nexus_realized_sms": "Streaming multiprocessors (on a CPU: cores) that a phase may use now.",
    "nexus_lane_prompts": "Prompts on the prefill lane now.",
    "nexus_lane_waiting_tokens": "Tokens of the prompts on the prefill lane that are not launched yet.",
    "nexus_lane_up": "1 while the prefill lane serves, 0 after a pass of it did not end.",
}


class SchedulerMetrics:
    """The scheduler's side: what it has counted, and the present levels."""

    def __init__(self, folder: Path, labels: Mapping[str, str], modes: Iterable[str]) -> None:
        """Write to ``folder``; every series has ``labels``. ``modes`` begin with 0 steps."""
        where = Path(os.environ.get(OF_ALL_PROCESSES, folder))
        self._labels = dict(labels)
        self._counters = _File(where, "counter")
        self._gauges = _File(where, "gauge_mostrecent")
        self._totals: dict[str, float] = {}
        for mode in modes:
            self.count("nexus_mode_steps", 0, mode=mode)
        self.steps(Tally())

    def steps(self, tally: Tally) -> None:
        """Steps that ended since the last call."""
        for mode, count in tally.steps.items():
            self.count("nexus_mode_steps", count, mode=mode)
        self.count("nexus_steps_compared", tally.compared)
        self.count("nexus_step_predicted_seconds", tally.predicted_s)
        self.count("nexus_step_measured_seconds", tally.measured_s)

    def count(self, name: str, amount: float, **labels: str) -> None:
        """Add ``amount`` to a counter."""
        key = self._key(name, f"{name}_total", COUNTERS[name], labels)
        self._totals[key] = self._totals.get(key, 0.0) + amount
        self._counters.write(key, self._totals[key])

    def level(self, name: str, value: float, **labels: str) -> None:
        """Set a gauge."""
        self._gauges.write(self._key(name, name, GAUGES[name], labels), value)

    def close(self) -> None:
        """Let go of the files, which stay as they are."""
        self._counters.close()
        self._gauges.close()

    def _key(self, family: str, name: str, text: str, labels: Mapping[str, str]) -> str:
        all_labels = {**self._labels, **labels}
        key: str = mmap_key(family, name, list(all_labels), list(all_labels.values()), text)
        return key


class _File:
    """One file of one process; its name tells prometheus_client what is in it."""

    def __init__(self, folder: Path, kind: Literal["counter", "gauge_mostrecent"]) -> None:
        path = str(folder / f"{kind}_nexus{os.getpid()}.db")
        self._values: Any = MmapedDict(path)  # type: ignore[no-untyped-call]

    def write(self, key: str, value: float) -> None:
        self._values.write_value(key, value, time.time())

    def close(self) -> None:
        self._values.close()


@contextmanager
def on_metrics_page(folder: Path) -> Iterator[None]:
    """The HTTP server's side: inside the block ``/metrics`` shows what is in ``folder``.

    With several HTTP servers vLLM collects the files of all processes itself.
    """
    if OF_ALL_PROCESSES in os.environ:
        yield
        return
    collector: Any = MultiProcessCollector(REGISTRY, str(folder))  # type: ignore[no-untyped-call]
    try:
        yield
    finally:
        REGISTRY.unregister(collector)
