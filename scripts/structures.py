"""Writes the tables of docs/structures.md: what each folder imports, and what each module is."""

import ast
import sys
from collections.abc import Iterable, Iterator
from pathlib import Path

ROOT = Path(__file__).parents[1]
DOCUMENT = ROOT / "docs" / "structures.md"
FOLDERS = ("", "profiles", "profiler", "planner", "runtime", "benchmarks", "demo", "scripts")
IMPORTS_HEAD = "| folder | imports |\n|---|---|\n"
MODULES_HEAD = "| module | what it is |\n|---|---|\n"
FREE = {"errors", "__version__"}  # for every module to import


def modules() -> Iterator[Path]:
    """Every module but the packages' own, folder by folder."""
    for folder in FOLDERS:
        found = (ROOT / folder).rglob("*.py") if folder else ROOT.glob("*.py")
        yield from sorted(path for path in found if path.name != "__init__.py")


def module_line(path: Path) -> str:
    """The module's row: its path, and the first paragraph of its docstring."""
    docstring = ast.get_docstring(ast.parse(path.read_text(encoding="utf-8"))) or ""
    told = " ".join(docstring.split("\n\n")[0].split()).rstrip(".:").replace("``", "`")
    return f"| `{path.relative_to(ROOT)}` | {told} |\n"


def imports(source: str) -> Iterator[str]:
    """What of Nexus a module imports, without the ``nexus.``: at its top or in a function."""
    for node in ast.walk(ast.parse(source)):
        names = []
        if isinstance(node, ast.ImportFrom) and node.module == "nexus":
            names = [f"nexus.{alias.name}" for alias in node.names]
        elif isinstance(node, ast.ImportFrom):
            names = [node.module or ""]
        elif isinstance(node, ast.Import):
            names = [alias.name for alias in node.names]
        yield from (name.removeprefix("nexus.") for name in names if name.startswith("nexus."))


def dependencies() -> dict[str, dict[str, set[str]]]:
    """Per folder, or module of the root: what it imports of others, and which parts of it."""
    found: dict[str, dict[str, set[str]]] = {}
    for path in modules():
        own = path.relative_to(ROOT).with_suffix("").parts[0]
        for name in imports(path.read_text(encoding="utf-8")):
            other, *parts = name.split(".")
            if other != own and other not in FREE:
                found.setdefault(own, {}).setdefault(other, set()).update(parts[:1])
    return found


def imports_line(folder: str, others: dict[str, set[str]]) -> str:
    """The folder's row: whom it imports, with the parts in brackets."""
    told = [
        f"`{other}`" + (f" ({', '.join(sorted(parts))})" if parts else "")
        for other, parts in sorted(others.items())
    ]
    return f"| `{folder}` | {', '.join(told)} |\n"


def with_table(text: str, head: str, lines: Iterable[str]) -> str:
    """``text`` with ``lines`` in the place of what stands under ``head``, to the next blank line."""
    before, _, rest = text.partition(head)
    _, gap, after = rest.partition("\n\n")
    table = "".join(lines).rstrip("\n")
    return before + head + table + (gap + after if after.strip() else "\n")


def written() -> str:
    """The document with its tables as they should be."""
    text = DOCUMENT.read_text(encoding="utf-8")
    assert text.count(IMPORTS_HEAD) == text.count(MODULES_HEAD) == 1
    told = (imports_line(folder, others) for folder, others in dependencies().items())
    return with_table(
        with_table(text, IMPORTS_HEAD, told), MODULES_HEAD, map(module_line, modules())
    )


if __name__ == "__main__":
    DOCUMENT.write_text(written(), encoding="utf-8")
    sys.stdout.write(f"wrote {DOCUMENT.relative_to(ROOT)}\n")
