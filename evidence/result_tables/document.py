"""Measured results as one page of Markdown: who wins, who loses, and by how much."""

import shlex
from collections.abc import Iterable, Sequence
from itertools import product

from nexus.benchmarks.metrics import OBJECTIVES
from nexus.benchmarks.report.compare import STOCK, Ratio, Table, goodput_rows, tables_of
from nexus.benchmarks.results import Cell
from nexus.core.slo import GOOD_REQUESTS
from nexus.core.spread import Spread
from nexus.evidence.result_tables.predicted import MEDIAN_WITHIN, TAIL_WITHIN, Pair

_SET_ANYWAY = ("--max-model-len", "--dtype", "--max-num-seqs", "--max-num-batched-tokens")

NEXUS = "nexus-deadline-plan"  # what ``nexus serve`` does by default

Rows = Iterable[Sequence[str]]


def document(cells: Sequence[Cell], pairs: Sequence[Pair], shown: str) -> str:
    """The whole page; ``shown`` is the command that printed it."""
    tables = tables_of(cells)
    parts = [_preface(tables, shown)]
    for table in tables:
        parts += [f"## {table.title}", _goodput(table), _command(table), _runs(table)]
    parts += [_overall(tables), _prediction(pairs)]
    return "\n\n".join(part for part in parts if part) + "\n"


def markdown(head: Sequence[str], rows: Rows) -> str:
    """A table, the first column to the left and the others to the right."""
    align = [":--", *["--:"] * (len(head) - 1)]
    lines = [head, align, *rows]
    return "\n".join("| " + " | ".join(line) + " |" for line in lines)


def _preface(tables: Sequence[Table], shown: str) -> str:
    cells = [cell for table in tables for cell in table.cells]
    first = cells[0].setting
    gpus = {cell.gpu for cell in cells if cell.gpu}
    several = f", on {len(gpus)} GPUs of that kind" if len(gpus) > 1 else ""
    versions = ", ".join(f"{name} {first.software[name]}" for name in ("vllm", "torch", "nexus"))
    return (
        f"{len(cells)} runs on one {first.machine.name} each{several}; {versions}; random weights, "
        f"prefix caching off. Every system gets the same requests at the same times from vLLM's "
        f"own benchmark client. Times are in milliseconds. TTFT counts from sending; TBT is every "
        f"gap between two tokens; bounds are TTFT / TBT p95 of a request, or TTFT / TPOT. Goodput "
        f"is the rate, in requests a second, up to which at least {GOOD_REQUESTS:.0%} of all requests "
        f"meet both bounds: a measured crossing between two neighbouring rates, interpolated. "
        f"`8 to 16` is a bracket not closed, `≥` and `<` one that was not found; "
        f"a ratio then is a range, or has one end. A stock setting with less than half of its requests "
        f"within bounds at all of its rates ran there for other bounds: the best is sought among "
        f"the rest.\n\n"
        f"The tables below are what `{shown}` prints."
    )


def _goodput(table: Table) -> str:
    head, *rows = goodput_rows(table)
    return markdown(head, rows)


def _command(table: Table) -> str:
    """The command that measures this table, on the machine that it names."""
    first = table.cells[0].setting
    systems = ",".join(table.systems)
    rates = sorted({cell.key.rate for cell in table.cells if cell.key.rate})
    repeats = 1 + max(cell.key.repeat for cell in table.cells)
    bounds = ",".join(objective.name for objective in OBJECTIVES)
    words = [
        *("nexus", "bench", f"benchmarks/shapes/{table.model}", *_options(first.command)),
        *("--profile", f"evidence/results/h200/vllm-0.26/{table.model}.yaml", "--systems", systems),
        *("--workloads", table.workload, "--bounds", bounds, *_plan_for(table)),
        *("--duration", f"{first.duration_s:g}", "--repeats", str(repeats)),
    ]
    edges = [table.crossing(name, o) for name in table.systems for o in OBJECTIVES]
    if not any(edge is not None and edge.found and edge.goodput for edge in edges):
        words += ["--rates", ",".join(f"{rate:g}" for rate in rates), "--no-search"]
    return f"```\n{shlex.join(words)}\n```"


def _plan_for(table: Table) -> list[str]:
    bounds = {cell.key.objective for cell in table.cells if cell.key.objective}
    return ["--plan-for", ",".join(sorted(bounds))] if bounds else []


def _options(command: str) -> list[str]:
    """What a server's command has beyond what ``nexus bench`` sets by itself."""
    words, kept = shlex.split(command)[3:], []
    while words and not words[0].startswith("--table"):
        word = words.pop(0)
        if word in _SET_ANYWAY:
            words.pop(0)
        elif word != "--no-enable-prefix-caching":
            kept.append(word)
    return kept


def _runs(table: Table) -> str:
    """Every rate of every system, over its repeats."""
    head = ["system", "plan", "req/s", "runs", "TTFT mean", "p50", "p95", "p99", "longest p99"]
    head += [
        "TBT p50",
        "p95",
        "p99",
        "req/s out",
        "SM MHz",
        "W",
        "host µs",
        *(objective.name for objective in OBJECTIVES),
    ]
    groups: dict[tuple[str, str, float], list[Cell]] = {}
    for cell in table.cells:
        where = (cell.key.system, cell.key.objective or "", cell.key.rate or 0.0)
        groups.setdefault(where, []).append(cell)
    order = table.systems
    rows = []
    for system, planned, rate in sorted(groups, key=lambda g: (order.index(g[0]), *g[1:])):
        own = groups[system, planned, rate]
        rows.append([system, planned, f"{rate:g}", str(len(own)), *_figures(own)])
    body = markdown(head, rows)
    return f"<details><summary>All {len(rows)} points</summary>\n\n{body}\n\n</details>"


def _figures(cells: Sequence[Cell]) -> list[str]:
    done = [cell.metrics for cell in cells if cell.metrics is not None]
    if not done:
        return [cells[0].error or "", *[""] * (11 + len(OBJECTIVES))]

    def over(name: str, part: str) -> str:
        spreads: list[Spread | None] = [getattr(metrics, name) for metrics in done]
        return mean_and_range([getattr(spread, part) for spread in spreads if spread is not None])

    def seen(name: str) -> list[float]:
        values = [getattr(cell.condition, name, None) for cell in cells]
        return [value for value in values if value is not None]

    shares = [
        f"{sum(cell.attainment(objective) for cell in cells) / len(cells):.1%}"
        for objective in OBJECTIVES
    ]
    return [
        *(over("ttft", part) for part in ("mean", "p50", "p95", "p99")),
        over("ttft_longest", "p99"),
        *(over("tbt", part) for part in ("p50", "p95", "p99")),
        mean_and_range([metrics.requests_per_s for metrics in done]),
        *(mean_and_range(seen(name)) for name in ("sm_mhz", "power_w", "host_us")),
        *shares,
    ]


def _overall(tables: Sequence[Table]) -> str:
    """Every goodput ratio to the best stock setting, wins and losses alike."""
    rows = []
    for table in tables:
        for name in table.systems:
            for objective in OBJECTIVES:
                ratio = table.ratio(name, objective)
                if name not in STOCK and ratio is not None:
                    rows.append((ratio, name, table, objective))
    rows.sort(key=lambda row: -_worst(row[0]))
    head = ["goodput over the best stock setting's", "model", "workload", "bounds", "ratio"]
    body = [
        [name, table.model, table.workload, objective.name, str(ratio)]
        for ratio, name, table, objective in rows
    ]
    if not body:
        return ""
    won = sum(ratio.at_least >= 1.0 for ratio, *_ in rows)
    summary = f"{won} of {len(rows)} are surely 1.00× or more."
    return f"## Wins and losses\n\n{summary}\n\n{markdown(head, body)}"


def summary(tables: Sequence[Table]) -> str:
    """One table: the default system of Nexus beside the best stock setting, wherever both ran."""
    rows = []
    for table, objective in product(tables, OBJECTIVES):
        ratio, best = table.ratio(NEXUS, objective), table.best_stock(objective)
        if ratio is not None and best is not None:
            own = str(table.crossing(NEXUS, objective))
            which = [table.model, table.workload, objective.name]
            rows.append([*which, f"{best[1]} ({best[0]})", own, str(ratio)])
    return markdown(["model", "workload", "bounds", "best stock vLLM", "Nexus", "ratio"], rows)


def _worst(ratio: Ratio) -> float:
    """The end that is worse for Nexus, of those that are known."""
    return ratio.at_least or ratio.at_most or 0.0


def mean_and_range(values: Sequence[float]) -> str:
    """Such as ``12.3`` and, over repeats, ``12.3 (11.9 to 12.8)``."""
    if not values:
        return ""
    mean = sum(values) / len(values)
    if len(values) == 1:
        return f"{mean:.1f}"
    return f"{mean:.1f} ({min(values):.1f} to {max(values):.1f})"


def _prediction(pairs: Sequence[Pair]) -> str:
    head = ["run", "TTFT p50", "predicted", "p95", "predicted", "TBT p50", "predicted"]
    head += ["p95", "predicted", "near enough"]
    rows = []
    for pair in pairs:
        key, metrics = pair.cell.key, pair.cell.metrics
        if metrics is None or metrics.ttft is None or metrics.tbt is None:
            continue
        name = f"{key.system}, {key.workload} at {key.rate:g}/s"
        name += f", repeat {key.repeat}" if key.repeat else ""
        figures = [
            f"{value:.1f}"
            for seen, told in ((metrics.ttft, pair.ttft), (metrics.tbt, pair.tbt))
            for part in ("p50", "p95")
            for value in (getattr(seen, part), getattr(told, part))
        ]
        verdict = "beyond 90 % of capacity" if pair.busy else ("yes" if pair.good else "no")
        rows.append([name, *figures, verdict])
    judged = [pair for pair in pairs if not pair.busy]
    if not rows:
        return ""
    told = (
        f"`nexus simulate`'s model of the same requests. Near enough is within "
        f"{MEDIAN_WITHIN:.0%} at the median and {TAIL_WITHIN:.0%} at the 95th percentile, of TTFT "
        f"and of TBT, up to 90 % of the simulated capacity: {sum(p.good for p in judged)} of "
        f"{len(judged)} runs. Fitted to runs is what a server adds to a profile's steps (vllm-512 "
        "on azure_conv at 16/s, 45 s of arrivals), what a pass of the lane takes more in a server "
        "(an overlap plan for 500/15 there at 4/s), how much longer than in a profile steps with "
        "prompts last under load (nexus-spf-plan there at 16 to 24/s), and the way through the "
        "router of MPS (nexus-mps there at 12/s). Runs whose plan is not at hand are left out."
    )
    return f"## Predicted and measured\n\n{told}\n\n{markdown(head, rows)}"
