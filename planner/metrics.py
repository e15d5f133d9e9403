"""What a simulated run comes to, in the field's metrics."""

from dataclasses import dataclass

import numpy as np

from nexus.planner.fit import Floats
from nexus.planner.simulate import Run
from nexus.planner.table import Bounds


@dataclass(frozen=True)
class Spread:
    """Mean and percentiles, in milliseconds."""

    mean: float
    p50: float
    p95: float
    p99: float

    @classmethod
    def of(cls, values: Floats) -> "Spread":
        """Over ``values`` of shape (n,); zeros when there are none."""
        if values.size == 0:
            return cls(0.0, 0.0, 0.0, 0.0)
        p50, p95, p99 = np.quantile(values, [0.5, 0.95, 0.99])
        return cls(float(values.mean()), float(p50), float(p95), float(p99))

    def __str__(self) -> str:
        """One line."""
        return (
            f"mean {self.mean:9.2f}  p50 {self.p50:9.2f}  p95 {self.p95:9.2f}  p99 {self.p99:9.2f}"
        )


@dataclass(frozen=True)
class Metrics:
    """Latencies in ms, throughput, and ``attainment``: the share within both bounds.

    ``normalized_ms`` is a request's latency divided by its output tokens.
    """

    rate_per_s: float
    ttft_ms: Spread
    tbt_ms: Spread
    tpot_ms: Spread
    normalized_ms: Spread
    requests_per_s: float
    output_tokens_per_s: float
    attainment: float
    preemptions: int

    @classmethod
    def of(cls, run: Run, rate_per_s: float, bounds: Bounds) -> "Metrics":
        """Summarise ``run``."""
        span = max(run.end_s - float(run.arrivals_s[0]), 1e-9)
        latency_ms = 1e3 * (run.last_token_s - run.arrivals_s)
        return cls(
            rate_per_s=rate_per_s,
            ttft_ms=Spread.of(run.ttft_ms),
            tbt_ms=Spread.of(1e3 * run.gaps_s),
            tpot_ms=Spread.of(run.tpot_ms),
            normalized_ms=Spread.of(latency_ms / run.outputs),
            requests_per_s=len(run.arrivals_s) / span,
            output_tokens_per_s=float(run.outputs.sum()) / span,
            attainment=run.attainment(bounds),
            preemptions=run.preemptions,
        )
