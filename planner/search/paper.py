"""The greedy rule of the Nexus paper (Shi et al., arXiv 2507.06608), to compare with.

Below 70 % of KV usage it minimises prefill time with decode at most 1.1 times its time on the
whole device; above, it minimises decode time with prefill at most 1.3 times. It moves from
the present split in small steps of SMs, and only when that gains more than a threshold.
"""

import numpy as np

from nexus.core.arrays import Floats
from nexus.core.plan import Axes, Mode, Row
from nexus.planner.search.choice import rows_of, with_backlog
from nexus.planner.search.problem import Problem

KV_SWITCH = 0.7
DECODE_SLACK = 1.1
PREFILL_SLACK = 1.3
SMALLEST_GAIN = 0.05


def paper_modes(modes: list[Mode]) -> list[Mode]:
    """The splits among ``modes``, by rising prefill share: all that the rule knows."""
    return sorted((m for m in modes if m.mode == "split"), key=lambda mode: mode.prefill_sms)


def paper_rows(problem: Problem, splits: list[Mode], axes: Axes) -> tuple[Row, ...]:
    """The table that the rule arrives at, walking from each state's neighbour.

    ``splits`` are in rising order of prefill SMs. States are visited by rising load, each
    starting from the split of the state before it, as the running system would.
    """
    states = axes.states()
    ahead = with_backlog(states, axes)
    outcomes = problem.outcomes(splits, ahead)
    alone_prefill, alone_decode = _whole_device(problem, splits, ahead)
    prefill, decode = _ms_per_token(outcomes.prefill_per_s), outcomes.tbt_ms
    chosen = np.zeros(len(states), dtype=np.int64)
    present = len(splits) // 2
    for index, (_, kv_tokens, _) in enumerate(states):
        if kv_tokens < KV_SWITCH * problem.engine.kv_tokens:
            cost, other = prefill[:, index], decode[:, index]
            allowed = other <= DECODE_SLACK * alone_decode[index]
        else:
            cost, other = decode[:, index], prefill[:, index]
            allowed = other <= PREFILL_SLACK * alone_prefill[index]
        present = _walk(cost, other, allowed, present)
        chosen[index] = present
    return rows_of(problem, splits, states, chosen)


def _walk(cost: Floats, other: Floats, allowed: Floats, present: int) -> int:
    """Small steps from ``present``: first to where the constraint holds, then downhill."""
    start = present
    while not allowed[present]:
        near = [step for step in (present - 1, present + 1) if 0 <= step < len(cost)]
        better = [step for step in near if other[step] < other[present]]
        if not better:
            break
        present = min(better, key=lambda step: float(other[step]))
    while True:
        near = [step for step in (present - 1, present + 1) if 0 <= step < len(cost)]
        better = [step for step in near if allowed[step] and cost[step] < cost[present]]
        if not better:
            break
        present = min(better, key=lambda step: float(cost[step]))
    small = allowed[start] and cost[start] - cost[present] <= SMALLEST_GAIN * cost[start]
    return start if small else present


def _whole_device(
    problem: Problem, splits: list[Mode], states: list[tuple[int, int, int]]
) -> tuple[Floats, Floats]:
    """Time of a prompt token and of a decode step with nothing beside them, by state."""
    fused = [Mode(mode="fused", chunk=max(split.chunk for split in splits))]
    prefill = problem.outcomes(fused, [(0, 1, backlog) for _, _, backlog in states])
    decode = problem.outcomes(fused, [(batch, kv, 0) for batch, kv, _ in states])
    return _ms_per_token(prefill.prefill_per_s[0]), decode.tbt_ms[0]


def _ms_per_token(per_s: Floats) -> Floats:
    return np.asarray(1e3 / np.maximum(per_s, 1e-9))
