"""What Nexus is meant to reach against stock vLLM, and whether the runs show it."""

from collections.abc import Sequence
from dataclasses import dataclass

from nexus.benchmarks.compare import DEFAULT, STOCK, Duel, Figure, Table, duels
from nexus.benchmarks.metrics import OBJECTIVES, Objective
from nexus.benchmarks.results import Cell

PLANS = ("nexus-spf-plan", "nexus-fcfs-plan")
GAIN, NEVER_BELOW, TAIL_GAIN, OVERLOAD_GAIN = 1.3, 0.97, 5.0, 5.0
LONGEST_AT_MOST, IDLE_AT_MOST = 2.0, 1.05
_TIGHT = tuple(map(Objective.parse, ("500/15", "1000/25")))
_WORKLOADS = ("azure_conv", "long-documents")
_LOW_PER_S = 4.0
_OVERLOADED_MS = 2000.0  # mean TTFT of a server that does not keep up


@dataclass(frozen=True)
class Aim:
    """``found`` in words; ``met`` is None where nothing was run that tells."""

    what: str
    found: str
    met: bool | None


def aims(tables: Sequence[Table]) -> list[Aim]:
    """All of them, model by model."""
    found: list[Aim] = []
    for model in dict.fromkeys(table.model for table in tables):
        own = [table for table in tables if table.model == model]
        found += [_gain(own, model, name, bounds) for name in _WORKLOADS for bounds in _TIGHT]
        found += [_never_below(own, model), _tail(own, model), *_overload(own, model)]
        found += _low_load(own, model)
    return found


def _gain(tables: Sequence[Table], model: str, workload: str, bounds: Objective) -> Aim:
    what = f"{model}, {workload} at {bounds.name}: goodput at least {GAIN}× the best stock setting"
    ratios = [
        (ratio, table.told_ratio(system, bounds), system)
        for table in tables
        if table.workload == workload
        for system in PLANS
        if (ratio := table.ratio(system, bounds)) is not None
    ]
    if not ratios:
        return Aim(what, "not run", None)
    ratio, told, system = max(ratios)
    return Aim(what, f"{told} ({system})", ratio >= GAIN)


def _never_below(tables: Sequence[Table], model: str) -> Aim:
    what = f"{model}: goodput never below {NEVER_BELOW}× the best stock setting"
    ratios = []
    for table in tables:
        for bounds in OBJECTIVES:
            own = [ratio for name in PLANS if (ratio := table.ratio(name, bounds)) is not None]
            if own:
                ratios.append((max(own), f"{table.workload} at {bounds.name}"))
    if not ratios:
        return Aim(what, "not run", None)
    ratio, where = min(ratios)
    return Aim(what, f"{ratio:.2f}× ({where})", ratio >= NEVER_BELOW)


def _tail(tables: Sequence[Table], model: str) -> Aim:
    what = f"{model}: TBT p99 at least {TAIL_GAIN:g}× lower than default vLLM's at equal load"
    found = _plan_duels(tables, Figure("tbt", "p99"))
    if not found:
        return Aim(what, "not run", None)
    best, worst = min(found, key=_ratio), max(found, key=_ratio)
    told = f"{1 / best.ratio:.2f}× ({_where(best)}), least {1 / worst.ratio:.2f}× ({_where(worst)})"
    return Aim(what, told, 1 / best.ratio >= TAIL_GAIN)


def _overload(tables: Sequence[Table], model: str) -> list[Aim]:
    """Where default vLLM does not keep up with a mixed workload."""
    what = f"{model}, mixed, overloaded: mean TTFT at least {OVERLOAD_GAIN:g}× lower than default's"
    longest = f"{model}, mixed, overloaded: longest prompts' TTFT p99 at most {LONGEST_AT_MOST:g}×"
    mixed = [table for table in tables if table.workload == "mixed"]
    busy = {cell.key.rate for table in mixed for cell in table.cells if _is_overloaded(cell)}
    mean = [d for d in _plan_duels(mixed, Figure("ttft", "mean")) if d.rate in busy]
    tail = [d for d in _plan_duels(mixed, Figure("ttft_longest", "p99")) if d.rate in busy]
    if not mean or not tail:
        return [Aim(what, "not run", None), Aim(longest, "not run", None)]
    best = min(mean, key=_ratio)
    same = next(d for d in tail if (d.system, d.rate, d.repeat) == _run(best))
    return [
        Aim(what, f"{1 / best.ratio:.2f}× ({_where(best)})", 1 / best.ratio >= OVERLOAD_GAIN),
        Aim(longest, f"{same.ratio:.2f}× ({_where(same)})", same.ratio <= LONGEST_AT_MOST),
    ]


def _is_overloaded(cell: Cell) -> bool:
    metrics = cell.metrics
    late = metrics is not None and metrics.ttft is not None and metrics.ttft.mean > _OVERLOADED_MS
    return cell.key.system == DEFAULT and late


def _low_load(tables: Sequence[Table], model: str) -> list[Aim]:
    figures: list[tuple[str, Figure]] = [
        ("mean TTFT", Figure("ttft", "mean")),
        ("mean TBT", Figure("tbt", "mean")),
    ]
    found = []
    for name, figure in figures:
        what = (
            f"{model}, at most {_LOW_PER_S:g} requests/s: {name} at most {IDLE_AT_MOST}× default's"
        )
        idle = [d for d in _plan_duels(tables, figure) if d.rate <= _LOW_PER_S]
        if not idle:
            found.append(Aim(what, "not run", None))
            continue
        best = min(idle, key=_ratio)
        found.append(Aim(what, f"{best.ratio:.2f}× ({_where(best)})", best.ratio <= IDLE_AT_MOST))
    return found


def _plan_duels(tables: Sequence[Table], figure: Figure) -> list[Duel]:
    every = [duel for table in tables for duel in duels(table, figure)]
    return [duel for duel in every if duel.system in PLANS and duel.system not in STOCK]


def _ratio(duel: Duel) -> float:
    return duel.ratio


def _run(duel: Duel) -> tuple[str, float, int]:
    return duel.system, duel.rate, duel.repeat


def _where(duel: Duel) -> str:
    return f"{duel.system}, {duel.table.workload} at {duel.rate:g}/s"
