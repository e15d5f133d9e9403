"""The report's maps: the table itself, and where which mode is best."""

import numpy as np
import plotly.graph_objects as go
from plotly.subplots import make_subplots

from nexus.core.plan import Mode, Plan, Table
from nexus.planner.report.figures import mode_label
from nexus.planner.report.regimes import LOADS, RATIOS, TBT_FACTORS, Regime, regimes
from nexus.planner.search.plan_search import PlanSearch

_MOST_GAIN = 2.0
_KINDS = ("fused", "split", "overlap")
_LIGHT = {"fused": (0.02, 0.3), "split": (0.45, 0.65), "overlap": (0.8, 1.0)}


def table_figure(plan: Plan) -> go.Figure:
    """Each state's mode with a long backlog: decode batch across, KV tokens up.

    Light cells are one batch, with the chunk in tokens; darker ones split (s and prefill
    SMs) or overlap (o and prefill SMs).
    """
    table, backlog = Table(plan), plan.axes.prefill_backlog[-1]
    batches = [batch for batch in plan.axes.decode_batch if batch]
    modes = [
        [plan.modes[table.row(batch, kv, backlog).mode] for batch in batches]
        for kv in plan.axes.kv_tokens
    ]
    shades = _shades(list(plan.modes.values()))
    rows = [
        [f"{plan.modes[r.mode].name}<br>TBT {r.tbt_ms:.1f} ms<br>{r.prefill_tokens_per_s:.0f} prompt tokens/s"
         for r in (table.row(batch, kv, backlog) for batch in batches)]
        for kv in plan.axes.kv_tokens
    ]  # fmt: skip
    figure = go.Figure(
        go.Heatmap(
            x=[str(batch) for batch in batches],
            y=[_thousands(kv) for kv in plan.axes.kv_tokens],
            z=[[shades[mode.name] for mode in row] for row in modes],
            text=[[mode_label(mode) for mode in row] for row in modes],
            hovertext=rows, hoverinfo="text", texttemplate="%{text}", textfont={"size": 10},
            colorscale="Greys", zmin=0, zmax=2.0, showscale=False, xgap=1, ygap=1,
        )
    )  # fmt: skip
    figure.update_xaxes(title_text="sequences that decode (at most)", type="category")
    figure.update_yaxes(title_text="KV tokens in use (at most)", type="category")
    figure.update_layout(height=460)
    return figure


def _shades(modes: list[Mode]) -> dict[str, float]:
    shades = {}
    for kind in _KINDS:
        members = sorted(
            (m for m in modes if m.mode == kind), key=lambda m: m.chunk + m.prefill_sms
        )
        low, high = _LIGHT[kind]
        for index, mode in enumerate(members):
            shades[mode.name] = low + (high - low) * index / max(len(members) - 1, 1)
    return shades


def _thousands(tokens: int) -> str:
    return f"{tokens / 1000:.0f}k" if tokens >= 10_000 else f"{tokens}"


def regime_figure(plan_search: PlanSearch) -> go.Figure:
    """The best mode by TBT bound and input:output ratio, at three loads.

    Darker: the prompt is done that much sooner than with the best chunk alone. A dot marks
    cells where no mode holds the bounds.
    """
    bounds = plan_search.problem.bounds
    titles = [f"at {load:.0%} of capacity" for load in LOADS]
    figure = make_subplots(rows=len(LOADS), subplot_titles=titles, vertical_spacing=0.13)
    for index, load in enumerate(LOADS):
        cells = regimes(plan_search, load)
        figure.add_trace(
            go.Heatmap(
                x=[f"{ratio:g} : 1" for ratio in RATIOS],
                y=[f"{factor * bounds.tbt_ms:g}" for factor in TBT_FACTORS],
                z=[[min(cell.gain, _MOST_GAIN) if cell.mode else None for cell in row] for row in cells],
                text=[[_cell_text(cell) for cell in row] for row in cells],
                texttemplate="%{text}", hoverinfo="text", textfont={"size": 11},
                colorscale="Greys", zmin=1, zmax=2.2 * _MOST_GAIN,
                showscale=False, xgap=1, ygap=1,
            ),
            row=index + 1, col=1,
        )  # fmt: skip
    figure.update_xaxes(title_text="prompt : output tokens", type="category")
    figure.update_yaxes(title_text="TBT bound, ms", type="category")
    figure.update_layout(height=800)
    return figure


def _cell_text(cell: Regime) -> str:
    if cell.mode is None:
        return "·"
    if cell.mode.mode == "fused":
        return mode_label(cell.mode)
    gain = "only it" if not np.isfinite(cell.gain) else f"×{cell.gain:.2f}"
    return f"{mode_label(cell.mode)}<br>{gain}"
