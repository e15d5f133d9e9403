"""A file of benchmark results as a Markdown table: ``python scripts/results.py FILE.jsonl``."""

import sys
from pathlib import Path

from nexus.benchmarks.metrics import Objective, Spread
from nexus.benchmarks.results import read_cells

OBJECTIVES = ("500/15", "1000/25", "2000/50", "500/30:tpot", "2000/100:tpot")


def rows(path: Path) -> list[list[str]]:
    """One row a cell: what ran, its latencies in milliseconds, who met which bounds."""
    found = []
    for cell in read_cells(path):
        metrics = cell.metrics
        if metrics is None:  # that run failed
            continue
        found.append(
            [
                cell.key.system,
                f"{cell.key.rate:g}",
                *_of(metrics.ttft, "mean", "p50", "p95"),
                *_of(metrics.tbt, "p50", "p95", "p99"),
                *(f"{cell.attainment(Objective.parse(name)):.1%}" for name in OBJECTIVES),
            ]
        )
    return found


def _of(spread: Spread | None, *names: str) -> list[str]:
    return [f"{getattr(spread, name):.1f}" if spread else "" for name in names]


def main(path: str) -> None:
    """Print the table."""
    head = ["system", "req/s", "TTFT mean", "p50", "p95", "TBT p50", "p95", "p99", *OBJECTIVES]
    lines = [head, ["---"] * len(head), *rows(Path(path))]
    sys.stdout.writelines("| " + " | ".join(line) + " |\n" for line in lines)


if __name__ == "__main__":
    main(sys.argv[1])
