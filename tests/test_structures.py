"""The documentation names every module."""

import importlib.util
from pathlib import Path

SCRIPT = Path(__file__).parents[1] / "scripts" / "structures.py"


def test_every_module_is_in_the_table() -> None:
    spec = importlib.util.spec_from_file_location("structures", SCRIPT)
    assert spec is not None
    assert spec.loader is not None
    structures = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(structures)
    assert structures.written() == structures.DOCUMENT.read_text(), "run scripts/structures.py"
