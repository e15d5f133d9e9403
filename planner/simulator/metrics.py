"""What a simulated run comes to, in the field's metrics."""

from dataclasses import dataclass

import numpy as np

from nexus.core.slo import Bounds
from nexus.core.spread import Spread
from nexus.planner.simulator.idle import IdleServer
from nexus.planner.simulator.simulate import Run

_NOTHING = Spread(0.0, 0.0, 0.0, 0.0)
_LONGEST = 0.1


@dataclass(frozen=True)
class Waits:
    """TTFT in ms, and slowdown: TTFT over the same prompt's on an idle server.

    ``_longest`` is of the tenth of the requests with the most prompt tokens to compute.
    """

    ttft_ms: Spread
    slowdown: Spread
    ttft_longest_ms: Spread
    slowdown_longest: Spread

    @classmethod
    def of(cls, run: Run, idle: IdleServer) -> "Waits":
        """Of all requests of ``run`` that were not refused."""
        served = np.isfinite(run.ttft_ms)
        ttft_ms, uncached = run.ttft_ms[served], run.uncached[served]
        slowdown = ttft_ms / idle.ttft_of(uncached)
        order = np.argsort(uncached, kind="stable")
        longest = order[-max(round(_LONGEST * len(order)), 1) :]
        values = (ttft_ms, slowdown, ttft_ms[longest], slowdown[longest])
        return cls(*(Spread.of(each) or _NOTHING for each in values))


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
            ttft_ms=Spread.of(run.ttft_ms) or _NOTHING,
            tbt_ms=Spread.of(1e3 * run.gaps_s) or _NOTHING,
            tpot_ms=Spread.of(run.tpot_ms) or _NOTHING,
            normalized_ms=Spread.of(latency_ms / run.outputs) or _NOTHING,
            requests_per_s=len(run.arrivals_s) / span,
            output_tokens_per_s=float(run.outputs.sum()) / span,
            attainment=run.attainment(bounds),
            preemptions=run.preemptions,
        )
