"""One self-contained HTML page of curves and tables out of a file of results."""

from collections.abc import Callable, Iterable, Sequence
from html import escape
from pathlib import Path
from typing import Any

from nexus.benchmarks.agenda import attained
from nexus.benchmarks.metrics import GOOD_SHARE, OBJECTIVES, Objective, Spread
from nexus.benchmarks.results import Cell, read_cells
from nexus.benchmarks.search import Crossing, crossing
from nexus.benchmarks.systems import SYSTEMS
from nexus.errors import UserError
from nexus.profiles.documents import write_atomically

# Told apart without colour too: no two systems share a symbol, neighbours share no dash.
_COLOURS = ("#000000", "#0072b2", "#d55e00", "#009e73", "#cc79a7", "#56b4e9", "#e69f00")
_DASHES = ("solid", "dash", "dot", "dashdot")
_SYMBOLS = (
    *("circle", "square", "diamond", "triangle-up", "x", "star", "triangle-down"),
    *("circle-open", "square-open", "diamond-open", "triangle-up-open", "cross", "hexagon"),
)
_STYLE = """
:root{color-scheme:light} body{font:16px/1.45 system-ui,sans-serif;margin:0 auto;max-width:1180px;
padding:1rem;color:#111;background:#fff} h1{font-size:1.6rem} h2{margin-top:2.2rem;
border-bottom:2px solid #111} .grid{display:grid;gap:.5rem;
grid-template-columns:repeat(auto-fit,minmax(min(100%,340px),1fr))} .wide{grid-column:1/-1}
.scroll{overflow-x:auto} table{border-collapse:collapse;font-size:.85rem;white-space:nowrap}
th,td{padding:.2rem .6rem;text-align:right;border-bottom:1px solid #bbb}
th:first-child,td:first-child{text-align:left} .plot{break-inside:avoid;min-width:0}
@media print{body{max-width:none;padding:0} h2{break-before:page} h2:first-of-type{break-before:auto}}
"""


def write_page(results: Path) -> Path:
    """Write the page beside ``results``; raises UserError when nothing was measured yet."""
    cells = latest(read_cells(results)) if results.exists() else []
    shown = [cell for cell in cells if cell.key.rate is not None]
    if not shown:
        raise UserError("nothing was measured")
    page = results.with_suffix(".html")
    write_atomically(page, render(shown))
    return page


def latest(cells: Iterable[Cell]) -> list[Cell]:
    """Of each cell of the grid, the one measured last."""
    return list({cell.key: cell for cell in cells}.values())


def render(cells: Sequence[Cell]) -> str:
    """The page; all ``cells`` have a rate."""
    first = cells[0].setting
    title = f"{first.model} on {first.machine.name}: stock vLLM and Nexus"
    parts = [f"<h1>{escape(title)}</h1>", _preface(cells)]
    names = sorted({cell.key.objective for cell in cells if cell.key.objective})
    objectives = [Objective.parse(name) for name in names] or list(OBJECTIVES)
    objectives.sort(key=lambda o: (o.tpot, o.ttft_ms, o.gap_ms))
    scripts: list[bool | str] = ["inline"]  # plotly's code goes in with the first figure alone
    for workload in dict.fromkeys(cell.key.workload for cell in cells):
        here = [cell for cell in cells if cell.key.workload == workload]
        parts += [f"<h2>{escape(workload)}</h2>", _goodput_table(here, objectives)]
        for objective in objectives:
            rivals = [c for c in here if c.key.objective in (None, objective.name)]
            parts += [
                f"<h3>{escape(_words(objective))}</h3>",
                _figures(rivals, objective, scripts),
            ]
        parts.append(f"<details><summary>All runs</summary>{_runs_table(here)}</details>")
    body = "\n".join(parts)
    return (
        '<!doctype html><html lang="en"><head><meta charset="utf-8"><meta name="viewport" '
        f'content="width=device-width,initial-scale=1"><title>{escape(title)}</title>'
        f"<style>{_STYLE}</style></head><body>{body}</body></html>\n"
    )


def _preface(cells: Sequence[Cell]) -> str:
    first = cells[0].setting
    versions = ", ".join(f"{k} {v}" for k, v in sorted(first.software.items()))
    return (
        f"<p>{len(cells)} runs of {first.duration_s:g} s of arrivals each, from "
        f"{escape(min(c.created for c in cells))} on; {escape(versions)}. Every system gets the "
        "same requests at the same times. TTFT counts from sending, TBT is every gap; "
        f"goodput is the highest measured rate at which at least {GOOD_SHARE:.0%} of all "
        "requests meet both bounds. Bars span the repeats.</p>"
    )


def _words(objective: Objective) -> str:
    what = "TPOT" if objective.tpot else "TBT p95"
    return f"TTFT at most {objective.ttft_ms:g} ms and {what} at most {objective.gap_ms:g} ms"


def _by_system(cells: Iterable[Cell]) -> dict[str, list[Cell]]:
    found: dict[str, list[Cell]] = {}
    for cell in cells:
        found.setdefault(cell.key.system, []).append(cell)
    order = list(SYSTEMS)
    return dict(sorted(found.items(), key=lambda pair: order.index(pair[0])))


def _goodput_table(cells: Sequence[Cell], objectives: Sequence[Objective]) -> str:
    head = ["goodput, req/s", *(objective.name for objective in objectives)]
    rows = []
    for system, own in _by_system(cells).items():
        row = [system]
        for objective in objectives:
            rivals = [c for c in own if c.key.objective in (None, objective.name)]
            row.append(_told(crossing(attained(rivals, objective))) if rivals else "")
        rows.append(row)
    return _table(head, rows)


def _told(edge: Crossing) -> str:
    if edge.above is None:
        return f"≥ {edge.goodput:.3g}"
    if edge.goodput == 0.0:
        return f"< {edge.above:.3g}"
    return f"{edge.goodput:.3g}" if edge.found else f"{edge.goodput:.3g} to {edge.above:.3g}"


def _figures(cells: Sequence[Cell], objective: Objective, scripts: list[bool | str]) -> str:
    panels: list[tuple[str, Callable[[Cell], float | None], float | None]] = [
        ("requests within both bounds, %", lambda c: 100 * c.attainment(objective), 90.0),
        ("TTFT p50, ms", _of("ttft", "p50"), None),
        ("TTFT p95, ms", _of("ttft", "p95"), objective.ttft_ms),
        ("TBT p50, ms", _of("tbt", "p50"), None),
        ("TBT p95, ms", _of("tbt", "p95"), objective.gap_ms),
        ("TBT p99, ms", _of("tbt", "p99"), None),
        ("TPOT p95, ms", _of("tpot", "p95"), None),
    ]
    html = [_goodput_bars(cells, objective, scripts)]
    for number, (name, value, bound) in enumerate(panels):
        html.append(_curves(cells, name, value, bound, scripts, log=number > 0))
    return f'<div class="grid">{"".join(html)}</div>'


def _of(metric: str, part: str) -> Callable[[Cell], float | None]:
    def value(cell: Cell) -> float | None:
        spread: Spread | None = getattr(cell.metrics, metric, None)
        return None if spread is None else float(getattr(spread, part))

    return value


def _curves(
    cells: Sequence[Cell],
    name: str,
    value: Callable[[Cell], float | None],
    bound: float | None,
    scripts: list[bool | str],
    *,
    log: bool,
) -> str:
    from plotly import graph_objects as go

    figure = go.Figure()
    for system, own in _by_system(cells).items():
        at: dict[float, list[float]] = {}
        for cell in own:
            seen = value(cell)
            if seen is not None and cell.key.rate is not None:
                at.setdefault(cell.key.rate, []).append(seen)
        rates = sorted(at)
        means = [sum(at[rate]) / len(at[rate]) for rate in rates]
        spread = {
            "array": [max(at[rate]) - mean for rate, mean in zip(rates, means, strict=True)],
            "arrayminus": [mean - min(at[rate]) for rate, mean in zip(rates, means, strict=True)],
        }
        figure.add_scatter(
            x=rates, y=means, error_y=spread, name=system, mode="lines+markers", **_look(system)
        )
    if bound is not None:
        figure.add_hline(y=bound, line={"color": "#333", "width": 1.5, "dash": "longdash"})
    figure.update_yaxes(title=name, type="log" if log else "linear")
    if not log:
        figure.update_yaxes(range=[0, 102])
    figure.update_xaxes(title="requests/s", rangemode="tozero")
    return _html(figure, scripts, wide=not log)


def _goodput_bars(cells: Sequence[Cell], objective: Objective, scripts: list[bool | str]) -> str:
    from plotly import graph_objects as go

    systems = _by_system(cells)
    edges = [crossing(attained(own, objective)) for own in systems.values()]
    figure = go.Figure(
        go.Bar(
            y=list(systems),
            x=[edge.goodput for edge in edges],
            text=[_told(edge) for edge in edges],
            orientation="h",
            marker={"color": "#bbb", "line": {"color": "#111", "width": 1}},
            showlegend=False,
        )
    )
    figure.update_xaxes(title="goodput, requests/s", rangemode="tozero")
    figure.update_yaxes(autorange="reversed", automargin=True)
    return _html(figure, scripts, wide=True)


def _look(system: str) -> dict[str, Any]:
    number = list(SYSTEMS).index(system)
    colour = _COLOURS[number % len(_COLOURS)]
    return {
        "line": {"color": colour, "dash": _DASHES[number % len(_DASHES)], "width": 2},
        "marker": {"symbol": _SYMBOLS[number], "size": 9, "color": colour},
    }


def _html(figure: Any, scripts: list[bool | str], *, wide: bool) -> str:
    figure.update_layout(
        template="simple_white",
        height=430 if wide else 320,
        margin={"l": 60, "r": 10, "t": 10, "b": 50},
        showlegend=wide,
        legend={"orientation": "h", "y": -0.2, "yanchor": "top"},
        font={"size": 13},
    )
    script = scripts.pop() if scripts else False
    inner = figure.to_html(
        full_html=False,
        include_plotlyjs=script,
        config={"displayModeBar": False, "responsive": True},
    )
    return f'<div class="plot{" wide" if wide else ""}">{inner}</div>'


def _runs_table(cells: Sequence[Cell]) -> str:
    head = ["system", "planned for", "req/s", "repeat", "done", "failed", "req/s out", "tok/s out"]
    kinds = ("TTFT", "TBT", "TPOT", "ms/token", "TTFT of longest 10 %")
    head += [f"{kind} {part}" for kind in kinds for part in ("mean", "p50", "p95", "p99")]
    rows = []
    for cell in sorted(cells, key=lambda c: (c.key.system, c.key.rate or 0, c.key.repeat)):
        key, m = cell.key, cell.metrics
        row = [key.system, key.objective or "", f"{key.rate:g}", str(key.repeat)]
        if m is None:
            rows.append([*row, cell.error or ""])
            continue
        row += [str(m.completed), str(m.failed), f"{m.requests_per_s:.2f}"]
        row.append(f"{m.output_tokens_per_s:.0f}")
        for spread in (m.ttft, m.tbt, m.tpot, m.normalized, m.ttft_longest):
            four = spread and (spread.mean, spread.p50, spread.p95, spread.p99)
            row += [f"{x:.1f}" for x in four] if four else [""] * 4
        rows.append(row)
    return _table(head, rows)


def _table(head: Sequence[str], rows: Iterable[Sequence[str]]) -> str:
    top = "".join(f"<th>{escape(word)}</th>" for word in head)
    lines = ["".join(f"<td>{escape(word)}</td>" for word in row) for row in rows]
    body = "".join(f"<tr>{line}</tr>" for line in lines)
    return f'<div class="scroll"><table><tr>{top}</tr>{body}</table></div>'
