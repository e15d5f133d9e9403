"""One self-contained HTML page of curves and tables out of a file of results."""

from collections.abc import Callable, Iterable, Mapping, Sequence
from html import escape
from pathlib import Path
from typing import Any

from nexus.benchmarks.aims import aims
from nexus.benchmarks.compare import Figure, Table, tables_of
from nexus.benchmarks.document import goodput_rows
from nexus.benchmarks.metrics import OBJECTIVES, Objective
from nexus.benchmarks.results import Cell, all_cells, whole_of
from nexus.benchmarks.systems import SYSTEMS
from nexus.core.errors import UserError
from nexus.core.io.outputs import check_writable, write_atomically
from nexus.core.slo import GOOD_REQUESTS

# Told apart without colour too: no two systems share a symbol, neighbours share no dash.
_COLOURS = ("#000000", "#0072b2", "#d55e00", "#009e73", "#cc79a7", "#56b4e9", "#e69f00")
_DASHES = ("solid", "dash", "dot", "dashdot")
_SYMBOLS = (
    *("circle", "square", "diamond", "triangle-up", "x", "star", "triangle-down"),
    *("circle-open", "square-open", "diamond-open", "triangle-up-open", "cross", "hexagon"),
    *("cross-open", "hexagon-open", "star-open", "triangle-down-open", "pentagon"),
    *("pentagon-open", "star-diamond", "star-square", "hourglass", "bowtie", "star-triangle-up"),
)
_STYLE = """
:root{color-scheme:light} body{font:16px/1.45 system-ui,sans-serif;margin:0 auto;max-width:1180px;
padding:1rem;color:#111;background:#fff} h1{font-size:1.6rem} h2{margin-top:2.2rem;
border-bottom:2px solid #111} .grid{display:grid;gap:.5rem;
grid-template-columns:repeat(auto-fit,minmax(min(100%,340px),1fr))} .wide{grid-column:1/-1}
.scroll{overflow-x:auto} table{border-collapse:collapse;font-size:.85rem;white-space:nowrap}
th,td{padding:.2rem .6rem;text-align:right;border-bottom:1px solid #bbb}
th:first-child,td:first-child,.wraps td,.wraps th{text-align:left} .wraps{white-space:normal} .plot{break-inside:avoid;min-width:0}
@media print{body{max-width:none;padding:0} h2{break-before:page} h2:first-of-type{break-before:auto}}
"""


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
    models = ", ".join(dict.fromkeys(table.model for table in tables))
    title = f"{models} on {tables[0].machine}: stock vLLM and Nexus"
    parts = [f"<h1>{escape(title)}</h1>", _preface(tables), _aims(tables)]
    scripts: list[bool | str] = ["inline"]  # plotly's code goes in with the first figure alone
    for table in tables:
        parts += [f"<h2>{escape(table.title)}</h2>", _goodput(table)]
        for objective in _objectives(table):
            parts += [
                f"<h3>{escape(_words(objective))}</h3>",
                _figures(table, objective, scripts),
            ]
        parts.append(f"<details><summary>All runs</summary>{_runs_table(table.cells)}</details>")
    body = "\n".join(parts)
    return (
        '<!doctype html><html lang="en"><head><meta charset="utf-8"><meta name="viewport" '
        f'content="width=device-width,initial-scale=1"><title>{escape(title)}</title>'
        f"<style>{_STYLE}</style></head><body>{body}</body></html>\n"
    )


def _objectives(table: Table) -> list[Objective]:
    """The bounds that plans were made for; all of them where there was no plan."""
    names = {cell.key.objective for cell in table.cells if cell.key.objective}
    chosen = [Objective.parse(name) for name in names] or list(OBJECTIVES)
    return sorted(chosen, key=lambda o: (o.tpot, o.ttft_ms, o.gap_ms))


def _preface(tables: Sequence[Table]) -> str:
    cells = [cell for table in tables for cell in table.cells]
    first = cells[0].setting
    versions = ", ".join(f"{k} {v}" for k, v in sorted(first.software.items()))
    return (
        f"<p>{len(cells)} runs from {escape(min(c.created for c in cells))} on; "
        f"{escape(versions)}. Every system gets the same requests at the same times. "
        "TTFT counts from sending, TBT is every gap; "
        f"goodput is the rate up to which at least {GOOD_REQUESTS:.0%} of all requests meet both "
        "bounds, interpolated between two measured ones. Bars span the repeats.</p>"
    )


def _aims(tables: Sequence[Table]) -> str:
    words = {None: "", True: "yes", False: "no"}
    rows = [[aim.what, aim.found, words[aim.met]] for aim in aims(tables)]
    table = _table(["aim", "found", "met"], rows, wraps=True)
    return f"<h2>What was aimed at</h2>{table}"


def _words(objective: Objective) -> str:
    what = "TPOT" if objective.tpot else "TBT p95"
    return f"TTFT at most {objective.ttft_ms:g} ms and {what} at most {objective.gap_ms:g} ms"


def _goodput(table: Table) -> str:
    head, *rows = goodput_rows(table)
    return _table(head, rows)


def _figures(table: Table, objective: Objective, scripts: list[bool | str]) -> str:
    by_system = {name: own for name in table.systems if (own := table.of(name, objective))}
    panels: list[tuple[str, Callable[[Cell], float | None], float | None]] = [
        ("requests within both bounds, %", lambda c: 100 * c.attainment(objective), 90.0),
        ("TTFT p50, ms", Figure("ttft", "p50").of, None),
        ("TTFT p95, ms", Figure("ttft", "p95").of, objective.ttft_ms),
        ("TBT p50, ms", Figure("tbt", "p50").of, None),
        ("TBT p95, ms", Figure("tbt", "p95").of, objective.gap_ms),
        ("TBT p99, ms", Figure("tbt", "p99").of, None),
        ("TPOT p95, ms", Figure("tpot", "p95").of, None),
    ]
    html = [_goodput_bars(table, objective, scripts)]
    for number, (name, value, bound) in enumerate(panels):
        html.append(_curves(by_system, name, value, bound, scripts, log=number > 0))
    return f'<div class="grid">{"".join(html)}</div>'


def _curves(
    by_system: Mapping[str, Sequence[Cell]],
    name: str,
    value: Callable[[Cell], float | None],
    bound: float | None,
    scripts: list[bool | str],
    *,
    log: bool,
) -> str:
    from plotly import graph_objects as go

    figure = go.Figure()
    for system, own in by_system.items():
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


def _goodput_bars(table: Table, objective: Objective, scripts: list[bool | str]) -> str:
    from plotly import graph_objects as go

    found = [(name, table.crossing(name, objective)) for name in table.systems]
    edges = {name: edge for name, edge in found if edge is not None}
    figure = go.Figure(
        go.Bar(
            y=list(edges),
            x=[edge.estimate for edge in edges.values()],
            text=[str(edge) for edge in edges.values()],
            textposition="outside",
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
    kinds = ("TTFT", "TBT", "TBT p95 of a request", "TPOT", "ms/token", "TTFT of longest 10 %")
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
        for spread in (m.ttft, m.tbt, m.tbt_p95, m.tpot, m.normalized, m.ttft_longest):
            four = spread and (spread.mean, spread.p50, spread.p95, spread.p99)
            row += [f"{x:.1f}" for x in four] if four else [""] * 4
        rows.append(row)
    return _table(head, rows)


def _table(head: Sequence[str], rows: Iterable[Sequence[str]], *, wraps: bool = False) -> str:
    top = "".join(f"<th>{escape(word)}</th>" for word in head)
    lines = ["".join(f"<td>{escape(word)}</td>" for word in row) for row in rows]
    body = "".join(f"<tr>{line}</tr>" for line in lines)
    kind = ' class="wraps"' if wraps else ""
    return f'<div class="scroll"><table{kind}><tr>{top}</tr>{body}</table></div>'
