"""A plan as another server's configuration, as far as that one can say it."""

from itertools import groupby

from nexus.core.errors import UserError
from nexus.core.plan import Mode, Plan, Table

_NOTE = """\
# SGLang --enable-pdmux --pdmux-config-path, from a Nexus plan for {model} on {machine}.
# Each division is [prefill SMs, decode SMs, smallest decode batch].
# What this format cannot say, and the plan does:
#  - one batch (chunked prefill) where that is better: {fused} of the states with both phases
#  - overlap, decode on all SMs with priority: {overlap} of those states
#  - KV tokens in use and prefill backlog: the divisions are for {context} tokens a sequence
#    and a long backlog, which is what the workload ({source}) usually has
#  - the bounds themselves (TTFT {ttft}, TBT {tbt:g} ms): nothing here holds them
"""


def export_pdmux(plan: Plan) -> str:
    """SGLang's pdmux YAML (``sm_group_num``, ``manual_divisions``) with a note of its limits.

    Raises UserError when the plan has no split, which is all that pdmux can do.
    """
    splits = [mode for mode in plan.modes.values() if mode.mode == "split"]
    if not splits:
        raise UserError("the plan has no split, and SGLang's pdmux has nothing else")
    divisions = _divisions(plan)
    rows = "\n".join(f"  - [{p}, {d}, {batch}]" for p, d, batch in divisions)
    both = [row for row in plan.rows if row.decode_batch and row.prefill_backlog]
    share = {
        kind: sum(plan.modes[row.mode].mode == kind for row in both) / max(len(both), 1)
        for kind in ("fused", "overlap")
    }
    note = _NOTE.format(
        model=plan.model.name,
        machine=plan.machine.name,
        fused=f"{share['fused']:.0%}",
        overlap=f"{share['overlap']:.0%}",
        context=_usual_context(plan),
        source=plan.workload.source,
        ttft=plan.bounds.ttft_name,
        tbt=plan.bounds.tbt_ms,
    )
    # Two more groups: prefill alone and decode alone, each on all SMs.
    return f"{note}sm_group_num: {len(divisions) + 2}\nmanual_divisions:\n{rows}\n"


def _divisions(plan: Plan) -> list[tuple[int, int, int]]:
    """(prefill SMs, decode SMs, smallest batch), by rising batch; the first from 0 on."""
    table, backlog = Table(plan), plan.axes.prefill_backlog[-1]
    context = _usual_context(plan)
    batches = [batch for batch in plan.axes.decode_batch if batch]
    named = [plan.modes[table.row(batch, batch * context, backlog).mode] for batch in batches]
    splits = [_nearest_split(plan, named, index) for index in range(len(named))]
    divisions = []
    below = 0  # a threshold is the smallest batch, a row of the table the largest
    for split, group in groupby(zip(splits, batches, strict=True), key=lambda pair: pair[0].name):
        mode = plan.modes[split]
        divisions.append((mode.prefill_sms, mode.decode_sms, below))
        below = max(batch for _, batch in group) + 1
    return divisions


def _nearest_split(plan: Plan, named: list[Mode], index: int) -> Mode:
    """The split that the plan names at the nearest batch, or its only choice."""
    found = [i for i, mode in enumerate(named) if mode.mode == "split"]
    if found:
        return named[min(found, key=lambda i: abs(i - index))]
    return next(mode for mode in plan.modes.values() if mode.mode == "split")


def _usual_context(plan: Plan) -> int:
    return round(plan.workload.input_tokens + plan.workload.output_tokens / 2)
