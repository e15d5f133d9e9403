"""The table of a static share: one mode, with what it gives at the workload's usual load."""

from nexus.core.plan import Axes, Mode, Row
from nexus.planner.latency.steptimes import StepTimes
from nexus.planner.search.problem import Problem


def static_table(
    problem: Problem, times: StepTimes, mode: Mode, level: float
) -> tuple[Axes, tuple[Row, ...]]:
    """Four states: each phase idle or not, decode with ``level`` sequences of usual length.

    A phase whose neighbour is idle still has its own SMs only.
    """
    lengths, lane = problem.lengths, times.lane(mode)
    batch = min(max(1, round(level)), problem.engine.max_num_seqs)
    kv = max(1, round(batch * lengths.decode_context))
    before = lengths.prompt_position - mode.chunk / 2
    alone_ms = lane.decode_alone(0, 0.0, batch, kv)
    beside_ms = max(alone_ms, lane.decode(mode.chunk, before, batch, kv))
    prompt_ms = lane.prefill(mode.chunk, before, batch, kv)
    prompt_alone_ms = min(prompt_ms, lane.prefill_alone(mode.chunk, before, 0, 0.0))
    axes = Axes(decode_batch=(0, batch), kv_tokens=(kv,), prefill_backlog=(0, mode.chunk))
    shown = {
        (0, 0): (0.0, 0.0),
        (0, mode.chunk): (0.0, prompt_alone_ms),
        (batch, 0): (alone_ms, 0.0),
        (batch, mode.chunk): (beside_ms, prompt_ms),
    }
    rows = tuple(
        Row(
            decode_batch=decodes,
            kv_tokens=kv,
            prefill_backlog=backlog,
            mode=mode.name,
            tbt_ms=round(tbt_ms, 3),
            prefill_tokens_per_s=round(1e3 * mode.chunk / pass_ms, 1) if pass_ms else 0.0,
        )
        for (decodes, backlog), (tbt_ms, pass_ms) in shown.items()
    )
    return axes, rows
