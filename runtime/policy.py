"""From the server's state to a mode, and from waiting prompts to an order.

The server and the simulator drive this same code, one on the wall clock, the other
on virtual time: it reads no clock and touches no engine.
"""

from collections.abc import Callable
from dataclasses import dataclass, replace
from math import inf
from typing import Literal

from nexus.planner.table import Mode, Plan, Row, Table
from nexus.runtime.pace import Pace

PrefillOrder = Literal["spf", "fcfs"]

DEFAULT_AGING_TOKENS_PER_S = 50.0

LATE_TOKENS = 16384
"""What being too late for the bound on TTFT counts as: about the longest prompt. Aging makes up
for it, so that none waits for ever."""


@dataclass(frozen=True)
class State:
    """What the table is looked up by.

    ``decode_batch``: requests that generate; ``kv_tokens``: tokens held in the KV
    cache by running requests; ``prefill_backlog``: prompt tokens not yet computed.
    """

    decode_batch: int
    kv_tokens: int
    prefill_backlog: int


class Policy:
    """Chooses each step's mode.

    A partition is kept while the table names it anywhere within ``hysteresis`` of the
    state, so that noise around a grid line does not flap. Chunks of fused modes follow
    the table at every step, since changing one costs nothing, and the pace of the server.
    """

    def __init__(self, table: Table, pace: Pace, hysteresis: float = 0.05) -> None:
        """``hysteresis`` is the relative width of the band around a grid line."""
        self.table = table
        self.pace = pace
        self.hysteresis = hysteresis
        self._mode: Mode | None = None

    @classmethod
    def of(cls, plan: Plan, longest: int) -> "Policy":
        """For a plan, on a server whose batches have up to ``longest`` tokens."""
        return cls(Table(plan), Pace.of(plan, longest))

    def decide(self, state: State, all_afford: Callable[[], bool]) -> tuple[Mode, Row]:
        """The mode for a step in ``state``, with the row that predicts it.

        ``all_afford``: as for ``Pace.batch``. A row that names another mode predicts nothing.
        """
        mode, row = self._of_table(state)
        paced = self.pace.batch(mode, state.decode_batch, state.prefill_backlog, all_afford)
        if paced.chunk >= mode.chunk:
            return paced, row
        # In between, a step takes what it takes without prompts and its share of the rest.
        share = paced.prompt_tokens(state.decode_batch) / mode.prompt_tokens(state.decode_batch)
        alone_ms = self.table.row(state.decode_batch, state.kv_tokens, 0).tbt_ms
        tbt_ms = alone_ms + share * (row.tbt_ms - alone_ms)
        return paced, replace(row, mode=paced.name, tbt_ms=tbt_ms)

    def _of_table(self, state: State) -> tuple[Mode, Row]:
        row = self.table.row(state.decode_batch, state.kv_tokens, state.prefill_backlog)
        mode = self.table.modes[row.mode]
        kept = self._mode
        if kept is not None and mode != kept and not mode.mode == kept.mode == "fused":
            for factor in (1.0 - self.hysteresis, 1.0 + self.hysteresis):
                near = self._nearby(state, factor)
                if self.table.modes[near.mode] == kept:
                    return kept, near
        self._mode = mode
        return mode, row

    def _nearby(self, state: State, factor: float) -> Row:
        return self.table.row(
            int(state.decode_batch * factor),
            int(state.kv_tokens * factor),
            int(state.prefill_backlog * factor),
        )


class Line:
    """Where prompts stand in line: the lowest rank runs first.

    ``fcfs`` ranks by arrival. ``spf`` ranks by tokens left minus ``aging_tokens_per_s`` for each
    second waited; as every prompt ages alike, the present time cancels out of each comparison.
    A prompt whose first token would come after ``ttft_s`` even if it ran now, at
    ``tokens_per_s``, counts as ``LATE_TOKENS`` longer: those that can still be on time go first.
    """

    def __init__(
        self,
        order: PrefillOrder,
        aging_tokens_per_s: float = DEFAULT_AGING_TOKENS_PER_S,
        ttft_s: float = inf,
        tokens_per_s: float = inf,
    ) -> None:
        """``now_s`` is to be set, on the clock of arrivals."""
        self.order = order
        self.now_s = 0.0
        self._aging_tokens_per_s = aging_tokens_per_s
        self._ttft_s = ttft_s
        self._tokens_per_s = tokens_per_s

    @classmethod
    def of(cls, plan: Plan, order: PrefillOrder, aging_tokens_per_s: float) -> "Line":
        """With the plan's bound on TTFT, and the fastest prefill that its table has."""
        fastest = max(row.prefill_tokens_per_s for row in plan.rows)
        return cls(order, aging_tokens_per_s, plan.bounds.ttft_ms / 1e3, fastest or inf)

    def late_after(self, remaining_tokens: int, arrival_s: float) -> float:
        """Until when a prompt must have begun to be on time; never where the order is fcfs."""
        if self.order == "fcfs":
            return inf
        return arrival_s + self._ttft_s - remaining_tokens / self._tokens_per_s

    def rank(self, remaining_tokens: int, arrival_s: float) -> float:
        """The rank of a prompt at ``now_s``."""
        if self.order == "fcfs":
            return arrival_s
        is_late = self.now_s > self.late_after(remaining_tokens, arrival_s)
        aged = remaining_tokens + self._aging_tokens_per_s * arrival_s
        return aged + LATE_TOKENS if is_late else aged
