"""Committed results as the Markdown tables of evidence/results/tables.md.

Of the given files, else of all in the machines' folders of evidence/results. Runs of Nexus are
predicted where their plans are in the folder PLANS; evidence/results/README.md has the commands
that make them.
"""

from pathlib import Path
from typing import Annotated

import typer

from nexus.benchmarks.report.compare import tables_of
from nexus.benchmarks.results import Cell, read_cells
from nexus.core.io.outputs import write_atomically
from nexus.core.plan import read_plan
from nexus.evidence.result_tables.document import document, summary
from nexus.evidence.result_tables.predicted import Predictor
from nexus.profiles.schema import read_profile

ROOT = Path(__file__).parents[2]
RESULTS = ROOT / "evidence" / "results"
TABLES = RESULTS / "tables.md"
PAGE = ROOT / "docs" / "results.md"
BEGIN, END = "<!-- table: begin -->\n", "<!-- table: end -->\n"
SHOWN = "python -m nexus.evidence.result_tables"


def committed() -> list[Path]:
    """Every machine's files of results."""
    return sorted(RESULTS.glob("*/*.jsonl"))


def tables(files: list[Path], plans: list[Path]) -> str:
    """The page of what ``files`` hold, beside what the simulator says."""
    cells = cells_of(files)
    paths = [*(ROOT / "profiles").rglob("*.yaml"), *(RESULTS / "h200" / "vllm-0.26").glob("*.yaml")]
    profiles = [read_profile(path) for path in sorted(paths)]
    predictor = Predictor(profiles, [read_plan(path) for path in plans])
    return document(cells, predictor.pairs(cells), SHOWN)


def put(into: Path, text: str) -> None:
    """Replace what stands between the marks of ``into``."""
    head, _, rest = into.read_text(encoding="utf-8").partition(BEGIN)
    _, _, tail = rest.partition(END)
    write_atomically(into, f"{head}{BEGIN}\n{text}\n\n{END}{tail}")


def cells_of(files: list[Path]) -> list[Cell]:
    """What ``files`` hold, in the order of measurement."""
    found = (cell for file in files for cell in read_cells(file))
    return sorted(found, key=lambda cell: cell.created)


def main(
    files: Annotated[list[Path] | None, typer.Argument(help="Files of nexus bench.")] = None,
    plans: Annotated[Path | None, typer.Option(help="A folder of plans, at any depth.")] = None,
    write: Annotated[
        bool, typer.Option("--write", help=f"Write {TABLES.name} and {PAGE.name}.")
    ] = False,
) -> None:
    """Print the tables of results, or write them; docs/results.md has their summary."""
    known = sorted(plans.rglob("*.yaml")) if plans else []
    text = tables(files or committed(), known)
    if write:
        write_atomically(TABLES, f"# Head to head: all tables\n\n{text}")
        put(PAGE, summary(tables_of(cells_of(files or committed()))))
    else:
        typer.echo(text, nl=False)


if __name__ == "__main__":
    typer.run(main)
