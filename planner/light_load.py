"""The longest steps for prompts while few sequences decode.

A bound on TBT that one gap in twenty may exceed says nothing of rare steps. Under light load
those with prompts are rare, the more so the more tokens each has; and TTFT is the shorter.
"""

from collections.abc import Iterator
from operator import ge

from nexus.planner.choice import rows_of_one
from nexus.planner.contest import Contest, Played
from nexus.planner.simulate import System
from nexus.planner.table import Plan

_LIGHTEST = 0.2
_LOADS = (0.4, _LIGHTEST, 0.6)  # of what the plan sustains; what fails mostly fails at the first
_GOOD_SHARE = 0.97  # of the requests must still meet both bounds at these, unless fewer did
_MOST_DECODES = 32
_NEARLY = 0.97  # of what the plan sustains is as much, within the scatter


def with_longest_steps(contest: Contest, best: Played, plan: Plan) -> tuple[Played, Plan]:
    """``plan`` with the longest fused step where few sequences decode, if that is good.

    It is if TTFT is shorter under light load, nearly all requests still meet both bounds, and
    what is sustained stays. A plan of lanes alone stays as it is: what is fused in it is also
    the step beside a pass.
    """
    if not plan.batches or not best.per_s:
        return best, plan
    found = _as_far_as_is_good(contest, best.per_s, plan)
    if found is plan or _ttft(contest, found, best.per_s) >= _ttft(contest, plan, best.per_s):
        return best, plan
    system, floor = System("plan", plan=found), _NEARLY * best.per_s
    if not contest.arena.sustains(system, floor):
        return best, plan
    return contest.play(system, floor), found


def _as_far_as_is_good(contest: Contest, per_s: float, plan: Plan) -> Plan:
    """With the longest step up to as many decoding sequences as bounds allow."""
    wanted = [min(_GOOD_SHARE, good) for good in _good(contest, plan, per_s)]
    batches = [batch for batch in plan.axes.decode_batch if 0 < batch <= _MOST_DECODES]
    found, low, high = plan, 0, len(batches)
    while low < high:
        middle = (low + high) // 2
        longer = _up_to(contest, plan, batches[middle])
        if all(map(ge, _good(contest, longer, per_s), wanted)):
            found, low = longer, middle + 1
        else:
            high = middle
    return found


def _up_to(contest: Contest, plan: Plan, batch: int) -> Plan:
    """``plan`` with the longest step at up to ``batch`` decoding sequences."""
    longest = contest.fused[-1]
    states = [row.state for row in plan.rows if 0 < row.decode_batch <= batch]
    changed = {row.state: row for row in rows_of_one(contest.problem, longest, states)}
    rows = tuple(changed.get(row.state, row) for row in plan.rows)
    return contest.draft.plan([*plan.modes.values(), longest], rows, "nexus")


def _good(contest: Contest, plan: Plan, per_s: float) -> Iterator[float]:
    """The share of requests within both bounds, load by load."""
    system = System("plan", plan=plan)
    return (contest.arena.attainment(system, load * per_s) for load in _LOADS)


def _ttft(contest: Contest, plan: Plan, per_s: float) -> float:
    run = contest.arena.play(System("plan", plan=plan), _LIGHTEST * per_s)
    return float(run.ttft_ms.mean())
