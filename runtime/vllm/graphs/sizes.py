"""Which batches need CUDA graphs: decodes in a partition, and those of fused modes."""

from bisect import bisect_left
from collections.abc import Collection, Sequence

from nexus.core.plan import Plan

MAX_GRAPHS = 16
"""Per partition. A batch between two sizes is padded to the upper one."""

MOST_MIXED_TOKENS = 1024
"""Beyond, a step lasts longer on the device than launching its operators takes any host."""

_MIXED_STEP = 32
"""Tokens. Steps of the device's time are no finer."""

_MARGIN = 1.06
"""The policy keeps a partition a little beyond the states that name it."""


def graph_sizes(plan: Plan, modes: Collection[str], stock: Sequence[int]) -> list[int]:
    """Those of vLLM's own sizes (``stock``) that cover every batch that ``modes`` decode.

    At most ``MAX_GRAPHS``, thinned out evenly, the largest kept; empty if ``stock`` is, or
    if no state names any of ``modes``.
    """
    batches = {row.decode_batch for row in plan.rows if row.mode in modes}
    sizes = sorted(set(stock))
    if not batches or not sizes:
        return []
    axis = (0, *plan.axes.decode_batch)
    below = max((value for value in axis if value < min(batches)), default=0)
    first = bisect_left(sizes, below / _MARGIN)
    last = min(bisect_left(sizes, max(batches) * _MARGIN), len(sizes) - 1)
    if max(batches) >= plan.axes.decode_batch[-1]:  # states beyond the grid are its last
        last = len(sizes) - 1
    wanted = sizes[min(first, last) : last + 1]
    step = -(-len(wanted) // MAX_GRAPHS)
    return wanted[::-1][::step][::-1]


def mixed_sizes(plan: Plan, limit: int) -> list[int]:
    """Tokens of the graphs that batches of the plan's fused modes are padded to, ``limit`` at most.

    Empty if the plan has no fused mode.
    """
    return sizes_up_to(min(max(plan.batches, default=0), limit))


def sizes_up_to(tokens: int) -> list[int]:
    """Tokens of the graphs for batches of up to ``tokens``, or ``MOST_MIXED_TOKENS`` if fewer."""
    most = min(tokens, MOST_MIXED_TOKENS)
    return [*range(_MIXED_STEP, most, _MIXED_STEP), *([most] if most > 0 else [])]
