"""What the simulator expects of a system: where its goodput is, and what a run comes to."""

import json
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path

import numpy as np

from nexus.benchmarks.metrics import Objective
from nexus.benchmarks.search import index_of, rate_at
from nexus.benchmarks.systems import System
from nexus.benchmarks.workloads import highest_rate, requests_at
from nexus.core.io.outputs import write_atomically
from nexus.core.plan import Plan
from nexus.core.slo import GOOD_REQUESTS
from nexus.planner.latency.model import fit_model
from nexus.planner.latency.steptimes import StepTimes
from nexus.planner.simulator.simulate import Run, simulate, stock_system
from nexus.planner.simulator.simulate import System as Imagined
from nexus.profiles.schema import Profile

_LOWEST, _HIGHEST = 0.25, 128.0  # requests per second between which crossings are looked for


@dataclass(frozen=True)
class Candidate:
    """A system, and the plan it serves with unless it is stock vLLM, with the plan's hash."""

    system: System
    plan: Plan | None = None
    plan_hash: str = ""

    def imagined(self, default_tokens: int) -> Imagined:
        """As the simulator knows it; ``default_tokens`` is vLLM's own token budget."""
        plan, system = self.plan, self.system
        if plan is None:
            return replace(stock_system(system.budget or default_tokens), name=system.name)
        if plan.shares is not None:
            (mode,) = plan.modes.values()
            return Imagined(system.name, mode, shares=plan.shares)
        return Imagined(system.name, plan=plan, order=system.order)


@dataclass(frozen=True)
class Forecast:
    """Of one machine's profile.

    ``max_model_len`` (tokens) and ``max_num_seqs`` are the servers', ``duration_s`` a run's.
    """

    profile: Profile
    max_model_len: int
    max_num_seqs: int
    duration_s: float

    def run(self, who: Candidate, workload: str, rate: float, repeat: int = 0) -> Run:
        """The run of a cell, request for request."""
        requests = requests_at(workload, rate, self.duration_s, repeat, self.max_model_len)
        engine = replace(self.profile.engine, max_num_seqs=self.max_num_seqs)
        imagined = who.imagined(engine.max_num_batched_tokens)
        return simulate(self._times, engine, requests, imagined)

    def goodput(self, who: Candidate, workload: str, objective: Objective) -> float:
        """The grid's highest rate that is sustained; the lowest there is if none is."""
        highest = min(_HIGHEST, highest_rate(workload, self.duration_s))
        low, high = index_of(_LOWEST), index_of(highest)
        while high - low > 1:
            middle = (low + high) // 2
            run = self.run(who, workload, rate_at(middle))
            if met(run, objective) >= GOOD_REQUESTS:
                low = middle
            else:
                high = middle
        return rate_at(low)

    @cached_property
    def _times(self) -> StepTimes:
        return StepTimes(fit_model(self.profile))


def met(run: Run, objective: Objective) -> float:
    """The share of requests that meet ``objective``."""
    if not objective.tpot:
        return run.attainment(objective.bounds)
    gaps = np.zeros(len(run.outputs))
    gaps[run.outputs > 1] = run.tpot_ms
    good = (run.ttft_ms <= objective.ttft_ms) & (gaps <= objective.gap_ms)
    return float(good.mean())


class Forecasts:
    """Crossings that are simulated once, and kept in a file if there is one."""

    def __init__(self, forecast: Forecast | None, path: Path | None) -> None:
        """Without a forecast, what ``path`` holds is all there is."""
        self._forecast, self._path = forecast, path
        self._known: dict[str, float] = {}
        if path is not None and path.exists():
            self._known = json.loads(path.read_text(encoding="utf-8"))

    def of(self, who: Candidate, workload: str, objective: Objective) -> float | None:
        """Where ``who`` is expected to cross; None if nothing says."""
        if self._forecast is None:
            return None
        name = self._name(who, workload, objective)
        if name not in self._known:
            self._known[name] = self._forecast.goodput(who, workload, objective)
            if self._path is not None:
                write_atomically(self._path, json.dumps(self._known, indent=1) + "\n")
        return self._known[name]

    def _name(self, who: Candidate, workload: str, objective: Objective) -> str:
        words = (self._conditions, who.system.name, who.plan_hash, workload, objective.name)
        return " ".join(filter(None, words))

    @cached_property
    def _conditions(self) -> str:
        forecast = self._forecast
        assert forecast is not None
        limits = f"{forecast.max_model_len} {forecast.max_num_seqs}"
        return f"{forecast.profile.hash} {limits} {forecast.duration_s:g}s"
