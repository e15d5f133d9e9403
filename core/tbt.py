"""How large a batch with prompts may be, by the gaps between tokens that batches really cause.

A bound on TBT holds for 95 % of a request's gaps, which cuts both ways. Batches that keep
breaking it are too large, whatever the profile says: the device is slower, or contexts are
longer, than when it was measured. And a gap in twenty may be as long as it likes: while
everyone who decodes can afford one, all that waits is computed at once.

The server and the simulator drive this same code; it reads no clock.
"""

from collections.abc import Callable

from nexus.core.plan import Mode, Plan

_AIM = 0.02  # of the steps with prompts may be late: less than LATE_GAPS, as they come in bursts
_STEP = 0.02  # a late step takes so much off a batch, and an _AIM of that comes back with others
_LEAST = 0.6  # of the plan's batch: beyond that it is not the batch
_TILE = 32  # tokens: what batches are profiled and captured in steps of


class TbtController:
    """Fits the table's fused batches to the bound on TBT, step by step."""

    def __init__(self, tbt_ms: float, longest: int, exempt_modes: frozenset[Mode]) -> None:
        """``tbt_ms`` is the bound, ``longest`` how many tokens any batch may have.

        ``exempt_modes`` are modes of whose gaps the bound is not expected.
        """
        self.scale = 1.0
        self._tbt_ms = tbt_ms
        self._long = Mode(mode="fused", chunk=longest)
        self._exempt_modes = exempt_modes
        self._long_is_under_way = False

    @classmethod
    def of(cls, plan: Plan, longest: int) -> "TbtController":
        """For a plan's bound; modes that are late wherever its table names them stay so.

        Where a plan is one mode for all loads it is full batches that tell: a short prompt's is
        within many a bound. And so does the longest batch, if the plan has none as long.
        """
        bound_ms, one = plan.bounds.tbt_ms, len(plan.modes) == 1
        fitting = {
            row.mode
            for row in plan.rows
            if row.decode_batch and row.tbt_ms <= bound_ms
            if not one
            or row.prefill_backlog >= plan.modes[row.mode].prompt_tokens(row.decode_batch)
        }
        late = {mode for name, mode in plan.modes.items() if name not in fitting}
        late |= {Mode(mode="fused", chunk=longest)} - set(plan.modes.values())
        return cls(bound_ms, longest, frozenset(late))

    def batch(
        self, mode: Mode, decode_batch: int, backlog: int, all_afford: Callable[[], bool]
    ) -> Mode:
        """What runs where the table says ``mode``: less, the same, or the most.

        ``backlog`` prompt tokens wait beside ``decode_batch`` sequences. ``all_afford``: whether
        each of those may have one more late gap. It is asked only where that matters, and never
        while the cost of the last such step is not known.
        """
        mixed = mode.mode == "fused" and decode_batch and backlog
        exempt_modes = not mixed or mode in self._exempt_modes
        paced = mode if exempt_modes else self._scaled(mode)
        too_small = paced.chunk < self._long.chunk and backlog > paced.prompt_tokens(decode_batch)
        may_be_long = too_small and not exempt_modes and not self._long_is_under_way
        self._long_is_under_way = may_be_long and all_afford()
        return self._long if self._long_is_under_way else paced

    def is_late(self, gap_ms: float) -> bool:
        """Whether a gap exceeds the bound."""
        return gap_ms > self._tbt_ms

    def ended(self, mode: Mode, gap_ms: float) -> None:
        """A step of ``mode``, with prompts and decodes in it, took ``gap_ms``."""
        if mode.mode == "fused" and mode not in self._exempt_modes:
            moved = self.scale + _STEP * (_AIM - self.is_late(gap_ms))
            self.scale = min(max(moved, _LEAST), 1.0)

    def _scaled(self, mode: Mode) -> Mode:
        less = _TILE * round((1.0 - self.scale) * mode.chunk / _TILE)
        return Mode(mode="fused", chunk=mode.chunk - less) if less else mode
