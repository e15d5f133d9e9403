from dataclasses import replace
from pathlib import Path

import pytest

from nexus.benchmarks.metrics import summarize
from nexus.benchmarks.report.compare import latest
from nexus.benchmarks.report.page import write_page
from nexus.benchmarks.results import (
    SCHEMA,
    Cell,
    Key,
    Setting,
    Store,
    all_cells,
    part_of,
    read_cells,
    whole_of,
)
from nexus.core.errors import DocumentError, UserError
from nexus.core.machine import Machine

SETTING = Setting(
    model="tiny",
    model_hash="0" * 16,
    machine=Machine(device="cpu", name="imagined", sms=2),
    software={"vllm": "0.0"},
    command="nexus serve tiny",
    duration_s=5.0,
    requests_hash="1" * 16,
)
METRICS, EACH = summarize(
    {
        "duration": 2.0,
        "errors": ["", "no"],
        "ttfts": [0.1, 0.0],
        "itls": [[0.01, 0.02], []],
        "input_lens": [10, 20],
        "output_lens": [3, 0],
    }
)


def cell(system: str = "vllm-512", rate: float | None = 2.0, objective: str | None = None) -> Cell:
    key = Key(system, "random:8:8", 0, rate, objective)
    return Cell(SCHEMA, key, SETTING, "2026-01-01T00:00:00+00:00", METRICS, EACH)


def test_cells_are_read_back(tmp_path: Path) -> None:
    store = Store(tmp_path / "results" / "cells.jsonl")
    cells = [cell(), cell(rate=None), cell("nexus-spf-plan", objective="500/15")]
    cells.append(Cell(SCHEMA, cells[0].key, SETTING, "later", error="not done after 9 s"))
    for each in cells:
        store.add(each)
    assert list(read_cells(store.path)) == list(store) == cells
    assert list(Store(store.path)) == cells


def test_a_run_that_was_killed_leaves_a_whole_file(tmp_path: Path) -> None:
    path = tmp_path / "cells.jsonl"
    Store(path).add(cell())
    whole = path.read_bytes()
    path.write_bytes(whole + whole[:50])
    store = Store(path)
    assert list(store) == [cell()]
    store.add(cell(rate=4.0))
    assert list(read_cells(path)) == [cell(), cell(rate=4.0)]


def test_a_foreign_file_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "cells.jsonl"
    path.write_text('{"schema": "other"}\n')
    with pytest.raises(DocumentError, match=r"cells\.jsonl:1"):
        Store(path)


def test_the_page_shows_the_latest_of_each_cell(tmp_path: Path) -> None:
    store = Store(tmp_path / "cells.jsonl")
    with pytest.raises(UserError, match="nothing was measured"):
        write_page(store.path)
    older = replace(cell(), created="2020-01-01T00:00:00+00:00")
    for each in (older, cell(), cell(rate=4.0), cell("nexus-spf-plan", objective="500/15")):
        store.add(each)
    assert latest(store)[0] == cell()
    text = write_page(store.path).read_text()
    assert text.count("Plotly.newPlot(") == 7
    assert "https://cdn" not in text.split("<body>")[0]
    assert "vllm-512" in text
    assert "500/15" in text
    measured = store.path.read_bytes()
    (tmp_path / "cells.html").unlink()
    (tmp_path / "cells.html").symlink_to(store.path)
    with pytest.raises(DocumentError, match="would overwrite"):
        write_page(store.path)
    assert store.path.read_bytes() == measured


def test_parts_are_one_set_of_results(tmp_path: Path) -> None:
    """As when several GPUs measure at once, each into a part, and one call goes on from all."""
    parts = [part_of(tmp_path, "model-3.1_gpu", name) for name in ("", "gpu0", "gpu1")]
    assert [whole_of(part) for part in parts] == [parts[0]] * 3
    for number, part in enumerate(parts[1:]):
        store = Store(part)
        store.add(replace(cell(rate=float(number + 1)), created=f"2026-01-0{2 - number}", gpu="G"))
    assert [c.key.rate for c in all_cells(parts[0])] == [2.0, 1.0]
    assert [c.key.rate for c in Store(parts[1])] == [2.0, 1.0]
    assert len(list(read_cells(parts[1]))) == 1
    assert write_page(parts[2]) == parts[0].with_suffix(".html")
