"""From the server's state to a mode.

The server and the simulator drive this same code, one on the wall clock, the other
on virtual time: it reads no clock and touches no engine.
"""

from collections.abc import Callable
from dataclasses import dataclass, replace

from nexus.core.plan import Mode, Plan, Row, Table
from nexus.core.tbt import TbtController


@dataclass(frozen=True)
class State:
    """What the table is looked up by.

    ``decode_batch``: requests that generate; ``kv_tokens``: tokens held in the KV
    cache by running requests; ``prefill_backlog``: prompt tokens not yet computed.
    """

    decode_batch: int
    kv_tokens: int
    prefill_backlog: int


def rate_in_steps(mode: Mode, row: Row) -> float:
    """Prompt tokens per second by which steps in ``mode`` rank prompts anew; 0: they do not.

    On the lane ranks stay what they were: those of a choice at one step would not do.
    """
    return row.prefill_tokens_per_s if mode.mode == "fused" else 0.0


class Policy:
    """Chooses each step's mode.

    A partition is kept while the table names it anywhere within ``hysteresis`` of the
    state, so that noise around a grid line does not flap. Chunks of fused modes follow
    the table at every step, since changing one costs nothing, and what the TBT controller makes of them.
    """

    def __init__(self, table: Table, controller: TbtController, hysteresis: float = 0.05) -> None:
        """``hysteresis`` is the relative width of the band around a grid line."""
        self.table = table
        self.controller = controller
        self.hysteresis = hysteresis
        self._mode: Mode | None = None

    @classmethod
    def of(cls, plan: Plan, longest: int) -> "Policy":
        """For a plan, on a server whose batches have up to ``longest`` tokens."""
        return cls(Table(plan), TbtController.of(plan, longest))

    def decide(self, state: State, all_afford: Callable[[], bool]) -> tuple[Mode, Row]:
        """The mode for a step in ``state``, with the row that predicts it.

        ``all_afford``: as for ``TbtController.batch``. A row that names another mode predicts nothing.
        """
        mode, row = self._of_table(state)
        paced = self.controller.batch(mode, state.decode_batch, state.prefill_backlog, all_afford)
        if paced.chunk >= mode.chunk:
            return paced, row
        # In between, a step takes what it takes without prompts and its share of the rest.
        share = paced.prompt_tokens(state.decode_batch) / mode.prompt_tokens(state.decode_batch)
        alone_ms = self.table.row(state.decode_batch, state.kv_tokens, 0).tbt_ms
        tbt_ms = alone_ms + share * (row.tbt_ms - alone_ms)
        slower = share * row.tbt_ms / tbt_ms if tbt_ms else 1.0
        per_s = row.prefill_tokens_per_s * slower
        return paced, replace(row, mode=paced.name, tbt_ms=tbt_ms, prefill_tokens_per_s=per_s)

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
