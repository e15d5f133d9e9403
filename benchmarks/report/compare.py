"""Systems side by side: who sustains which rate at which bounds, and by how much."""

from collections.abc import Callable, Iterable
from dataclasses import dataclass

from nexus.benchmarks.agenda import attained, plan_serving
from nexus.benchmarks.metrics import OBJECTIVES, Objective
from nexus.benchmarks.results import Cell
from nexus.benchmarks.search import Crossing, crossing
from nexus.benchmarks.systems import SYSTEMS

Value = Callable[[Cell], float | None]

STOCK = tuple(name for name, system in SYSTEMS.items() if system.sharing is None)
NOT_RUN = "not run"

_LONG_S = 60.0
_NEAR = 0.5  # within bounds: with less at every rate, they were rates for other bounds


@dataclass(frozen=True)
class Ratio:
    """What a goodput ratio is surely not below, and not above; 0 and None where nothing says.

    The two differ where a crossing was not bracketed to neighbours.
    """

    at_least: float
    at_most: float | None

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
        return max(there, key=lambda one: (one[1].at_most or 0.0, one[1].estimate), default=None)

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


def figure(spread: str, part: str) -> Value:
    """A number of a run's metrics, such as the p95 of its ``ttft``; None where the run has none."""
    return lambda cell: getattr(getattr(cell.metrics, spread, None), part, None)


def goodput_rows(table: Table) -> list[list[str]]:
    """Who sustains which rate within which bounds, and the ratios; the head first."""
    head = ["goodput, requests/s", *(objective.name for objective in OBJECTIVES)]
    rows = [
        [name, *(str(table.crossing(name, o) or NOT_RUN) for o in OBJECTIVES)]
        for name in table.systems
    ]
    best = ["best stock"]
    for objective in OBJECTIVES:
        found = table.best_stock(objective)
        best.append(f"{found[1]} ({found[0]})" if found else NOT_RUN)
    rows.append(best)
    for name in (name for name in table.systems if name not in STOCK):
        for over in (None, *(other for other in table.systems if other in STOCK)):
            ratios = [str(table.ratio(name, objective, over) or "") for objective in OBJECTIVES]
            if any(ratios):
                rows.append([f"{name} / {over or 'best stock'}", *ratios])
    return [head, *rows]
