"""What a choice of modes rests on, and what a plan is made of before its table is."""

from dataclasses import dataclass
from functools import cached_property
from math import inf
from typing import Literal

from nexus.core.io.documents import Provenance
from nexus.core.machine import Engine
from nexus.core.plan import Axes, Mode, Plan, Prediction, Row, Shares
from nexus.core.slo import Bounds
from nexus.planner.latency.frontier import Outcomes, States, evaluate
from nexus.planner.latency.model import LatencyModel
from nexus.planner.search.capacity import Capacity, Traffic, solve_capacity, traffic_of
from nexus.planner.workload.requests import Lengths
from nexus.profiles.schema import Profile, training_samples

PlanPolicy = Literal["nexus", "nexus-paper", "fixed"]

NOTHING_PREDICTED = Prediction(0.0, "", 0.0, 0.0, 0.0, "")

_KV_SHARES = (1 / 64, 1 / 32, 1 / 16, 1 / 8, 1 / 4, 3 / 8, 1 / 2, 3 / 4, 0.9, 1)
_ENDLESS = 4  # largest backlog of the table, in largest chunks


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


@dataclass(frozen=True)
class Draft:
    """Everything of a plan but modes, rows and predictions."""

    problem: Problem
    profile: Profile
    axes: Axes
    provenance: Provenance

    @cached_property
    def _profile_hash(self) -> str:
        return self.profile.hash

    def plan(
        self,
        modes: list[Mode],
        rows: tuple[Row, ...],
        policy: PlanPolicy,
        shares: Shares | None = None,
    ) -> Plan:
        """The plan with these rows; modes that no row names are left out.

        With ``shares`` it is one for MPS.
        """
        used = {row.mode for row in rows}
        profile = self.profile
        return Plan(
            provenance=self.provenance,
            profile_hash=self._profile_hash,
            machine=profile.machine,
            model=profile.model,
            engine=profile.engine,
            bounds=self.problem.bounds,
            workload=self.problem.lengths.summary(),
            policy=policy,
            prediction=NOTHING_PREDICTED,
            axes=self.axes,
            modes={mode.name: mode for mode in modes if mode.name in used},
            rows=rows,
            partitioner="mps" if shares else "green",
            shares=shares,
        )


def axes_of(profile: Profile, modes: list[Mode]) -> Axes:
    """A grid over what was measured, up to the engine's limits.

    Batches are an eighth to a quarter apart: a state is looked up at the next one above
    it, so that coarse steps would plan for more load than there is.
    """
    engine = profile.engine
    most = max(sample.decode_batch for sample in training_samples(profile.samples))
    batches = [1]
    while batches[-1] < most:
        batches.append(batches[-1] + max(1, (1 << batches[-1].bit_length()) // 8))
    inside = {batch for batch in batches if batch < engine.max_num_seqs}
    chunks = sorted({mode.chunk for mode in modes})
    backlogs = {chunks[0], *chunks[::-2], _ENDLESS * chunks[-1]}
    return Axes(
        decode_batch=tuple(sorted({0, *inside, engine.max_num_seqs})),
        kv_tokens=tuple(sorted({max(1, round(engine.kv_tokens * s)) for s in _KV_SHARES})),
        prefill_backlog=(0, *sorted(backlogs)),
    )
