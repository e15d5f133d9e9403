"""Benchmark results as the tables of docs/results.md.

``python evidence/result_tables.py [FILE.jsonl ...] [--write docs/results.md]``: of the given files, else
of all in the machines' folders of benchmarks/results. With ``--write`` they replace what stands
between the two marks.
"""

import sys
from pathlib import Path

from nexus.benchmarks.document import document
from nexus.benchmarks.predicted import Predictor
from nexus.benchmarks.results import Cell, read_cells
from nexus.core.io.outputs import check_writable, write_atomically

ROOT = Path(__file__).parents[1]
RESULTS = ROOT / "evidence" / "results"
SHOWN = "python evidence/result_tables.py"
BEGIN, END = "<!-- results: begin -->\n", "<!-- results: end -->\n"


def tables(files: list[Path]) -> str:
    """The page of what ``files`` hold, beside what the simulator says."""
    cells = cells_of(files)
    profiles = sorted((ROOT / "profiles").rglob("*.yaml"))
    plans = sorted(path for path in RESULTS.rglob("*.yaml") if "plan" in str(path))
    return document(cells, Predictor(profiles, plans).pairs(cells), SHOWN)


def cells_of(files: list[Path]) -> list[Cell]:
    """What ``files`` hold, in the order of measurement."""
    found = (cell for file in files for cell in read_cells(file))
    return sorted(found, key=lambda cell: cell.created)


def put(into: Path, text: str) -> None:
    """Replace what stands between the marks of ``into``."""
    before = into.read_text(encoding="utf-8")
    head, _, rest = before.partition(BEGIN)
    _, _, tail = rest.partition(END)
    write_atomically(into, f"{head}{BEGIN}\n{text}\n{END}{tail}")


def main(words: list[str]) -> None:
    """Print the tables, or put them into a document."""
    into = None
    if "--write" in words:
        at = words.index("--write")
        into = Path(words[at + 1])
        check_writable(into, *map(Path, words[:at] + words[at + 2 :]))
        words = words[:at] + words[at + 2 :]
    files = [Path(word) for word in words] or sorted(RESULTS.glob("*/*.jsonl"))
    text = tables(files)
    if into is None:
        sys.stdout.write(text)
    else:
        put(into, text)


if __name__ == "__main__":
    main(sys.argv[1:])
