"""The search for a system's goodput: where it is expected, which rate to measure next.

Rates lie on one geometric grid for all systems, so that their cells share the same
requests. A search begins where the simulator expects the crossing, goes from there in strides
that double while the crossing is not bracketed, and bisects down to neighbours.
"""

import json
import math
from collections.abc import Mapping
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path

import numpy as np

from nexus.benchmarks.metrics import Objective
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

STEPS_PER_OCTAVE = 12  # neighbours are 5.9 % apart
_OCTAVES = 5  # how far below its start the search gives up
_WIDE = 4  # a bracket of more steps is tried where the crossing is expected, if that is inside
_LONGEST = 8  # stride
_LOWEST, _HIGHEST = 0.25, 128.0  # requests per second between which crossings are looked for


@dataclass(frozen=True)
class Crossing:
    """Goodput as measured; rates in requests per second.

    ``goodput`` is the highest measured rate that is sustained (0: none was), ``above``
    the lowest measured rate over it that is not (null: none was found), ``estimate``
    where attainment falls through the required share between the two, by a straight line.
    """

    goodput: float
    above: float | None
    estimate: float

    @property
    def found(self) -> bool:
        """Whether the two are neighbours on the grid, or nothing at all is sustained."""
        if self.above is None:
            return False
        return self.goodput == 0.0 or index_of(self.above) - index_of(self.goodput) <= 1

    @property
    def at_least(self) -> float:
        """What goodput is surely not below, as far as was measured."""
        return self.estimate if self.found else self.goodput

    @property
    def at_most(self) -> float | None:
        """What goodput is surely not above; None where nothing says."""
        return self.estimate if self.found and self.goodput else self.above

    def __str__(self) -> str:
        """Such as ``16.3``, ``8 to 16``, ``≥ 16`` and ``< 2``; in requests per second."""
        if self.above is None:
            return f"≥ {self.goodput:.3g}"
        if self.goodput == 0.0:
            return f"< {self.above:.3g}"
        return f"{self.estimate:.3g}" if self.found else f"{self.goodput:.3g} to {self.above:.3g}"


def index_of(rate: float) -> int:
    """The grid point nearest to ``rate``."""
    return round(STEPS_PER_OCTAVE * math.log2(rate))


def rate_at(index: int) -> float:
    """The rate of a grid point, to four digits."""
    return float(f"{2 ** (index / STEPS_PER_OCTAVE):.4g}")


def on_grid(rate: float) -> float:
    """The grid's rate nearest to ``rate``."""
    return rate_at(index_of(rate))


def crossing(attained: Mapping[float, float]) -> Crossing:
    """Where attainment, a share for each measured rate, falls below what goodput needs."""
    good = max((rate for rate, share in attained.items() if share >= GOOD_REQUESTS), default=0.0)
    above = min((rate for rate in attained if rate > good), default=None)
    if good == 0.0 or above is None:
        return Crossing(good, above, good)
    fall = attained[good] - attained[above]
    part = (attained[good] - GOOD_REQUESTS) / fall
    return Crossing(good, above, round(good + part * (above - good), 4))


def next_rate(attained: Mapping[float, float], start: float) -> float | None:
    """The rate to measure next; None when the crossing is found, or given up.

    ``start`` is where it is expected.
    """
    seen = {index_of(rate): share for rate, share in attained.items()}
    expected = index_of(start)
    good = max((index for index, share in seen.items() if share >= GOOD_REQUESTS), default=None)
    above = min((index for index in seen if good is None or index > good), default=None)
    if good is not None and above is not None:
        if above - good <= 1:
            return None
        if above - good > _WIDE and good < expected < above:
            return rate_at(expected)
        return rate_at((good + above) // 2)
    if above is not None:  # nothing that was measured is sustained
        if above <= expected - _OCTAVES * STEPS_PER_OCTAVE:
            return None
        return rate_at(min(expected, above - _stride(expected - above)))
    if good is not None:
        return rate_at(max(expected, good + _stride(good - expected)))
    return rate_at(expected)


def _stride(gone: int) -> int:
    """The next stride after so many grid points away from where the search began."""
    return min(max(gone, 0) + 1, _LONGEST)


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
    """Of a machine's profile, with the servers' limits in tokens and sequences, and a run's time."""

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
    good = run.in_time(objective.bounds) & (gaps <= objective.gap_ms)
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
        of = self._forecast
        assert of is not None
        limits = f"{of.max_model_len} {of.max_num_seqs} {of.duration_s:g}s"
        plan = (who.plan_hash,) if who.plan_hash else ()
        return " ".join((of.profile.hash, limits, who.system.name, *plan, workload, objective.name))
