"""Nexus's metrics on the server's own ``/metrics``.

vLLM carries a connector's statistics from the scheduler to the front end with every step,
and lets the connector's class register what becomes of them there.
"""

from collections import Counter as Counts
from typing import Any

from prometheus_client import Counter, Gauge
from typing_extensions import override
from vllm.distributed.kv_transfer.kv_connector.v1.metrics import (
    KVConnectorPromMetrics,
    KVConnectorStats,
)

from nexus.runtime.vllm.watch import Tally


class LaneStats(KVConnectorStats):
    """One interval: ``data`` has ``added`` (amounts), ``modes`` (steps) and ``now`` (levels)."""

    @classmethod
    def of(
        cls, tally: Tally, failures: int, prompt_tokens: int, now: dict[str, int]
    ) -> "LaneStats":
        """``failures`` and ``prompt_tokens`` are the lane's in the interval."""
        added = {
            "steps_compared": tally.compared,
            "step_predicted_seconds": tally.predicted_s,
            "step_measured_seconds": tally.measured_s,
            "lane_failures": failures,
            "lane_prompt_tokens": prompt_tokens,
        }
        return cls({"added": added, "modes": dict(tally.steps), "now": now})

    @override
    def reset(self) -> None:
        self.data: dict[str, Any] = {}

    @override
    def aggregate(self, other: KVConnectorStats) -> "LaneStats":
        """Both intervals together."""
        if other.is_empty():
            return self
        if not self.data:
            return LaneStats(other.data)
        both = {
            kind: dict(Counts(self.data[kind]) + Counts(other.data[kind]))
            for kind in ("added", "modes")
        }
        return LaneStats({**both, "now": other.data["now"]})

    @override
    def reduce(self) -> dict[str, int | float]:
        return {}

    @override
    def is_empty(self) -> bool:
        return not self.data


class UnloggedStats(LaneStats):
    """As the front end sees them: vLLM's line of transfer statistics would tell nothing."""

    @override
    def is_empty(self) -> bool:
        return True


_COUNTERS = {
    "steps_compared": "Steps whose time the plan predicts.",
    "step_predicted_seconds": "Their predicted time.",
    "step_measured_seconds": "Their measured time.",
    "lane_failures": "Prompts that the prefill lane could not launch, served fused instead.",
    "lane_prompt_tokens": "Prompt tokens launched on the prefill lane.",
}
_GAUGES = {
    "lane_prompts": "Prompts on the prefill lane.",
    "lane_waiting_tokens": "Tokens of theirs that are not launched yet.",
    "lane_up": "1 while the prefill lane serves, 0 after it got stuck.",
}


class LaneMetrics(KVConnectorPromMetrics):
    """Registered in the front end's process, one series per engine."""

    def __init__(
        self,
        vllm_config: Any,
        metric_types: Any,
        labelnames: list[str],
        per_engine_labelvalues: dict[int, list[object]],
    ) -> None:
        """As vLLM calls it."""
        super().__init__(vllm_config, metric_types, labelnames, per_engine_labelvalues)
        counter, gauge = metric_types[Counter], metric_types[Gauge]

        def level(name: str, text: str, labels: list[str]) -> Any:
            return gauge(name, text, multiprocess_mode="mostrecent", labelnames=labels)

        self._modes = counter("nexus_mode_steps", "Steps by mode.", [*labelnames, "mode"])
        self._sms = level("nexus_realized_sms", "SMs a phase may use.", [*labelnames, "phase"])
        self._counters = {n: counter(f"nexus_{n}", t, labelnames) for n, t in _COUNTERS.items()}
        self._gauges = {n: level(f"nexus_{n}", t, labelnames) for n, t in _GAUGES.items()}

    @override
    def observe(self, transfer_stats_data: dict[str, Any], engine_idx: int = 0) -> None:
        """Add one interval."""
        labels = self.per_engine_labelvalues[engine_idx]
        for name, steps in transfer_stats_data["modes"].items():
            self._modes.labels(*labels, name).inc(steps)
        for name, amount in transfer_stats_data["added"].items():
            self._counters[name].labels(*labels).inc(amount)
        now = transfer_stats_data["now"]
        for name, metric in self._gauges.items():
            metric.labels(*labels).set(now[name])
        for phase in ("prefill", "decode"):
            self._sms.labels(*labels, phase).set(now[f"{phase}_sms"])
