"""One self-contained HTML page of curves and tables out of a file of results."""

from collections.abc import Mapping, Sequence
from itertools import product
from pathlib import Path
from typing import Any

import numpy as np
from plotly import graph_objects as go
from plotly.offline import get_plotlyjs

from nexus.benchmarks.metrics import OBJECTIVES, Objective
from nexus.benchmarks.report.compare import Table, Value, figure, goodput_rows, tables_of
from nexus.benchmarks.results import Cell, all_cells, whole_of
from nexus.benchmarks.systems import SYSTEMS
from nexus.core.errors import UserError
from nexus.core.io.outputs import check_writable, write_atomically
from nexus.core.io.templates import render_page
from nexus.core.slo import GOOD_REQUESTS

# Told apart without colour too: no two systems share a symbol, neighbours share no dash.
_COLOURS = ("#000000", "#0072b2", "#d55e00", "#009e73", "#cc79a7", "#56b4e9", "#e69f00")
_DASHES = ("solid", "dash", "dot", "dashdot")
_SPREADS = {
    "ttft": "TTFT",
    "tbt": "TBT",
    "tbt_p95": "TBT p95 of a request",
    "tpot": "TPOT",
    "normalized": "ms/token",
    "ttft_longest": "TTFT of longest 10 %",
}
_SHOWN = ("mean", "p50", "p95", "p99")


def write_page(results: Path) -> Path:
    """Write the page beside ``results``, of all their parts.

    Raises UserError when nothing was measured yet.
    """
    tables = tables_of(all_cells(results))
    if not tables:
        raise UserError("nothing was measured")
    whole = whole_of(results)
    page = whole.with_suffix(".html")
    check_writable(page, results, whole)
    write_atomically(page, render(tables))
    return page


def render(tables: Sequence[Table]) -> str:
    """The page, a section for each of ``tables``."""
    cells = [cell for table in tables for cell in table.cells]
    models = ", ".join(dict.fromkeys(table.model for table in tables))
    return render_page(
        __package__,
        title=f"{models} on {tables[0].machine}: stock vLLM and Nexus",
        count=len(cells),
        created=min(cell.created for cell in cells),
        versions=", ".join(f"{k} {v}" for k, v in sorted(cells[0].setting.software.items())),
        plotly=get_plotlyjs(),
        good=f"{GOOD_REQUESTS:.0%}",
        sections=[_section(table) for table in tables],
    )


def _section(table: Table) -> dict[str, Any]:
    bounds = [
        {
            "title": f"TTFT at most {one.ttft_ms:g} ms and "
            f"{'TPOT' if one.tpot else 'TBT p95'} at most {one.gap_ms:g} ms",
            "figures": _figures(table, one),
        }
        for one in _objectives(table)
    ]
    rows = {"goodput": goodput_rows(table), "runs": _runs(table.cells)}
    return {"title": table.title, "bounds": bounds, **rows}


def _objectives(table: Table) -> list[Objective]:
    """The bounds that plans were made for; all of them where there was no plan."""
    names = {cell.key.objective for cell in table.cells if cell.key.objective}
    chosen = [Objective.parse(name) for name in names] or list(OBJECTIVES)
    return sorted(chosen, key=lambda o: (o.tpot, o.ttft_ms, o.gap_ms))


def _figures(table: Table, objective: Objective) -> list[dict[str, Any]]:
    by_system = {name: own for name in table.systems if (own := table.of(name, objective))}
    panels: list[tuple[str, Value, float | None]] = [
        ("requests within both bounds, %", lambda c: 100 * c.attainment(objective), 90.0),
        ("TTFT p50, ms", figure("ttft", "p50"), None),
        ("TTFT p95, ms", figure("ttft", "p95"), objective.ttft_ms),
        ("TBT p50, ms", figure("tbt", "p50"), None),
        ("TBT p95, ms", figure("tbt", "p95"), objective.gap_ms),
        ("TBT p99, ms", figure("tbt", "p99"), None),
        ("TPOT p95, ms", figure("tpot", "p95"), None),
    ]
    return [_curves(by_system, *panel, log=number > 0) for number, panel in enumerate(panels)]


def _curves(
    by_system: Mapping[str, Sequence[Cell]],
    name: str,
    value: Value,
    bound: float | None,
    *,
    log: bool,
) -> dict[str, Any]:
    drawing = go.Figure()
    for system, own in by_system.items():
        at: dict[float, list[float]] = {}
        for cell in own:
            if (seen := value(cell)) is not None and cell.key.rate is not None:
                at.setdefault(cell.key.rate, []).append(seen)
        rates = sorted(at)
        means = [float(np.mean(at[rate])) for rate in rates]
        pairs = list(zip(rates, means, strict=True))
        spread = {
            "array": [max(at[rate]) - mean for rate, mean in pairs],
            "arrayminus": [mean - min(at[rate]) for rate, mean in pairs],
        }
        drawing.add_scatter(
            x=rates, y=means, error_y=spread, name=system, mode="lines+markers", **_look(system)
        )
    if bound is not None:
        drawing.add_hline(y=bound, line={"color": "#333", "width": 1.5, "dash": "longdash"})
    scale = {"type": "log"} if log else {"range": [0, 102]}
    drawing.update_yaxes(title=name, **scale)
    drawing.update_xaxes(title="requests/s", rangemode="tozero")
    drawing.update_layout(
        template="simple_white",
        height=320 if log else 430,
        margin={"l": 60, "r": 10, "t": 10, "b": 50},
        showlegend=not log,
        legend={"orientation": "h", "y": -0.2, "yanchor": "top"},
        font={"size": 13},
    )
    shown = {"displayModeBar": False, "responsive": True}
    drawn = drawing.to_html(full_html=False, include_plotlyjs=False, config=shown)
    return {"wide": not log, "html": drawn}


def _look(system: str) -> dict[str, Any]:
    number = list(SYSTEMS).index(system)
    colour = _COLOURS[number % len(_COLOURS)]
    return {
        "line": {"color": colour, "dash": _DASHES[number % len(_DASHES)], "width": 2},
        "marker": {"symbol": number, "size": 9, "color": colour},
    }


def _runs(cells: Sequence[Cell]) -> list[list[str]]:
    head = ["system", "planned for", "req/s", "repeat", "done", "failed", "req/s out", "tok/s out"]
    head += [f"{kind} {part}" for kind, part in product(_SPREADS.values(), _SHOWN)]
    rows = []
    for cell in sorted(cells, key=lambda c: (c.key.system, c.key.rate or 0, c.key.repeat)):
        key, m = cell.key, cell.metrics
        row = [key.system, key.objective or "", f"{key.rate:g}", str(key.repeat)]
        if m is None:
            rows.append([*row, cell.error or ""])
            continue
        row += [f"{m.completed}", f"{m.failed}", f"{m.requests_per_s:.2f}"]
        row.append(f"{m.output_tokens_per_s:.0f}")
        for name, part in product(_SPREADS, _SHOWN):
            found = figure(name, part)(cell)
            row.append("" if found is None else f"{found:.1f}")
        rows.append(row)
    return [head, *rows]
