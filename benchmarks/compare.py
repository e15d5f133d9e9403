"""Systems side by side: who sustains which rate at which bounds, and by how much."""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import NamedTuple

from nexus.benchmarks.agenda import attained, plan_serving
from nexus.benchmarks.metrics import Objective
from nexus.benchmarks.results import Cell
from nexus.benchmarks.search import Crossing, crossing
from nexus.benchmarks.systems import SYSTEMS
from nexus.core.spread import Spread

STOCK = tuple(name for name, system in SYSTEMS.items() if system.sharing is None)
DEFAULT = "vllm-default"

_LONG_S = 60.0
_NEAR = 0.5  # within bounds: with less at every rate, they were rates for other bounds


@dataclass(frozen=True)
class Ratio:
    """What a goodput ratio is surely not below, and not above; 0 and None where nothing says.

    The two differ where a crossing was not bracketed to neighbours.
    """

    at_least: float
    at_most: float | None

    @property
    def worst(self) -> float:
        """The end that is worse for who is compared, of those that are known."""
        return self.at_least or self.at_most or 0.0

    def reaches(self, times: float) -> bool | None:
        """Whether it is at least ``times``; None where its ends do not tell."""
        if self.at_least >= times:
            return True
        return False if self.at_most is not None and self.at_most < times else None

    def __str__(self) -> str:
        """Such as ``1.13×``, ``≥ 1.38×``, ``≤ 0.24×`` and ``0.98× to 1.06×``."""
        least, most = f"{self.at_least:.2f}×", f"{self.at_most or 0.0:.2f}×"
        if not self.at_least:
            return f"≤ {most}"
        if self.at_most is None:
            return f"≥ {least}"
        return least if least == most else f"{least} to {most}"


@dataclass(frozen=True)
class Table:
    """All runs of one model on one machine, under one workload; each cell once.

    Runs of a minute and more are not in a table with shorter ones: a trace's bursts are longer.
    """

    model: str
    machine: str
    workload: str
    cells: tuple[Cell, ...]

    @property
    def arrivals(self) -> str:
        """For how long requests arrived: ``60 s``, ``30 to 45 s``."""
        durations = {cell.setting.duration_s for cell in self.cells}
        least, most = min(durations), max(durations)
        return f"{most:g} s" if least == most else f"{least:g} to {most:g} s"

    @property
    def title(self) -> str:
        """Such as ``llama-3.1-8b, azure_conv, 60 s of arrivals``."""
        return f"{self.model}, {self.workload}, {self.arrivals} of arrivals"

    @property
    def systems(self) -> list[str]:
        """Those measured, in the order of all there are."""
        there = {cell.key.system for cell in self.cells}
        return [name for name in SYSTEMS if name in there]

    def of(self, system: str, objective: Objective) -> list[Cell]:
        """The system's runs that count for ``objective``: with the plan that serves it."""
        own = [cell for cell in self.cells if cell.key.system == system]
        if system in STOCK:
            return own
        names = sorted({cell.key.objective for cell in own if cell.key.objective})
        chosen = plan_serving(objective, map(Objective.parse, names))
        return [cell for cell in own if chosen is not None and cell.key.objective == chosen.name]

    def crossing(self, system: str, objective: Objective) -> Crossing | None:
        """Its goodput as measured, None where it did not run."""
        shares = attained(self.of(system, objective), objective)
        return crossing(shares) if shares else None

    def best_stock(self, objective: Objective) -> tuple[str, Crossing] | None:
        """The stock setting with the highest goodput, or the one that may have it.

        Where nothing says how high one of them goes: the one that surely goes highest, open
        upwards. Those that only ran far beyond what they sustain count if there are no others.
        """
        shares = {name: attained(self.of(name, objective), objective) for name in STOCK}
        ran = {name: at for name, at in shares.items() if at}
        near = {name: at for name, at in ran.items() if max(at.values()) >= _NEAR}
        there = [(name, crossing(at)) for name, at in (near or ran).items()]
        if any(edge.at_most is None for _, edge in there):
            name, edge = max(there, key=lambda one: one[1].at_least)
            return name, Crossing(edge.at_least, None, edge.at_least)
        return max(there, key=_most, default=None)

    def ratio(self, system: str, objective: Objective, over: str | None = None) -> Ratio | None:
        """Its goodput over that of ``over``, else of the best stock setting.

        None where nothing is known of it.
        """
        if over is not None:
            other = self.crossing(over, objective)
        else:
            best = self.best_stock(objective)
            other = None if best is None else best[1]
        own = self.crossing(system, objective)
        if own is None or other is None:
            return None
        least, most = other.at_least, other.at_most
        at_least = own.at_least / most if most else 0.0
        at_most = own.at_most / least if own.at_most and least else None
        return Ratio(at_least, at_most) if at_least or at_most else None

    def at_same_rate(self, system: str, other: str) -> list[tuple[Cell, Cell]]:
        """Runs of both on the very same requests."""
        theirs = {_which(cell): cell for cell in self.cells if cell.key.system == other}
        return [
            (cell, theirs[_which(cell)])
            for cell in self.cells
            if cell.key.system == system and _which(cell) in theirs
        ]


def _most(pair: tuple[str, Crossing]) -> tuple[float, float]:
    return pair[1].at_most or 0.0, pair[1].estimate


def _which(cell: Cell) -> tuple[float | None, int, str]:
    return cell.key.rate, cell.key.repeat, cell.setting.requests_hash


def tables_of(cells: Iterable[Cell]) -> list[Table]:
    """One for each model, machine, workload and kind of duration; bursts are left out.

    Of each workload those of long runs are first.
    """
    groups: dict[tuple[str, str, str], dict[bool, list[Cell]]] = {}
    for cell in latest(cells):
        if cell.key.rate is not None:
            place = (cell.setting.model, cell.setting.machine.name, cell.key.workload)
            groups.setdefault(place, {}).setdefault(_is_long(cell), []).append(cell)
    return [
        Table(*place, tuple(kinds[is_long]))
        for place, kinds in groups.items()
        for is_long in (True, False)
        if is_long in kinds
    ]


def _is_long(cell: Cell) -> bool:
    return cell.setting.duration_s >= _LONG_S


def latest(cells: Iterable[Cell]) -> list[Cell]:
    """Of each cell of the grid on each machine, the one measured last."""
    found = {
        (cell.setting.model, cell.setting.machine.name, cell.key, _is_long(cell)): cell
        for cell in cells
    }
    return list(found.values())


@dataclass(frozen=True)
class Duel:
    """One figure of a Nexus system's run over the same of a stock system's: 0.5 is half.

    ``planned_for`` names the bounds of the system's plan, ``rate`` is in requests per second.
    """

    table: Table
    system: str
    planned_for: str
    rate: float
    repeat: int
    ratio: float

    @property
    def plan(self) -> str:
        """Whose run it is: ``nexus-deadline-plan@1000/25``."""
        return f"{self.system}@{self.planned_for}"


class Figure(NamedTuple):
    """A number of a run's metrics: a spread's name, and which part of it."""

    spread: str
    part: str

    def of(self, cell: Cell) -> float | None:
        """The number, None where the run has none."""
        spread: Spread | None = getattr(cell.metrics, self.spread, None)
        return None if spread is None else float(getattr(spread, self.part))


def duels(table: Table, figure: Figure, against: str = DEFAULT) -> list[Duel]:
    """Every Nexus run beside ``against``'s on the same requests."""
    found = []
    for system in table.systems:
        if system in STOCK:
            continue
        for own, other in table.at_same_rate(system, against):
            ours, theirs = figure.of(own), figure.of(other)
            key = own.key
            if ours and theirs and key.rate is not None:
                each = (key.objective or "", key.rate, key.repeat, ours / theirs)
                found.append(Duel(table, system, *each))
    return found


def mean_and_range(values: Sequence[float]) -> str:
    """Such as ``12.3`` and, over repeats, ``12.3 (11.9 to 12.8)``."""
    if not values:
        return ""
    mean = sum(values) / len(values)
    if len(values) == 1:
        return f"{mean:.1f}"
    return f"{mean:.1f} ({min(values):.1f} to {max(values):.1f})"
