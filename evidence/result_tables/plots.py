"""``python -m nexus.evidence.result_tables.plots``: the pictures of docs/results.md.

Of the committed results, 60 s of arrivals on the conversation trace; needs matplotlib.
"""

from collections.abc import Iterable, Sequence
from functools import partial
from io import BytesIO
from pathlib import Path
from typing import Any

import typer

from nexus.benchmarks.metrics import Objective
from nexus.benchmarks.report.compare import Table, Value, figure, tables_of
from nexus.benchmarks.results import Cell
from nexus.evidence.result_tables.__main__ import ROOT, cells_of, committed

MODEL, WORKLOAD = "llama-3.1-8b", "azure_conv"
BOUNDS = tuple(map(Objective.parse, ("500/15", "1000/25")))
STYLES = {
    "vllm-default": ("#000000", "o"),
    "vllm-256": ("#0072b2", "v"),
    "vllm-320": ("#56b4e9", "^"),
    "vllm-512": ("#cc79a7", "s"),
    "nexus-fcfs-plan": ("#e69f00", "x"),
    "nexus-deadline-plan": ("#d55e00", "D"),
}


def first_window(table: Table, system: str, plans: Sequence[str | None]) -> list[Cell]:
    """A system's runs on the trace's first window with ``plans``, by rate."""
    own = [cell for cell in table.cells if cell.key.system == system and cell.key.repeat == 0]
    wanted = [cell for cell in own if cell.key.objective in plans]
    return sorted(wanted, key=lambda cell: cell.key.rate or 0.0)


def draw(axes: Any, runs: dict[str, list[Cell]], value: Value) -> None:
    """A curve for each system's runs over the rate of requests."""
    for system, cells in runs.items():
        points = [(cell.key.rate, value(cell)) for cell in cells]
        colour, marker = STYLES[system]
        axes.plot(
            *zip(*points, strict=True), color=colour, marker=marker, markersize=5, label=system
        )
    axes.set_xlabel("requests/s")
    axes.grid(alpha=0.3)


def runs_of(table: Table, systems: Iterable[str], *plans: str) -> dict[str, list[Cell]]:
    """Each system's runs, stock vLLM's or with one of ``plans``."""
    found = {system: first_window(table, system, (None, *plans)) for system in systems}
    return {system: cells for system, cells in found.items() if cells}


def share_within(cell: Cell, objective: Objective) -> float:
    """Of the requests, in percent."""
    return 100 * cell.attainment(objective)


def attainment(table: Table, path: Path) -> None:
    """Requests within both bounds, by rate."""
    from matplotlib import pyplot

    drawing, both = pyplot.subplots(1, 2, figsize=(9, 3.4), sharey=True, layout="constrained")
    for axes, objective in zip(both, BOUNDS, strict=True):
        runs = runs_of(table, STYLES, objective.name)
        draw(axes, runs, partial(share_within, objective=objective))
        axes.axhline(90, color="#333", linestyle="--", linewidth=1)
        axes.set_title(f"TTFT {objective.ttft_ms:g} ms, TBT p95 {objective.gap_ms:g} ms")
        axes.legend(fontsize=7, loc="lower left")
    both[0].set_ylabel("requests within both bounds, %")
    both[0].set_ylim(0, 102)
    _save(drawing, path)


def price(table: Table, path: Path) -> None:
    """Median TTFT of all requests, and the p99 of the tenth with the longest prompts."""
    from matplotlib import pyplot

    drawing, both = pyplot.subplots(1, 2, figsize=(9, 3.4), layout="constrained")
    values = {
        "TTFT p50 of all, ms": figure("ttft", "p50"),
        "TTFT p99 of the longest tenth of prompts, ms": figure("ttft_longest", "p99"),
    }
    for axes, (name, value) in zip(both, values.items(), strict=True):
        draw(axes, runs_of(table, STYLES, "1000/22", "1000/25"), value)
        axes.set_yscale("log")
        axes.set_title(name)
        axes.legend(fontsize=7, loc="upper left")
    _save(drawing, path)


def _save(drawing: Any, path: Path) -> None:
    """As a PNG of few colours, which is small."""
    from PIL import Image

    whole = BytesIO()
    drawing.savefig(whole, dpi=75)
    Image.open(whole).convert("RGB").quantize(64, dither=Image.Dither.NONE).save(
        path, optimize=True
    )


def main(folder: Path = ROOT / "docs") -> None:
    """Draw both into FOLDER."""
    (table,) = (
        table
        for table in tables_of(cells_of(committed()))
        if (table.model, table.workload, table.arrivals) == (MODEL, WORKLOAD, "60 s")
    )
    attainment(table, folder / "results-attainment.png")
    price(table, folder / "results-price.png")


if __name__ == "__main__":
    typer.run(main)
