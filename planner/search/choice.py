"""Each state's mode."""

from dataclasses import dataclass
from typing import Literal

import numpy as np

from nexus.core.arrays import Floats, Ints
from nexus.core.plan import Axes, Mode, Row
from nexus.core.slo import Bounds
from nexus.planner.latency.frontier import Outcomes, States
from nexus.planner.search.capacity import Capacity
from nexus.planner.search.problem import Problem

State = tuple[int, int, int]

_TIGHT_ROOM = 0.1  # of the KV cache


@dataclass(frozen=True)
class Rule:
    """How a state's mode is chosen among those whose gap stays within ``guard`` of TBT.

    ``prices``: the one whose tokens are worth most at the capacity program's prices;
    modes within ``nearly`` of it compete by prefill speed. ``prefill``: the fastest prefill.
    ``usual`` names a mode that is kept wherever it is worth ``nearly`` as much as the best,
    and where nothing holds TBT: what changes less often can be better than what is best now.
    """

    by: Literal["prices", "prefill"]
    guard: float = 1.0
    nearly: float = 0.98
    usual: str = ""

    def worth(self, problem: Problem, capacity: Capacity, seen: Outcomes, states: States) -> Floats:
        """What each mode is worth in each state, of shape (modes, states), at least 0.

        KV tokens count as the sequences that would usually hold them. As the cache fills up,
        prompt tokens lose their worth: what they push out is computed again.
        """
        if self.by == "prefill":
            return seen.prefill_per_s
        kv = states.decode_batch * states.decode_context
        pressure = np.maximum(states.decode_batch, kv / problem.lengths.decode_context)
        prefill_price, decode_price = capacity.prices_at(pressure)
        room = 1.0 - kv / problem.engine.kv_tokens
        prefill_price = prefill_price * np.clip(room / _TIGHT_ROOM, 0.0, 1.0)
        worth = prefill_price * seen.prefill_per_s + decode_price * seen.decode_per_s
        return np.where(states.decode_batch == 0, seen.prefill_per_s, worth)


def holds(outcomes: Outcomes, states: States, bounds: Bounds, guard: float) -> Floats:
    """1.0 where a mode holds the bounds, of shape (modes, states).

    A gap within ``guard`` of TBT; without decodes, a step within TTFT.
    """
    held = np.where(
        states.decode_batch == 0,
        outcomes.prefill_ms <= bounds.ttft_ms,
        outcomes.tbt_ms <= guard * bounds.tbt_ms,
    )
    return held.astype(np.float64)


def choose(
    problem: Problem,
    modes: list[Mode],
    outcomes: Outcomes,
    states: States,
    capacity: Capacity,
    rule: Rule,
) -> Ints:
    """The index of each state's mode, of shape (states,).

    Where no mode holds TBT, the one with the smallest gap is taken; without decodes, the
    fastest prefill whose steps fit in TTFT.
    """
    worth = rule.worth(problem, capacity, outcomes, states)
    held = holds(outcomes, states, problem.bounds, rule.guard) > 0
    best = np.where(held, worth, -np.inf).max(axis=0)
    good = held & (worth >= rule.nearly * best)
    fastest = first_best(np.where(good, outcomes.prefill_per_s, -np.inf))
    empty = states.decode_batch == 0
    gentlest = first_best(-np.where(empty, outcomes.prefill_ms, outcomes.tbt_ms))
    chosen = np.where(held.any(axis=0), fastest, gentlest)
    usual = [index for index, mode in enumerate(modes) if mode.name == rule.usual]
    if usual:
        kept = good[usual[0]] | (~held.any(axis=0) & ~empty)
        chosen = np.where(kept, usual[0], chosen)
    return chosen


def first_best(score: Floats) -> Ints:
    """The first mode, of (modes, states), whose score is the highest but for rounding.

    Modes that differ only beyond the backlog do the same there, and the first will do.
    """
    return np.asarray(np.argmax(np.isclose(score, score.max(axis=0), rtol=1e-9, atol=0.0), axis=0))


def with_backlog(states: list[State], axes: Axes) -> list[State]:
    """``states``, with the smallest backlog where there is none: its mode comes next."""
    return [(batch, kv, backlog or axes.prefill_backlog[1]) for batch, kv, backlog in states]


def choose_rows(
    problem: Problem, modes: list[Mode], axes: Axes, capacity: Capacity, rule: Rule
) -> tuple[Row, ...]:
    """The table: each state's mode and what it gives there."""
    return choose_tables(problem, modes, axes, capacity, [rule])[0]


def choose_tables(
    problem: Problem, modes: list[Mode], axes: Axes, capacity: Capacity, rules: list[Rule]
) -> list[tuple[Row, ...]]:
    """One table a rule, without those that came before."""
    states = axes.states()
    ahead = with_backlog(states, axes)
    judged, outcomes = problem.outcomes(modes, ahead), problem.outcomes(modes, states)
    choices = [
        choose(problem, modes, judged, States.of(ahead), capacity, rule).tobytes() for rule in rules
    ]
    distinct = [np.frombuffer(each, dtype=np.int64) for each in dict.fromkeys(choices)]
    return [_rows(modes, outcomes, states, chosen) for chosen in distinct]


def rows_of(
    problem: Problem, modes: list[Mode], states: list[State], chosen: Ints
) -> tuple[Row, ...]:
    """Rows that name the ``chosen`` modes (indices, one a state), with their predictions."""
    return _rows(modes, problem.outcomes(modes, states), states, chosen)


def _rows(
    modes: list[Mode], outcomes: Outcomes, states: list[State], chosen: Ints
) -> tuple[Row, ...]:
    return tuple(
        Row(
            decode_batch=batch,
            kv_tokens=kv,
            prefill_backlog=backlog,
            mode=modes[mode].name,
            tbt_ms=round(float(outcomes.tbt_ms[mode, index]), 3),
            prefill_tokens_per_s=round(float(outcomes.prefill_per_s[mode, index]), 1),
        )
        for index, ((batch, kv, backlog), mode) in enumerate(zip(states, chosen, strict=True))
    )


def rows_of_one(problem: Problem, mode: Mode, states: list[State]) -> tuple[Row, ...]:
    """Rows that all name ``mode``, with its predictions."""
    return rows_of(problem, [mode], states, np.zeros(len(states), dtype=np.int64))
