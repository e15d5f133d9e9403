"""What a choice of modes rests on, in one value."""

from dataclasses import dataclass
from math import inf

from nexus.core.machine import Engine
from nexus.core.plan import Mode
from nexus.core.slo import Bounds
from nexus.planner.latency.frontier import Outcomes, States, evaluate
from nexus.planner.latency.model import LatencyModel
from nexus.planner.search.capacity import Capacity, Traffic, solve_capacity, traffic_of
from nexus.planner.workload.requests import Lengths


@dataclass(frozen=True)
class Problem:
    """Everything that a choice of modes rests on."""

    model: LatencyModel
    engine: Engine
    bounds: Bounds
    lengths: Lengths

    def traffic(self, modes: list[Mode], bounds: Bounds | None = None) -> Traffic:
        """What ``modes`` do in each level; where nothing decodes, no TBT binds."""
        bounds = bounds or self.bounds
        tbt_ms = bounds.tbt_ms if self.lengths.decodes else inf
        ttft_ms = bounds.ttft_ms_for(self.lengths.prefill_mean)
        return traffic_of(self.model, modes, self.engine, self.lengths, ttft_ms, tbt_ms)

    def capacity(self, modes: list[Mode], bounds: Bounds | None = None) -> Capacity:
        """The highest rate that any use of ``modes`` sustains."""
        traffic = self.traffic(modes, bounds)
        return solve_capacity(traffic, self.lengths.prefill_mean, self.lengths.decode_steps)

    def outcomes(self, modes: list[Mode], states: list[tuple[int, int, int]]) -> Outcomes:
        """What ``modes`` give in ``states``."""
        return evaluate(
            self.model,
            modes,
            States.of(states),
            self.lengths,
            self.engine.max_num_batched_tokens,
        )
