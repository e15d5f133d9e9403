"""Writes the module table of docs/structures.md, a line for each module from its docstring."""

import ast
import sys
from collections.abc import Iterator
from pathlib import Path

ROOT = Path(__file__).parents[1]
DOCUMENT = ROOT / "docs" / "structures.md"
FOLDERS = ("", "profiles", "profiler", "planner", "runtime", "benchmarks", "demo", "scripts")
HEAD = "| module | what it is |\n|---|---|\n"


def modules() -> Iterator[Path]:
    """Every module but the packages' own, folder by folder."""
    for folder in FOLDERS:
        found = (ROOT / folder).rglob("*.py") if folder else ROOT.glob("*.py")
        yield from sorted(path for path in found if path.name != "__init__.py")


def line(path: Path) -> str:
    """The module's row: its path, and the first paragraph of its docstring."""
    docstring = ast.get_docstring(ast.parse(path.read_text(encoding="utf-8"))) or ""
    told = " ".join(docstring.split("\n\n")[0].split()).rstrip(".:").replace("``", "`")
    return f"| `{path.relative_to(ROOT)}` | {told} |\n"


def written() -> str:
    """The document with the table as it should be."""
    text = DOCUMENT.read_text(encoding="utf-8")
    before, _, rest = text.partition(HEAD)
    _, gap, after = rest.partition("\n\n")
    table = "".join(map(line, modules())).rstrip("\n")
    return before + HEAD + table + (gap + after if after.strip() else "\n")


if __name__ == "__main__":
    DOCUMENT.write_text(written(), encoding="utf-8")
    sys.stdout.write(f"wrote {DOCUMENT.relative_to(ROOT)}\n")
