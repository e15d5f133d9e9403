"""The documentation names every module, and what each folder imports."""

import re
import runpy
from pathlib import Path
from typing import Any

SCRIPT = Path(__file__).parents[1] / "scripts" / "structures.py"
STRUCTURES: dict[str, Any] = runpy.run_path(str(SCRIPT))


def test_the_tables_are_current() -> None:
    assert STRUCTURES["written"]() == STRUCTURES["DOCUMENT"].read_text(), (
        "run: python scripts/structures.py"
    )


def test_an_import_counts_wherever_it_stands() -> None:
    source = """
import os
import nexus.profiler.clocks
from nexus import __version__, terminal
from nexus.runtime.policy import Policy

def later():
    from nexus.planner.table import Plan
"""
    assert set(STRUCTURES["imports"](source)) == {
        "__version__",
        "planner.table",
        "profiler.clocks",
        "runtime.policy",
        "terminal",
    }


def test_the_planner_imports_neither_torch_nor_vllm() -> None:
    root = SCRIPT.parents[1]
    foreign = re.compile(r"^\s*(?:import|from) (?:torch|vllm)\b", re.MULTILINE)
    for path in (*(root / "planner").glob("*.py"), root / "runtime" / "policy.py"):
        assert not foreign.search(path.read_text()), path
