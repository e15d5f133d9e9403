"""A table of how long requests wait for their first token, beside an idle server."""

from nexus.core.plan import Plan
from nexus.core.spread import Spread
from nexus.planner.report.replay import plan_system
from nexus.planner.search.plan_search import PlanSearch
from nexus.planner.simulator.idle import IdleServer
from nexus.planner.simulator.metrics import Waits
from nexus.planner.simulator.simulate import stock_system

_LOADS = (0.8, 1.1)  # of what the plan sustains


def waits_table(plan: Plan, plan_search: PlanSearch) -> str:
    """A section: TTFT and slowdown of the plan and of the best stock vLLM, simulated."""
    said, evaluator = plan.prediction, plan_search.evaluator
    sustained = said.capacity_per_s or said.limit_per_s or 1.0
    longest = int(evaluator.requests.lengths.inputs.max())
    idle = IdleServer.of(evaluator.times, evaluator.limits, longest)
    stock = stock_system(int(said.baseline.removeprefix("vllm-")))
    rows = ""
    for load in _LOADS:
        for system in (plan_system(plan), stock):
            waits = Waits.of(evaluator.evaluate(system, load * sustained), idle)
            cells = "".join(f'<td class="n">{_cell(each)}</td>' for each in _columns(waits))
            rows += f"<tr><td>{system.name} at {load * sustained:.3g}/s</td>{cells}</tr>"
    heads = ("TTFT, ms", "its longest tenth", "slowdown", "its longest tenth")
    names = "".join(f"<th class='n'>{head}</th>" for head in heads)
    return (
        "<section><h2>How long the first token takes</h2><p>Simulated, median and p99. Slowdown is "
        "over the same prompt's TTFT on an idle server; the longest tenth is of the prompts.</p>"
        f"<div class='figure'><table><tr><th>system</th>{names}</tr>{rows}</table></div></section>\n"
    )


def _columns(waits: Waits) -> tuple[Spread, ...]:
    return (waits.ttft_ms, waits.ttft_longest_ms, waits.slowdown, waits.slowdown_longest)


def _cell(spread: Spread) -> str:
    return f"{spread.p50:,.4g} / {spread.p99:,.4g}"
