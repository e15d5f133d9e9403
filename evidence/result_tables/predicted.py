"""Each measured run beside the simulator's own of the same requests."""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace

from nexus.benchmarks.results import Cell, PlanUsed
from nexus.benchmarks.search import Candidate, Forecast
from nexus.benchmarks.systems import SYSTEMS, number_in
from nexus.core.plan import Plan
from nexus.core.slo import Bounds
from nexus.core.spread import Spread
from nexus.planner.simulator.metrics import Metrics
from nexus.planner.simulator.simulate import Run
from nexus.profiles.schema import Profile

MEDIAN_WITHIN, TAIL_WITHIN = 0.10, 0.20  # of what was measured: p50 of TTFT and TBT, and p95
_BUSY = 0.9  # of capacity: beyond it a prediction's error grows without limit
_QUEUES_S = 2.0  # TTFT that keeps growing beyond this shows an overload
_LOOSE = Bounds(1e9, 1e9)


@dataclass(frozen=True)
class Pair:
    """A run as measured and as predicted; ``busy``: beyond 90 % of the simulated capacity."""

    cell: Cell
    ttft: Spread
    tbt: Spread
    busy: bool

    @property
    def errors(self) -> dict[str, float]:
        """Relative errors of the predictions, by figure: 0.1 is 10 % too much."""
        assert self.cell.metrics is not None
        measured = {"TTFT": self.cell.metrics.ttft, "TBT": self.cell.metrics.tbt}
        told = {"TTFT": self.ttft, "TBT": self.tbt}
        return {
            f"{name} {part}": getattr(told[name], part) / getattr(seen, part) - 1.0
            for name, seen in measured.items()
            for part in ("p50", "p95")
            if seen is not None
        }

    @property
    def good(self) -> bool:
        """Whether all four are near enough."""
        return all(
            abs(error) <= (MEDIAN_WITHIN if name.endswith("p50") else TAIL_WITHIN)
            for name, error in self.errors.items()
        )


class Predictor:
    """The simulator, with the profiles and plans that runs were made with."""

    def __init__(self, profiles: Sequence[Profile], plans: Sequence[Plan]) -> None:
        """A plan made again stands for the one that a run was made with where both name the same
        modes for as many states: figures in it that are not served may differ.
        """
        self._profiles = {profile.hash: profile for profile in profiles}
        self._usual = {
            profile.model.config_hash: profile
            for profile in profiles
            if profile.partitioner == "green"
        }
        self._plans = {_served(PlanUsed.of(plan)): plan for plan in plans}
        self._forecasts: dict[tuple[str, int, int, float], Forecast] = {}

    def pairs(self, cells: Iterable[Cell]) -> list[Pair]:
        """Of every run that succeeded and whose profile and plan are known."""
        return [pair for cell in cells if (pair := self._pair(cell)) is not None]

    def _pair(self, cell: Cell) -> Pair | None:
        used, rate = cell.setting.plan, cell.key.rate
        plan = None if used is None else self._plans.get(_served(used))
        system = SYSTEMS.get(cell.key.system)
        forecast = self._forecast(cell, plan)
        if system is None or rate is None or cell.metrics is None or forecast is None:
            return None
        if used is not None and plan is None:
            return None
        who = Candidate(system, plan)
        run = forecast.run(who, cell.key.workload, rate, cell.key.repeat)
        told = Metrics.of(run, rate, _LOOSE)
        harder = forecast.run(who, cell.key.workload, rate / _BUSY, cell.key.repeat)
        return Pair(cell, told.ttft_ms, told.tbt_ms, overloaded(harder))

    def _forecast(self, cell: Cell, plan: Plan | None) -> Forecast | None:
        """With the profile that the plan was made from; for stock vLLM, the model's."""
        setting = cell.setting
        profile = self._usual.get(setting.model_hash)
        if plan is not None:
            profile = self._profiles.get(plan.profile_hash)
        if profile is None:
            return None
        words = tuple(setting.command.split())
        longest = number_in(words, "--max-model-len")
        most = number_in(words, "--max-num-seqs")
        key = (profile.hash, longest, most, setting.duration_s)
        if key not in self._forecasts:
            self._forecasts[key] = Forecast(profile, longest, most, setting.duration_s)
        return self._forecasts[key]


def _served(used: PlanUsed) -> str:
    """What a plan does, but for figures that no server reads."""
    return str(replace(used, hash=""))


def overloaded(run: Run) -> bool:
    """Whether the queue grew all along."""
    third = max(len(run.ttft_ms) // 3, 1)
    early, late = run.ttft_ms[:third].mean(), run.ttft_ms[-third:].mean()
    return bool(late > 2 * early and late > 1e3 * _QUEUES_S)
