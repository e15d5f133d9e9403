"""What Nexus is meant to reach against stock vLLM, and whether the runs show it.

What is said of latency is met when one plan meets it in every run that tells: the worst of its
runs decides.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass

from nexus.benchmarks.compare import DEFAULT, STOCK, Duel, Figure, Ratio, Table, duels
from nexus.benchmarks.metrics import OBJECTIVES, Objective
from nexus.benchmarks.results import Cell
from nexus.core.ranking import ORDERS

PLANS = tuple(f"nexus-{order}-plan" for order in ORDERS)
GAIN, NEVER_BELOW, TAIL_GAIN, OVERLOAD_GAIN = 1.3, 0.97, 5.0, 5.0
LONGEST_AT_MOST, IDLE_AT_MOST = 2.0, 1.05
_TIGHT = tuple(map(Objective.parse, ("500/15", "1000/25")))
_WORKLOADS = ("azure_conv", "long-documents")
_LOW_PER_S = 4.0
_TAIL_PER_S = 16.0
TAIL_TTFT_AT_MOST = 1.3
_OVERLOAD = 1.2  # times as many requests arrive as a server that is overloaded finishes

Words = Callable[[Sequence[Duel]], str]


@dataclass(frozen=True)
class Aim:
    """``found`` in words; ``met`` is None where no run tells, or none tells for sure."""

    what: str
    found: str
    met: bool | None


def aims(tables: Sequence[Table]) -> list[Aim]:
    """All of them, model by model."""
    found: list[Aim] = []
    for model in dict.fromkeys(table.model for table in tables):
        own = [table for table in tables if table.model == model]
        if not any(cell.key.system in STOCK for table in own for cell in table.cells):
            found.append(Aim(f"{model}: all of it", "no stock vLLM was run", None))
            continue
        found += [_gain(own, model, name, bounds) for name in _WORKLOADS for bounds in _TIGHT]
        found += [_never_below(own, model), *_tail(own, model), *_overload(own, model)]
        found += _low_load(own, model)
    return found


def _gain(tables: Sequence[Table], model: str, workload: str, bounds: Objective) -> Aim:
    """Of the longest runs that tell: a trace's bursts are longer than short ones."""
    what = f"{model}, {workload} at {bounds.name}: goodput at least {GAIN}× the best stock setting"
    for table in tables:
        if table.workload != workload:
            continue
        ratios = [
            (ratio, system)
            for system in PLANS
            if (ratio := table.ratio(system, bounds)) is not None
        ]
        if ratios:
            ratio, system = max(ratios, key=lambda one: _surest(one[0]))
            return Aim(what, f"{ratio} ({system})", ratio.reaches(GAIN))
    return Aim(what, "not run", None)


def _never_below(tables: Sequence[Table], model: str) -> Aim:
    what = f"{model}: goodput never below {NEVER_BELOW}× the best stock setting"
    found = []
    for table in tables:
        for bounds in OBJECTIVES:
            own = [ratio for name in PLANS if (ratio := table.ratio(name, bounds)) is not None]
            if own:
                best = max(own, key=_surest)
                found.append((best, f"{best} ({table.workload} at {bounds.name})"))
    if not found:
        return Aim(what, "not run", None)
    below = [one for one in found if one[0].reaches(NEVER_BELOW) is False]
    worst, where = min(below or found, key=lambda one: (one[0].at_least, one[0].worst))
    return Aim(what, where, worst.reaches(NEVER_BELOW))


def _surest(ratio: Ratio) -> tuple[float, float]:
    """By what it is surely not below; by the most that it may be where nothing says."""
    return ratio.at_least, ratio.worst


def _tail(tables: Sequence[Table], model: str) -> list[Aim]:
    what = (
        f"{model}: TBT p99 at least {TAIL_GAIN:g}× lower than default vLLM's at equal load, "
        f"{_TAIL_PER_S:g} requests/s"
    )
    price = f"{model}: mean TTFT at most {TAIL_TTFT_AT_MOST}× default's there, of the same plan"
    every = _plan_duels(tables, Figure("tbt", "p99"))
    first = _plan_duels(tables, Figure("ttft", "mean"))
    gains, prices = ([d for d in runs if d.rate == _TAIL_PER_S] for runs in (every, first))
    return _of_the_same_plan(what, gains, TAIL_GAIN, price, prices, TAIL_TTFT_AT_MOST, every)


def _overload(tables: Sequence[Table], model: str) -> list[Aim]:
    """Where default vLLM does not keep up with a mixed workload; both aims are of one plan."""
    what = f"{model}, mixed, overloaded: mean TTFT at least {OVERLOAD_GAIN:g}× lower than default's"
    longest = f"{model}, mixed, overloaded: longest prompts' TTFT p99 at most {LONGEST_AT_MOST:g}×"
    mixed = [table for table in tables if table.workload == "mixed"]
    busy = {cell.key.rate for table in mixed for cell in table.cells if _is_overloaded(cell)}
    mean = [d for d in _plan_duels(mixed, Figure("ttft", "mean")) if d.rate in busy]
    tail = [d for d in _plan_duels(mixed, Figure("ttft_longest", "p99")) if d.rate in busy]
    return _of_the_same_plan(what, mean, OVERLOAD_GAIN, longest, tail, LONGEST_AT_MOST, mean)


def _of_the_same_plan(
    gain: str,
    gains: Sequence[Duel],
    at_least: float,
    price: str,
    prices: Sequence[Duel],
    at_most: float,
    every: Sequence[Duel],
) -> list[Aim]:
    """Some figure is ``at_least`` so many times lower, and what that costs is ``at_most``.

    ``gains`` and ``prices`` are the runs that decide; ``every`` has those that are told besides.
    """
    judged = _of_one_plan(gains)
    same = _of_one_plan([duel for duel in prices if judged and duel.plan == judged[0].plan])
    if not same:
        return [Aim(gain, _told([], every, _gains), None), Aim(price, "not run", None)]
    return [
        Aim(gain, _told(judged, every, _gains), 1 / judged[-1].ratio >= at_least),
        Aim(price, _told(same, prices, _ratios), same[-1].ratio <= at_most),
    ]


def _is_overloaded(cell: Cell) -> bool:
    done = cell.metrics
    if cell.key.system != DEFAULT or done is None or cell.key.rate is None:
        return False
    return cell.key.rate >= _OVERLOAD * done.requests_per_s


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
        judged = _of_one_plan(idle)
        met = judged[-1].ratio <= IDLE_AT_MOST if judged else None
        found.append(Aim(what, _told(judged, idle, _ratios), met))
    return found


def _plan_duels(tables: Sequence[Table], figure: Figure) -> list[Duel]:
    every = [duel for table in tables for duel in duels(table, figure)]
    return [duel for duel in every if duel.system in PLANS and duel.system not in STOCK]


def _of_one_plan(runs: Sequence[Duel]) -> list[Duel]:
    """The runs, best first, of the plan whose worst run is best: by the last it is judged."""
    plans: dict[str, list[Duel]] = {}
    for duel in sorted(runs, key=_ratio):
        plans.setdefault(duel.plan, []).append(duel)
    return min(plans.values(), key=lambda own: own[-1].ratio, default=[])


def _told(judged: Sequence[Duel], every: Sequence[Duel], words: Words) -> str:
    """The runs that decide, and then the others."""
    others = [duel for duel in every if duel not in judged]
    told = words(judged) if judged else "not run"
    return f"{told}; elsewhere {words(others)}" if others else told


def _ratios(runs: Sequence[Duel]) -> str:
    """Least and most, such as ``0.97× (...), most 1.10× (...)``."""
    return _best_and_worst(runs, _ratio, "most")


def _gains(runs: Sequence[Duel]) -> str:
    """How many times lower: most and least."""
    return _best_and_worst(runs, lambda duel: 1 / duel.ratio, "least")


def _best_and_worst(runs: Sequence[Duel], times: Callable[[Duel], float], last: str) -> str:
    best, worst = min(runs, key=_ratio), max(runs, key=_ratio)
    told = f"{times(best):.2f}× ({_where(best)})"
    return told if worst is best else f"{told}, {last} {times(worst):.2f}× ({_where(worst)})"


def _ratio(duel: Duel) -> float:
    return duel.ratio


def _where(duel: Duel) -> str:
    return f"{duel.plan}, {duel.table.workload} at {duel.rate:g}/s"
