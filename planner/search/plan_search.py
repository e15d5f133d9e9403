"""Tables against every single mode and stock vLLM, evaluated on the same requests."""

from dataclasses import dataclass, replace

import numpy as np

from nexus.core.arrays import Floats
from nexus.core.plan import Mode, Plan, Table
from nexus.core.slo import Bounds
from nexus.planner.latency.frontier import States
from nexus.planner.search.choice import Rule, choose_rows, holds, with_backlog
from nexus.planner.search.draft import Draft
from nexus.planner.search.goodput import USUAL_LOAD, Evaluator
from nexus.planner.search.partitions import best_partitions
from nexus.planner.simulator.simulate import System, stock_system
from nexus.planner.workload.requests import Requests

# What a tuned vLLM without Nexus is run with: which is best depends on the bounds.
STOCK_CHUNKS = (256, 320, 384, 512, 1024, 2048, 8192)
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
_WORTH_A_LANE = 1.03  # times as much is worth what partitions cost in memory and start-up
_SAME = 0.99  # tables that sustain this much of the best are told apart by their TTFT
_LITTLE = 0.2  # of the fluid limit: below it, rates that a few long prompts decide are no measure
_TRIED_LOADS = (0.25, 0.5, 0.75)  # where shares of good requests are compared instead


@dataclass(frozen=True)
class Evaluation:
    """A system and the highest rate that it sustains; ``good`` its mean share otherwise.

    ``good`` is the share of requests that meet both bounds, over several loads.
    """

    system: System
    per_s: float
    good: float


Entry = tuple[Evaluation, Plan]


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

    def better(self, one: Evaluation, other: Evaluation, by: float = 1.0) -> bool:
        """Whether ``one`` sustains more than ``by`` times what ``other`` does."""
        if self._is_much(max(one.per_s, other.per_s)):
            return one.per_s > by * other.per_s
        return one.good > by * other.good

    def with_requests(self, requests: Requests) -> "PlanSearch":
        """The same search on other requests."""
        return PlanSearch(
            self.draft, replace(self.evaluator, requests=requests), self.fused, self.shared
        )

    def evaluate(self, system: System, at_least: float = 0.0) -> Evaluation:
        """Find the rate that ``system`` sustains, which is ``at_least`` what is given."""
        per_s = self.evaluator.goodput(system, at_least, self._highest(system))
        good = 1.0 if self._is_much(per_s) else self._good(system)
        return Evaluation(system, per_s, good)

    def _is_much(self, per_s: float) -> bool:
        return per_s >= _LITTLE * self.limit.per_s

    def _good(self, system: System) -> float:
        rates = [load * self.limit.per_s for load in _TRIED_LOADS]
        return float(np.mean([self.evaluator.attainment(system, rate) for rate in rates]))

    def best_stock(self) -> Evaluation:
        """The best of stock vLLM's chunks."""
        first, *others = self._stock()
        best = self.evaluate(first)
        for system in others:
            best = self._improved(best, system)
        return best

    def best_fixed(self, start: Evaluation) -> Evaluation:
        """The best single mode, or ``start`` when none is better."""
        capacities = {mode.name: self.problem.capacity([mode]).per_s for mode in self.modes}
        best = start
        for mode in sorted(self.modes, key=lambda one: -capacities[one.name]):
            best = self._improved(best, self.always(mode))
        return best

    def _improved(self, best: Evaluation, system: System) -> Evaluation:
        """``system`` as it plays if it is better than ``best``, else that."""
        if self._highest(system) <= best.per_s:
            return best
        if self._is_much(best.per_s):
            wins = self.evaluator.sustains(system, best.per_s)
            return self.evaluate(system, best.per_s) if wins else best
        return self.evaluate(system) if self._good(system) > best.good else best

    def always(self, mode: Mode) -> System:
        """Nexus with one mode for all states, and no pace.

        A mode that holds its bound only where it is cut to fit would win here, on random
        arrivals, and lose where lengths and rates vary.
        """
        return System(mode.name, mode=mode, bounds=self.problem.bounds)

    def best_table(self, max_partitions: int, fixed: Evaluation) -> tuple[Evaluation, Plan]:
        """The best of the tables that ``RULES`` make, with few partitions or none.

        ``fixed`` is the best single mode: some tables keep to it wherever it is good enough.
        """
        kept = self.kept(max_partitions)
        single = fixed.system.mode
        if single in self.shared and single not in kept and max_partitions:
            kept = [*kept[: max_partitions - 1], single]
        judge = self._judge()
        best, plan = judge._winner(self._drafts(self.fused, single), None)
        if kept:
            drafts = self._drafts([*self.fused, *kept], single)
            best, plan = judge._winner(drafts, (best, plan))
        return self.evaluate(System("plan", plan=plan)), plan

    def _judge(self) -> "PlanSearch":
        """The same search with the bounds that tables are told apart by."""
        bounds = self.evaluator.bounds
        strict = replace(bounds, tbt_ms=_JUDGED_TBT * bounds.tbt_ms)
        evaluator = replace(self.evaluator, bounds=strict)
        return PlanSearch(self.draft, evaluator, self.fused, self.shared)

    def _winner(self, drafts: list[Plan], incumbent: Entry | None) -> Entry:
        """The best of ``drafts``; ``incumbent``, if there is one, where none is much better."""
        evaluated: list[Entry] = []
        for plan in drafts:
            if not any(plan.rows == other.rows for _, other in evaluated):
                self._enter(plan, evaluated, incumbent)
        if incumbent is not None and not self._is_much(incumbent[0].per_s):
            evaluated = [
                one for one in evaluated if self.better(one[0], incumbent[0], _WORTH_A_LANE)
            ]
        if incumbent is not None and not evaluated:
            return incumbent
        best = self._best([entry for entry, _ in evaluated])
        close = [entry for entry in evaluated if not self.better(best, entry[0], 1 / _SAME)]
        rate = max(USUAL_LOAD * best.per_s, 1e-6)
        return min(close, key=lambda entry: self._ttft(entry[0].system, rate))

    def _drafts(self, modes: list[Mode], single: Mode | None) -> list[Plan]:
        """A table of ``modes`` for each rule; one keeps to ``single`` if that is among them."""
        around = [replace(AROUND, usual=mode.name) for mode in modes if mode == single]
        capacity = self.problem.capacity(modes)
        tables = [
            choose_rows(self.problem, modes, self.draft.axes, capacity, rule)
            for rule in (*RULES, *around)
        ]
        return [self.draft.plan(modes, rows, "nexus") for rows in tables]

    def _enter(self, plan: Plan, evaluated: list[Entry], incumbent: Entry | None) -> None:
        """Play a table to its end unless it is soon seen to be worse than another."""
        system, floor = System("plan", plan=plan), 0.0
        highest = self._highest(system)
        if incumbent is not None and self._is_much(incumbent[0].per_s):
            floor = _WORTH_A_LANE * incumbent[0].per_s
        if evaluated:
            best = self._best([entry for entry, _ in evaluated])
            if self._is_much(best.per_s):
                floor = max(floor, min(_SAME * best.per_s, highest))
        if floor and (floor > highest or not self.evaluator.sustains(system, floor)):
            return
        evaluated.append((self.evaluate(system, floor), plan))

    def _best(self, entries: list[Evaluation]) -> Evaluation:
        best = entries[0]
        for entry in entries[1:]:
            best = entry if self.better(entry, best) else best
        return best

    def _stock(self) -> list[System]:
        most = min(self.problem.engine.max_num_batched_tokens, self.evaluator.times.max_chunk)
        return [stock_system(chunk) for chunk in sorted({min(c, most) for c in STOCK_CHUNKS})]

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

    def _highest(self, system: System) -> float:
        """What no such system exceeds for long: its fluid limit.

        A table keeps gaps within TBT; one mode alone runs whatever its gaps are.
        """
        if system.mode is None:
            assert system.plan is not None
            return max(self.problem.capacity(list(system.plan.modes.values())).per_s, 1e-6)
        loose = Bounds(ttft_ms=_ENDLESS_MS, tbt_ms=_ENDLESS_MS)
        return max(self.problem.capacity([system.mode], loose).per_s, 1e-6)

    def _ttft(self, system: System, per_s: float) -> float:
        return float(self.evaluator.evaluate(system, per_s).ttft_ms.mean())
