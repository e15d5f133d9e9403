"""The committed results: as tables, beside the simulator, and without their requests."""

from dataclasses import replace
from pathlib import Path

import pytest

from nexus.benchmarks.report.compare import tables_of
from nexus.benchmarks.results import PlanUsed, Store, read_cells
from nexus.benchmarks.search import Candidate, Forecast
from nexus.benchmarks.systems import SYSTEMS
from nexus.core.errors import UserError
from nexus.core.plan import Mode, Row, read_plan
from nexus.evidence.result_tables.__main__ import (
    BEGIN,
    END,
    PAGE,
    SHOWN,
    TABLES,
    cells_of,
    committed,
    put,
)
from nexus.evidence.result_tables.compact import compacted
from nexus.evidence.result_tables.document import document, mean_and_range, summary
from nexus.evidence.result_tables.predicted import Predictor, overloaded
from nexus.profiles.schema import read_profile
from nexus.tests.benchmarks.test_compare import CELLS, LOOSE, TIGHT, run

ROOT = Path(__file__).parents[2]
PROFILE = ROOT / "evidence" / "results" / "h200" / "vllm-0.26" / "llama-3.1-8b.yaml"
RESULTS = ROOT / "evidence" / "results" / "h200"
PLAN = RESULTS / "azure_conv-500-15.plan.yaml"
MEASURED = RESULTS / "llama-3.1-8b_nvidia-h200.jsonl"


def test_tables_come_from_the_committed_results() -> None:
    cells = cells_of(committed())
    measured = document(cells, [], SHOWN)
    assert measured.rstrip() in TABLES.read_text(), f"run: {SHOWN} --write"
    assert summary(tables_of(cells)) in PAGE.read_text(), f"run: {SHOWN} --write"


def test_a_page_s_own_part_alone_is_replaced(tmp_path: Path) -> None:
    page = tmp_path / "results.md"
    page.write_text(f"before\n{BEGIN}old\n{END}after\n")
    put(page, "new")
    assert page.read_text() == f"before\n{BEGIN}\nnew\n\n{END}after\n"


def test_a_document_stands_with_what_there_is() -> None:
    for cells in (CELLS, CELLS[:1], CELLS[4:5]):
        text = document(cells, [], "the command")
        assert "`the command`" in text
        assert "shape, azure_conv, 45 s of arrivals" in text
        assert "nexus bench benchmarks/shapes/shape --load-format dummy" in text
    assert "not run" in document(CELLS[4:5], [], "x")
    assert mean_and_range([2.0]) == "2.0"
    assert mean_and_range([2.0, 4.0]) == "3.0 (2.0 to 4.0)"


def test_without_its_requests_a_run_still_has_its_place(tmp_path: Path) -> None:
    kept = compacted(CELLS)
    assert document(kept, [], "x") == document(CELLS, [], "x")
    assert kept[0].per_request is None
    store = Store(tmp_path / "kept.jsonl")
    for cell in kept:
        store.add(cell)
    assert list(read_cells(store.path)) == kept
    with pytest.raises(UserError, match="1/2"):
        kept[0].attainment(replace(TIGHT, ttft_ms=1.0, gap_ms=2.0))
    failed = replace(run("vllm-512", 9.0, 1.0, 1.0), metrics=None, per_request=None, error="late")
    assert compacted([failed]) == [failed]
    assert failed.attainment(LOOSE) == 0.0


def test_stock_vllm_is_predicted() -> None:
    """Both stock runs on an H200, of which one was not fitted."""
    cells = [cell for cell in read_cells(MEASURED) if cell.setting.duration_s == 45.0]
    pairs = Predictor([read_profile(PROFILE)], []).pairs(cells)
    errors = {pair.cell.key.system: pair for pair in pairs}
    assert len(pairs) == 2
    assert errors["vllm-512"].good, errors["vllm-512"].errors
    assert max(map(abs, errors["vllm-default"].errors.values())) < 0.25
    assert not any(pair.busy for pair in pairs)


def test_what_is_not_known_is_left_out() -> None:
    cell = next(cell for cell in read_cells(MEASURED) if cell.key.system == "nexus-spf-plan")
    profile = read_profile(PROFILE)
    mode, read = Mode("fused", 512), read_plan(PLAN)
    rows = tuple(Row(*row.state, mode=mode.name) for row in read.rows)
    plan = replace(read, profile_hash=profile.hash, modes={mode.name: mode}, rows=rows)
    served = replace(cell, setting=replace(cell.setting, plan=PlanUsed.of(plan)))
    assert Predictor([profile], []).pairs([cell, served]) == []
    assert len(Predictor([profile], [plan]).pairs([cell, served])) == 1
    assert Predictor([], [plan]).pairs([served]) == []


def test_an_overload_is_told() -> None:
    forecast = Forecast(read_profile(PROFILE), 16384, 512, 20.0)
    stock = Candidate(SYSTEMS["vllm-512"])
    assert overloaded(forecast.run(stock, "azure_conv", 80.0))
    assert not overloaded(forecast.run(stock, "azure_conv", 8.0))
