"""A table of how long requests wait for their first token, beside an idle server."""

from dataclasses import dataclass

from nexus.core.plan import Plan
from nexus.core.spread import Spread
from nexus.planner.report.replay import plan_system
from nexus.planner.search.plan_search import PlanSearch
from nexus.planner.simulator.idle import IdleServer
from nexus.planner.simulator.metrics import Waits
from nexus.planner.simulator.simulate import stock_named

_LOADS = (0.8, 1.1)  # of what the plan sustains


@dataclass(frozen=True)
class Row:
    """One system at one rate: the spread of each of the table's columns."""

    system: str
    spreads: tuple[Spread, ...]


@dataclass(frozen=True)
class WaitsTable:
    """TTFT in ms and slowdown, of all prompts and of the longest tenth."""

    rows: tuple[Row, ...]
    heads: tuple[str, ...] = ("TTFT, ms", "its longest tenth", "slowdown", "its longest tenth")


def waits_of(plan: Plan, plan_search: PlanSearch) -> WaitsTable:
    """Of the plan and of the best stock vLLM, simulated."""
    said, evaluator = plan.prediction, plan_search.evaluator
    sustained = said.capacity_per_s or said.limit_per_s or 1.0
    longest = int(evaluator.requests.lengths.inputs.max())
    idle = IdleServer.of(evaluator.times, evaluator.limits, longest)
    stock = stock_named(said.baseline)
    rows = []
    for load in _LOADS:
        for system in (plan_system(plan), stock):
            waits = Waits.of(evaluator.evaluate(system, load * sustained), idle)
            spreads = (
                waits.ttft_ms, waits.ttft_longest_ms, waits.slowdown, waits.slowdown_longest,
            )  # fmt: skip
            rows.append(Row(f"{system.name} at {load * sustained:.3g}/s", spreads))
    return WaitsTable(tuple(rows))
