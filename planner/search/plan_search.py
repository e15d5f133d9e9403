"""Tables against every single mode and stock vLLM, evaluated on the same requests."""

from collections.abc import Iterable
from dataclasses import dataclass, replace
from functools import cached_property
from math import inf

import numpy as np

from nexus.core.arrays import Floats
from nexus.core.plan import Mode, Plan, Table
from nexus.core.slo import GOOD_REQUESTS, Bounds
from nexus.planner.latency.frontier import States
from nexus.planner.search.choice import (
    Rule,
    choose_rows,
    choose_tables,
    holds,
    rows_of_one,
    with_backlog,
)
from nexus.planner.search.goodput import USUAL_LOAD, Evaluator
from nexus.planner.search.partitions import best_partitions
from nexus.planner.search.problem import Draft
from nexus.planner.simulator.simulate import System, stock_system

RULES = (
    Rule("prices"),
    Rule("prices", nearly=0.9),
    Rule("prices", guard=0.95),
    Rule("prices", guard=0.85),
    Rule("prefill"),
)
AROUND = Rule("prices", nearly=0.7)

_ENDLESS_MS = 1e9
_BUSY_LOAD = 0.9  # of the fluid limit: where the states that the workload visits are seen
# Tables are told apart with bounds on TBT that are so much tighter: a table that just holds its
# bound in simulation, where most of its steps take what the bound allows, does not in life.
_JUDGED_TBT = 0.95
WORTH_A_LANE = 1.03  # times as much is worth what partitions cost in memory and start-up
_SAME = 0.99  # tables that sustain this much of the best are told apart by their TTFT
CLOSE = 0.97  # of the best on few requests may be the best on many
ANY_BETTER = 1.005
_BOUNDED = 2  # of the close budgets are tried with a bound on the queue
_FIRST_GUESS = 0.9  # of the fluid limit
_BEYOND_FLUID = 1.3  # times the fluid limit: what a burst of few requests may look like
_ASKED, _ASKED_STEP, _ASKED_RATES = 4, 0.8, 8  # who leads at first, and at which rates
_LITTLE = 0.2  # of the fluid limit: what nobody sustains for reasons other than the rate
_LIGHT_LOAD = 0.1


@dataclass(frozen=True)
class Evaluation:
    """A system and the highest rate that it sustains; ``good`` its share on time otherwise."""

    system: System
    per_s: float
    good: float = 1.0

    def better_than(self, other: "Evaluation", by: float = 1.0) -> bool:
        """Whether it sustains more than ``by`` times as much."""
        if self.per_s or other.per_s:
            return self.per_s > by * other.per_s
        return self.good > by * other.good


class PlanSearch:
    """Who sustains the highest rate: ``fused`` and ``shared`` modes are what there is."""

    def __init__(
        self, draft: Draft, evaluator: Evaluator, fused: list[Mode], shared: list[Mode]
    ) -> None:
        """All systems are evaluated in ``evaluator``; nothing is evaluated yet."""
        self.draft, self.evaluator, self.fused, self.shared = draft, evaluator, fused, shared
        self.problem = draft.problem
        self.modes = [*fused, *shared]
        self.limit = self.problem.capacity(self.modes)

    @cached_property
    def most_per_s(self) -> float:
        """A rate that nothing sustains for long: without bounds the fluid limit is lower."""
        loose = Bounds(ttft_ms=_ENDLESS_MS, tbt_ms=_ENDLESS_MS)
        return max(_BEYOND_FLUID * self.problem.capacity(self.modes, loose).per_s, 1e-6)

    @property
    def usual_per_s(self) -> float:
        """About what is sustained, before anything is simulated."""
        return max(self.limit.per_s, _LITTLE * self.most_per_s)

    def under(self, evaluator: Evaluator) -> "PlanSearch":
        """The same search under other conditions, as other requests or another goal."""
        return PlanSearch(self.draft, evaluator, self.fused, self.shared)

    def evaluate(self, system: System, guess: float = 0.0, at_least: float = 0.0) -> Evaluation:
        """Find the rate that ``system`` sustains, which is ``at_least`` what is given."""
        guess = guess or _FIRST_GUESS * self.usual_per_s
        per_s = self.evaluator.goodput(system, guess, at_least, self.most_per_s)
        low = _LIGHT_LOAD * self.usual_per_s
        return Evaluation(system, per_s, 1.0 if per_s else self.evaluator.attainment(system, low))

    def race(
        self, systems: Iterable[System], guess: float = 0.0, close: float = CLOSE, beat: float = 0.0
    ) -> list[Evaluation]:
        """The best of ``systems`` first, then those that sustain the share ``close`` of its rate.

        Who does not sustain that of the best so far is not evaluated any further. None where
        none sustains ``beat``.
        """
        field = list(systems)
        first, sustained = self._leader(field, guess or _FIRST_GUESS * self.usual_per_s, beat)
        if first is None:
            return []
        best = self.evaluate(first, sustained, sustained)
        seen = [best]
        for system in field:
            floor = max(beat, close * best.per_s)
            if system is first or self._computes_per_s(system) < floor:
                continue
            if not floor or not self.evaluator.sustains(system, floor):
                continue
            seen.append(self.evaluate(system, max(best.per_s, floor), floor))
            best = max(best, seen[-1], key=lambda one: one.per_s)
        seen.sort(key=lambda one: -one.per_s)
        return [one for one in seen if one.per_s >= min(close, 1.0) * best.per_s]

    def _computes_per_s(self, system: System) -> float:
        """At most as many prompts a second as one mode computes, and a burst's more."""
        if system.mode is None or system.mode not in self._prompts_per_s:
            return inf
        return _BEYOND_FLUID * self._prompts_per_s[system.mode]

    @cached_property
    def _prompts_per_s(self) -> dict[Mode, float]:
        """Mean prompts that each mode computes in a second, beside as many decodes as suit it."""
        fastest = self.problem.traffic(self.modes).up.max(axis=1)
        return dict(zip(self.modes, fastest[:-1].tolist(), strict=True))

    def _leader(self, field: list[System], rate: float, beat: float) -> tuple[System | None, float]:
        """One that sustains a high rate, and that rate (0 if unknown): those before it do not.

        The first few are asked at rates that fall from ``rate``; where one is to ``beat`` a rate,
        all are asked at that one.
        """
        if beat:
            return next((one for one in field if self.evaluator.sustains(one, beat)), None), beat
        for _ in range(_ASKED_RATES):
            for system in field[:_ASKED]:
                if self.evaluator.sustains(system, rate):
                    return system, rate
            rate *= _ASKED_STEP
        return field[0], 0.0

    def goal(self) -> float:
        """The share of requests that is to be on time at a rate which counts as sustained.

        Where no likely mode, and no table, sustains a little of what the fluid program says, that much
        cannot be on time at any rate worth speaking of: it is then the usual share of
        those that are on time under a light load, in the best case.
        """
        likely = dict.fromkeys([*self._by_capacity(self.modes)[:_ASKED], self.fused[-1]])
        systems = [self.always(mode) for mode in likely]
        systems.append(System("plan", plan=self._drafts(self.fused, None)[0]))
        little, light = _LITTLE * self.usual_per_s, _LIGHT_LOAD * self.usual_per_s
        if any(self.evaluator.sustains(system, little) for system in systems):
            return self.evaluator.goal
        return GOOD_REQUESTS * max(self.evaluator.attainment(one, light) for one in systems)

    def close_stock(self, guess: float = 0.0) -> list[Evaluation]:
        """Stock vLLM with each token budget that Nexus may choose: the best, and who is close."""
        most = min(self.problem.engine.max_num_batched_tokens, self.evaluator.times.max_chunk)
        chunks = [mode.chunk for mode in self._by_capacity(self.fused) if mode.chunk <= most]
        return self.race(map(stock_system, chunks), guess)

    def best_stock(self, close: list[Evaluation] | None = None) -> Evaluation:
        """The best of those ``close``, each also with a bound on its queue."""
        close = close or self.close_stock()
        systems = [one.system for one in close]
        bounded = [self._with_queue_bound(system) for system in systems[:_BOUNDED]]
        return self.race([*systems, *bounded], close[0].per_s, ANY_BETTER)[0]

    def _with_queue_bound(self, system: System) -> System:
        """As many tokens may wait as are computed within the bound on TTFT."""
        assert system.mode is not None
        chunk = system.mode.chunk
        step_ms = self.evaluator.times.step_ms(chunk, self.problem.lengths.prompt_position, 0, 0.0)
        tokens = self.problem.bounds.ttft_ms * chunk / step_ms
        return stock_system(chunk, max(1, round(tokens)))

    def close_fixed(self, guess: float = 0.0) -> list[Evaluation]:
        """Nexus with one mode for all states: the best, and those that are close."""
        return self.race(map(self.always, self._by_capacity(self.modes)), guess)

    def _by_capacity(self, modes: list[Mode]) -> list[Mode]:
        capacities = {mode: self.problem.capacity([mode]).per_s for mode in modes}
        return sorted(modes, key=lambda mode: -capacities[mode])

    def always(self, mode: Mode) -> System:
        """Nexus with one mode for all states, and no pace.

        A mode that holds its bound only where it is cut to fit would win here, on random
        arrivals, and lose where lengths and rates vary.
        """
        return System(mode.name, mode=mode, bounds=self.problem.bounds)

    def fixed(self, mode: Mode) -> System:
        """The plan that is one mode everywhere."""
        rows = rows_of_one(self.problem, mode, self.draft.axes.states())
        return System(mode.name, plan=self.draft.plan([mode], rows, "fixed"))

    def best_tables(self, max_partitions: int, fixed: Evaluation) -> list[System]:
        """The best of the tables that ``RULES`` make, without partitions, and with few if any.

        ``fixed`` is the best single mode: some tables keep to it wherever it is good enough.
        Partitions cost memory and start-up: a table with them comes only if it is worth that.
        """
        single = fixed.system.mode
        judge = self.under(replace(self.evaluator, bounds=self._strict))
        best = judge._best_of(self._drafts(self.fused, single), fixed.per_s, 0.0)
        assert best is not None
        kept = self.kept(max_partitions)
        if single in self.shared and single not in kept and max_partitions:
            kept = [*kept[: max_partitions - 1], single]
        if not kept:
            return [best.system]
        drafts = self._drafts([*self.fused, *kept], single)
        beat = WORTH_A_LANE * best.per_s
        shared = judge._best_of(drafts, best.per_s, beat)
        return [best.system, *([shared.system] if shared else [])]

    @property
    def _strict(self) -> Bounds:
        """The bounds that tables are told apart by."""
        bounds = self.evaluator.bounds
        return replace(bounds, tbt_ms=_JUDGED_TBT * bounds.tbt_ms)

    def _best_of(self, drafts: list[Plan], guess: float, beat: float) -> Evaluation | None:
        """Of those that sustain most, the one with the shortest TTFT."""
        systems = [System("plan", plan=plan) for plan in drafts]
        close = self.race(systems, guess, _SAME, beat)
        if not close:
            return None
        rate = max(USUAL_LOAD * close[0].per_s, 1e-6)
        return min(close, key=lambda one: self._ttft(one.system, rate))

    def _drafts(self, modes: list[Mode], single: Mode | None) -> list[Plan]:
        """A table of ``modes`` for each rule; one keeps to ``single`` if that is among them."""
        around = [replace(AROUND, usual=mode.name) for mode in modes if mode == single]
        capacity = self.problem.capacity(modes)
        rules = [*RULES, *around]
        tables = choose_tables(self.problem, modes, self.draft.axes, capacity, rules)
        return [self.draft.plan(modes, rows, "nexus") for rows in tables]

    def kept(self, max_partitions: int) -> list[Mode]:
        """The shared modes that are worth a partition, judged in the states visited."""
        if not self.shared or max_partitions == 0:
            return []
        modes, axes, rule = self.modes, self.draft.axes, RULES[0]
        rows = choose_rows(self.problem, modes, axes, self.limit, rule)
        weights = self.visited(self.draft.plan(modes, rows, "nexus"))
        states = with_backlog(axes.states(), axes)
        outcomes, places = self.problem.outcomes(modes, states), States.of(states)
        worth = rule.worth(self.problem, self.limit, outcomes, places)
        worth *= holds(outcomes, places, self.problem.bounds, rule.guard)
        worth /= np.maximum(worth.max(axis=0), 1e-12)
        without = worth[: len(self.fused)].max(axis=0)
        gain = np.maximum(worth[len(self.fused) :] - without, 0.0)
        return [self.shared[index] for index in best_partitions(gain, weights, max_partitions)]

    def visited(self, plan: Plan) -> Floats:
        """The share of time in each state of the grid when the server is busy."""
        rate = max(_BUSY_LOAD * self.limit.per_s, 1e-6)
        run = self.evaluator.evaluate(System("draft", plan=plan), rate, record=True)
        table, index = Table(plan), {row.state: i for i, row in enumerate(plan.rows)}
        weights = np.zeros(len(plan.rows))
        ends = [at for at, _ in run.states[1:]] + [run.end_s]
        for (start, state), end in zip(run.states, ends, strict=True):
            row = table.row(state.decode_batch, state.kv_tokens, state.prefill_backlog)
            weights[index[row.state]] += end - start
        return np.asarray(weights / max(weights.sum(), 1e-12))

    def _ttft(self, system: System, per_s: float) -> float:
        return float(self.evaluator.evaluate(system, per_s).ttft_ms.mean())
