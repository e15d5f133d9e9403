"""Whole prompts in a step while few sequences decode.

A bound on TBT that one gap in twenty may exceed says nothing of rare steps. Under light load
those with prompts are rare, the more so the more tokens each has; and TTFT is the shorter.
"""

import numpy as np

from nexus.planner.choice import rows_of
from nexus.planner.contest import Contest, Played
from nexus.planner.simulate import System
from nexus.planner.table import Mode, Plan

_LOADS = (0.4, 0.2, 0.6)  # of what the plan sustains; what fails mostly fails at the first
_GOOD_SHARE = 0.97  # of the requests must still meet both bounds at these
_MOST_DECODES = 32
_LIGHTEST = min(_LOADS)
_NEARLY = 0.97  # of what the plan sustains is as much, within the scatter


def with_whole_prompts(contest: Contest, best: Played, plan: Plan) -> tuple[Played, Plan]:
    """``plan`` with the longest fused step where few sequences decode, if that is good.

    It is if TTFT is shorter under light load, nearly all requests still meet both bounds, and
    what is sustained stays.
    """
    mode = contest.fused[-1]
    batches = [batch for batch in plan.axes.decode_batch if 0 < batch <= _MOST_DECODES]
    found, low, high = plan, 0, len(batches)
    while low < high:
        middle = (low + high) // 2
        longer = _up_to(contest, plan, mode, batches[middle])
        if _is_good(contest, longer, best.per_s):
            found, low = longer, middle + 1
        else:
            high = middle
    if _ttft(contest, found, best.per_s) >= _ttft(contest, plan, best.per_s):
        return best, plan
    played = contest.play(System("plan", plan=found), _NEARLY * best.per_s)
    return (played, found) if played.per_s > _NEARLY * best.per_s else (best, plan)


def _up_to(contest: Contest, plan: Plan, mode: Mode, batch: int) -> Plan:
    """``plan`` with ``mode`` at up to ``batch`` decoding sequences."""
    states = [row.state for row in plan.rows if 0 < row.decode_batch <= batch]
    whole = rows_of(contest.problem, [mode], states, np.zeros(len(states), dtype=np.int64))
    changed = {row.state: row for row in whole}
    rows = tuple(changed.get(row.state, row) for row in plan.rows)
    return contest.draft.plan([*plan.modes.values(), mode], rows, "nexus")


def _is_good(contest: Contest, plan: Plan, per_s: float) -> bool:
    system = System("plan", plan=plan)
    return all(contest.arena.attainment(system, load * per_s) >= _GOOD_SHARE for load in _LOADS)


def _ttft(contest: Contest, plan: Plan, per_s: float) -> float:
    run = contest.arena.play(System("plan", plan=plan), _LIGHTEST * per_s)
    return float(run.ttft_ms.mean())
