"""From the server's state to a mode, and from waiting prompts to an order.

The server and the simulator drive this same code, one on the wall clock, the other
on virtual time: it reads no clock and touches no engine.
"""

from dataclasses import dataclass
from typing import Literal

from nexus.planner.table import Mode, Row, Table

PrefillOrder = Literal["spf", "fcfs"]

DEFAULT_AGING_TOKENS_PER_S = 50.0


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
    the table at every step, since changing one costs nothing.
    """

    def __init__(self, table: Table, hysteresis: float = 0.05) -> None:
        """``hysteresis`` is the relative width of the band around a grid line."""
        self.table = table
        self.hysteresis = hysteresis
        self._mode: Mode | None = None

    def decide(self, state: State) -> tuple[Mode, Row]:
        """The mode for a step in ``state``, with the row that predicts it."""
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


def prefill_rank(
    remaining_tokens: int,
    arrival_s: float,
    order: PrefillOrder,
    aging_tokens_per_s: float = DEFAULT_AGING_TOKENS_PER_S,
) -> float:
    """Where a prompt stands in line: the lowest rank runs first.

    ``fcfs`` ranks by arrival. ``spf`` ranks by tokens left minus
    ``aging_tokens_per_s`` for each second waited. As every prompt ages alike, the
    present time cancels out of each comparison, so a rank never has to be updated.
    """
    if order == "fcfs":
        return arrival_s
    return remaining_tokens + aging_tokens_per_s * arrival_s
