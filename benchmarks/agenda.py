"""What to measure and in which order: the cells that decide first."""

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import Literal

from nexus.benchmarks.metrics import Objective
from nexus.benchmarks.results import Cell
from nexus.benchmarks.search import crossing, next_rate, on_grid
from nexus.benchmarks.systems import DECISIVE, System

Stage = Literal["rates", "search", "repeats"]
STAGES: tuple[Stage, ...] = ("rates", "search", "repeats")

# Of what a burst of requests was served at: below, near and above capacity.
_AROUND = (0.5, 0.8, 1.2)


@dataclass(frozen=True)
class Grid:
    """What the user asked for; ``rates`` () are chosen around what a burst is served at."""

    systems: tuple[System, ...]
    workloads: tuple[str, ...]
    objectives: tuple[Objective, ...]
    rates: tuple[float, ...] = ()
    repeats: int = 2
    search: bool = True


@dataclass(frozen=True)
class Deployment:
    """One server to start: a system and, for Nexus, what its plan is made for.

    Stock vLLM, and Nexus with a plan that was given, serve every workload.
    """

    system: System
    workloads: tuple[str, ...]
    objectives: tuple[Objective, ...]
    planned_for: Objective | None = None

    @property
    def label(self) -> str:
        """For people: ``nexus-spf-plan@1000/25 on arxiv``."""
        if self.planned_for is None:
            return self.system.name
        return f"{self.system.name}@{self.planned_for.name} on {', '.join(self.workloads)}"


@dataclass(frozen=True)
class Task:
    """Some stages of one deployment."""

    deployment: Deployment
    stages: tuple[Stage, ...]


def deployments(grid: Grid, systems: Iterable[System], given: Objective | None) -> list[Deployment]:
    """One for each plan, and one for each stock system; ``given`` is a given plan's bounds."""
    made = []
    for system in systems:
        if system.sharing is None:
            made.append(Deployment(system, grid.workloads, grid.objectives))
        elif given is not None:
            made.append(Deployment(system, grid.workloads, grid.objectives, given))
        else:
            made += [
                Deployment(system, (workload,), (objective,), objective)
                for workload in grid.workloads
                for objective in grid.objectives
            ]
    return made


def agenda(grid: Grid, given: Objective | None, in_haste: bool) -> Iterator[Task]:
    """Tasks in order: the decisive systems before the others.

    ``in_haste`` (the time is limited) finishes each stage of all systems before the
    next, at the price of more engine starts.
    """
    decisive = [system for system in grid.systems if system in DECISIVE]
    others = [system for system in grid.systems if system not in DECISIVE]
    wanted = tuple(stage for stage in STAGES if grid.search or stage != "search")
    steps: Sequence[tuple[Stage, ...]] = [(stage,) for stage in wanted] if in_haste else [wanted]
    for group in (decisive, others):
        for stages in steps:
            for deployment in deployments(grid, group, given):
                yield Task(deployment, stages)


def wanted_rates(grid: Grid, burst_per_s: float | None) -> tuple[float, ...]:
    """The rates that every system is measured at; none while there is nothing to go by."""
    if grid.rates or burst_per_s is None:
        return grid.rates
    return tuple(on_grid(share * burst_per_s) for share in _AROUND)


def next_cell(
    grid: Grid,
    task: Task,
    measured: Sequence[Cell],
    burst_per_s: float | None,
) -> tuple[float, int] | None:
    """The (rate, repeat) of a workload to measure next; None when the task is done there.

    ``measured`` are this deployment's cells of the workload in their present setting. The
    search goes by first runs alone: repeats then show how sure the crossing is, and
    cannot send it astray.
    """
    first_runs = [cell for cell in measured if cell.key.repeat == 0]
    done = {(cell.key.rate, cell.key.repeat) for cell in measured}
    rates = wanted_rates(grid, burst_per_s)
    first = ((rate, 0) for rate in rates if (rate, 0) not in done)
    if "rates" in task.stages and (cell := next(first, None)):
        return cell
    objectives = task.deployment.objectives if grid.search else ()
    if "search" in task.stages and rates:
        for objective in objectives:
            rate = next_rate(attained(first_runs, objective), sorted(rates)[len(rates) // 2])
            if rate is not None:
                return rate, 0
    if "repeats" in task.stages:
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
