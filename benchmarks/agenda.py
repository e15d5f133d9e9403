"""One call of ``nexus bench``: what to measure and in which order, the systems that decide first."""

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from nexus.benchmarks.machine import Here
from nexus.benchmarks.metrics import Objective
from nexus.benchmarks.results import Cell
from nexus.benchmarks.search import crossing, next_rate, on_grid
from nexus.benchmarks.systems import DECISIVE, System
from nexus.core.plan import Plan
from nexus.profiles.schema import Profile

# Of what a burst of requests was served at: below, near and above capacity.
_AROUND = (0.5, 0.8, 1.2)


@dataclass(frozen=True)
class Grid:
    """What the user asked for.

    ``rates`` are measured in any case, () for those that the search wants alone; workloads
    have rates of their own besides (``own_rates``), and those in ``fixed`` no others.
    ``plan_for`` are the bounds that plans are made for, () for all of ``objectives``; each
    plan serves the bounds that it is the loosest for, of those that imply them.
    ``plan_on`` is the workload that plans are made for, None for each its own.
    """

    systems: tuple[System, ...]
    workloads: tuple[str, ...]
    objectives: tuple[Objective, ...]
    rates: tuple[float, ...] = ()
    repeats: int = 2
    search: bool = True
    plan_for: tuple[Objective, ...] = ()
    plan_on: str | None = None
    own_rates: Mapping[str, tuple[float, ...]] = field(default_factory=dict)
    fixed: frozenset[str] = frozenset()

    def rates_of(self, workload: str) -> tuple[float, ...]:
        """What is measured of ``workload`` in any case."""
        own = self.own_rates.get(workload, ())
        return own if workload in self.fixed else (*self.rates, *own)

    def searches(self, workload: str) -> bool:
        """Whether crossings are looked for there."""
        return self.search and workload not in self.fixed


@dataclass(frozen=True)
class Job:
    """One call of ``nexus bench``.

    ``options`` go to every server. Plans are made from ``profile`` (read from ``source``) and
    kept in the folder ``plans``, or ``plan`` serves all. ``part`` names the file of results of
    one of several calls at a time. ``burst`` is how many requests at once show what a
    workload's capacity is, where no profile tells; ``minutes`` limits the whole call.
    """

    model: str
    here: Here
    options: tuple[str, ...]
    grid: Grid
    output: Path
    max_model_len: int
    max_num_seqs: int
    profile: Profile | None = None
    source: str = ""
    plans: Path | None = None
    plan: Plan | None = None
    part: str = ""
    duration_s: float = 60.0
    burst: int = 128
    warm_up: int = 16
    minutes: float | None = None
    keep_raw: bool = False


@dataclass(frozen=True)
class Deployment:
    """One server to start: a system and, for Nexus, what its plan is made for.

    Stock vLLM, and Nexus with a plan that was given, serve every workload.
    """

    system: System
    workloads: tuple[str, ...]
    objectives: tuple[Objective, ...]
    planned_for: Objective | None = None
    planned_on: str | None = None

    @property
    def label(self) -> str:
        """For people: ``nexus-deadline-plan@1000/25 on arxiv``."""
        if self.planned_for is None:
            return self.system.name
        return f"{self.system.name}@{self.planned_for.name} on {', '.join(self.workloads)}"


def deployments(grid: Grid, given: Objective | None) -> Iterator[Deployment]:
    """One for each plan and each stock system; ``given`` is a given plan's bounds.

    One start does all of a server's rates, workloads and bounds.
    """
    decisive = [system for system in grid.systems if system in DECISIVE]
    others = [system for system in grid.systems if system not in DECISIVE]
    for system in (*decisive, *others):
        if system.sharing is None or given is not None:
            bounds = None if system.sharing is None else given
            yield Deployment(system, grid.workloads, grid.objectives, bounds)
            continue
        groups = [grid.workloads] if grid.plan_on else [(name,) for name in grid.workloads]
        for workloads in groups:
            for planned_for, served in planned(grid).items():
                on = grid.plan_on or workloads[0]
                yield Deployment(system, workloads, served, planned_for, on)


def planned(grid: Grid) -> dict[Objective, tuple[Objective, ...]]:
    """The bounds that plans are made for, and those that each of them serves."""
    made_for = grid.plan_for or grid.objectives
    groups: dict[Objective, tuple[Objective, ...]] = {}
    for objective in grid.objectives:
        chosen = plan_serving(objective, made_for)
        if chosen is not None:
            groups[chosen] = (*groups.get(chosen, ()), objective)
    return groups


def plan_serving(objective: Objective, made_for: Iterable[Objective]) -> Objective | None:
    """Which plan serves ``objective``: its own, or the loosest whose bounds imply it."""
    made_for = list(made_for)
    if objective in made_for:
        return objective
    implying = [bounds for bounds in made_for if bounds.within(objective)]
    return max(implying, key=lambda one: (one.gap_ms, one.ttft_ms), default=None)


def wanted_rates(grid: Grid, burst_per_s: float | None) -> tuple[float, ...]:
    """The rates around a burst's, where none were asked for; () while nothing tells."""
    if grid.rates or burst_per_s is None:
        return grid.rates
    return tuple(on_grid(share * burst_per_s) for share in _AROUND)


def next_cell(
    grid: Grid,
    objectives: Sequence[Objective],
    measured: Sequence[Cell],
    rates: Sequence[float],
    expected: Mapping[Objective, float],
) -> tuple[float, int] | None:
    """The (rate, repeat) of a workload to measure next; None when all is done there.

    ``measured`` are the deployment's cells of the workload in their present setting,
    ``rates`` are to be measured in any case, crossings of ``objectives`` to be found, near
    where they are ``expected``. The search goes by first runs alone: repeats then show how
    sure the crossing is, and cannot send it astray.
    """
    first_runs = [cell for cell in measured if cell.key.repeat == 0]
    done = {(cell.key.rate, cell.key.repeat) for cell in measured}
    for rate in rates:
        if (rate, 0) not in done:
            return rate, 0
    for objective in objectives:
        start = expected.get(objective) or (sorted(rates)[len(rates) // 2] if rates else None)
        if start is not None:
            found = next_rate(attained(first_runs, objective), start)
            if found is not None:
                return found, 0
    edges = [crossing(attained(first_runs, objective)) for objective in objectives]
    again = [*rates, *(r for edge in edges for r in (edge.goodput, edge.above) if r)]
    for repeat in range(1, grid.repeats):
        for rate in again:
            if (rate, 0) in done and (rate, repeat) not in done:
                return rate, repeat
    return None


def attained(cells: Iterable[Cell], objective: Objective) -> dict[float, float]:
    """The share of requests that met ``objective`` at each rate: the mean over repeats."""
    shares: dict[float, list[float]] = {}
    for cell in cells:
        if cell.key.rate is not None:
            shares.setdefault(cell.key.rate, []).append(cell.attainment(objective))
    return {rate: sum(values) / len(values) for rate, values in shares.items()}
