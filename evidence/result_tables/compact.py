"""``python -m nexus.evidence.result_tables.compact FILE... -o OUT``: results to keep for good.

The files' runs in one, in the order of measurement: of each request's times only the shares
that met bounds stay, of all bounds in tables and those that plans were made for.
"""

from dataclasses import replace
from pathlib import Path
from typing import Annotated

import typer

from nexus.benchmarks.metrics import OBJECTIVES, Objective
from nexus.benchmarks.results import Cell
from nexus.core.io.outputs import check_writable, write_atomically
from nexus.evidence.result_tables.__main__ import cells_of

_DIGITS = 6  # of a share


def compacted(cells: list[Cell]) -> list[Cell]:
    """The same runs without their requests."""
    planned = sorted({cell.key.objective for cell in cells if cell.key.objective})
    bounds = dict.fromkeys((*OBJECTIVES, *map(Objective.parse, planned)))
    return [
        replace(
            cell,
            per_request=None,
            attained={one.name: round(cell.attainment(one), _DIGITS) for one in bounds},
        )
        if cell.per_request is not None
        else cell
        for cell in cells
    ]


def main(files: list[Path], output: Annotated[Path, typer.Option("--output", "-o")]) -> None:
    """Write the runs of FILES to one file of results."""
    check_writable(output)
    cells = compacted(cells_of(files))
    write_atomically(output, b"".join(cell.line for cell in cells).decode())
    typer.echo(f"wrote {len(cells)} runs to {output}")


if __name__ == "__main__":
    typer.run(main)
