"""Plans that hold an engine to one way of sharing, made out of a real plan."""

import re
from dataclasses import replace
from pathlib import Path

from nexus.core.errors import UserError
from nexus.core.plan import Mode, Plan, Row, write_plan

_NAME = re.compile(r"overlap-(?P<p>\d+)|split-(?P<s>\d+)-(?P<d>\d+)")


def lane_modes_of(plan: Plan, names: str) -> list[Mode]:
    """The modes called ``names`` (commas between), or the plan's first overlap and split.

    A name that the plan does not have takes the plan's longest chunk of a lane. Raises
    UserError for a name that is none, and for a plan without lane modes when none is named.
    """
    lanes = [mode for mode in plan.modes.values() if mode.mode != "fused"]
    if names:
        chunk = max((mode.chunk for mode in lanes), default=2048)
        known = {mode.name: mode for mode in lanes}
        return [known.get(name) or _parse(name, chunk) for name in names.split(",")]
    firsts = {kind: next((m for m in lanes if m.mode == kind), None) for kind in _KINDS}
    found = [mode for mode in firsts.values() if mode is not None]
    if not found:
        raise UserError("the plan has no split and no overlap: name them, as overlap-100")
    return found


def with_modes(plan: Plan, lanes: list[Mode], always: Mode | None = None) -> Plan:
    """``plan`` with ``lanes`` alone to choose from, and the smallest fused chunk.

    States without a backlog are fused. All others are in ``always``, by default in each of
    ``lanes`` in turn, so that an engine makes graphs for all of them. Predictions are the
    plan's where its own row names that mode, else left out.
    """
    fused = Mode("fused", min(plan.batches, default=512))
    axes = plan.axes
    rows = []
    for row in plan.rows:
        name = fused.name
        if row.prefill_backlog:
            turn = axes.kv_tokens.index(row.kv_tokens) + axes.prefill_backlog.index(
                row.prefill_backlog
            )
            name = (always or lanes[turn % len(lanes)]).name
        if row.mode != name:
            row = Row(*row.state, mode=name)
        rows.append(row)
    modes = {mode.name: mode for mode in (*lanes, fused)}
    return replace(plan, modes=modes, rows=tuple(rows))


def write(plan: Plan, path: Path) -> Path:
    """``plan`` at ``path``, which is returned."""
    write_plan(path, plan)
    return path


_KINDS = ("overlap", "split")


def _parse(name: str, chunk: int) -> Mode:
    match = _NAME.fullmatch(name)
    if match is None:
        raise UserError(f"no such lane mode: {name} (overlap-PREFILL or split-PREFILL-DECODE)")
    if match["p"]:
        return Mode("overlap", chunk, prefill_sms=int(match["p"]))
    return Mode("split", chunk, prefill_sms=int(match["s"]), decode_sms=int(match["d"]))
