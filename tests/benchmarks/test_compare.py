"""Systems side by side, the page and the document, also of runs that are incomplete."""

import importlib.util
import re
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from nexus.benchmarks.aims import aims
from nexus.benchmarks.compare import STOCK, Figure, duels, latest, mean_and_range, tables_of
from nexus.benchmarks.document import document, goodput_rows
from nexus.benchmarks.metrics import Metrics, Objective, PerRequest
from nexus.benchmarks.page import render
from nexus.benchmarks.results import SCHEMA, Cell, Key, Setting
from nexus.benchmarks.systems import SYSTEMS
from nexus.core.machine import Machine
from nexus.core.spread import Spread

ROOT = Path(__file__).parents[2]
TIGHT, LOOSE = Objective.parse("500/15"), Objective.parse("1000/25")
SETTING = Setting(
    "shape", "h", Machine("cuda", "H200", 132), {"vllm": "1", "torch": "2", "nexus": "3"},
    "nexus serve shape --load-format dummy --max-model-len 16384 --max-num-seqs 512", 45.0, "r",
)  # fmt: skip


def run(
    system: str, rate: float, good: float, ttft: float, planned: str | None = None, **key: Any
) -> Cell:
    """A run of which ``good`` of the requests meet any bounds."""
    met = tuple(1.0 if n < 100 * good else 1e6 for n in range(100))
    ones = (1,) * 100
    each = PerRequest(ones, ones, met, (1.0,) * 100, (1.0,) * 100)
    spread = Spread(ttft, ttft, ttft, ttft)
    metrics = Metrics(
        *(100, 0, 50.0, key.get("done_per_s", rate), 1.0, 1.0, 1.0, 0.0),
        ttft=spread, tbt=spread, tpot=spread, ttft_longest=spread,
    )  # fmt: skip
    which = Key(system, key.get("workload", "azure_conv"), key.get("repeat", 0), rate, planned)
    setting = replace(SETTING, requests_hash=f"{rate}")
    return Cell(SCHEMA, which, setting, f"2026-01-01T00:00:{int(rate):02}", metrics, each)


CELLS = [
    run("vllm-default", 8.0, 1.0, 40.0),
    run("vllm-default", 8.5, 0.5, 60.0),
    run("vllm-512", 4.0, 1.0, 50.0),
    run("vllm-512", 8.0, 0.2, 900.0),
    run("nexus-spf-plan", 16.0, 1.0, 20.0, "500/15"),
    run("nexus-spf-plan", 17.0, 0.8, 30.0, "500/15"),
    run("nexus-spf-plan", 8.0, 1.0, 10.0, "500/15"),
]


def test_goodput_is_compared_with_the_best_stock_setting() -> None:
    (table,) = tables_of(CELLS)
    best = table.best_stock(TIGHT)
    assert best is not None
    assert best[0] == "vllm-default"
    assert best[1].estimate == pytest.approx(8.1)
    ratio = table.ratio("nexus-spf-plan", TIGHT)
    assert ratio is not None
    assert ratio.at_least == ratio.at_most == pytest.approx(16.5 / 8.1)
    assert str(ratio) == "2.04×"
    # No plan was made for these bounds: the one that implies them counts.
    assert table.ratio("nexus-spf-plan", LOOSE) == ratio
    assert table.crossing("nexus-fcfs-plan", TIGHT) is None
    assert table.ratio("nexus-fcfs-plan", TIGHT) is None


def test_an_open_bracket_counts_with_its_worse_end() -> None:
    wide = [run("vllm-default", 4.0, 1.0, 40.0), run("vllm-default", 12.0, 0.5, 60.0)]
    (table,) = tables_of(wide + CELLS[4:])
    ratio = table.ratio("nexus-spf-plan", TIGHT)
    assert ratio is not None
    assert ratio.worst == ratio.at_least == pytest.approx(16.5 / 12.0)
    assert str(ratio) == "1.38× to 4.12×"


def test_every_stock_setting_says_what_the_best_is_not_below() -> None:
    open_ended = [run("vllm-default", 3.0, 1.0, 40.0)]  # and vllm-512, from 4 on
    (table,) = tables_of(open_ended + CELLS[2:])
    assert str(table.ratio("nexus-spf-plan", TIGHT)) == "≤ 4.12×"


@pytest.mark.parametrize(("good", "best"), [(0.1, "vllm-default"), (0.6, "vllm-1024")])
def test_what_ran_only_for_other_bounds_does_not_open_the_best(good: float, best: str) -> None:
    (table,) = tables_of([*CELLS, run("vllm-1024", 19.0, good, 9000.0)])
    found = table.best_stock(TIGHT)
    assert found is not None
    assert found[0] == best
    (alone,) = tables_of([run("vllm-1024", 19.0, good, 9000.0)])
    assert alone.best_stock(TIGHT) == ("vllm-1024", alone.crossing("vllm-1024", TIGHT))


def test_a_bracket_without_an_end_gives_one_end_of_the_ratio() -> None:
    (table,) = tables_of(CELLS[:1] + CELLS[4:])
    assert str(table.ratio("nexus-spf-plan", TIGHT)).startswith("≤ ")
    (table,) = tables_of(CELLS[:5])
    assert str(table.ratio("nexus-spf-plan", TIGHT)).startswith("≥ ")


def test_what_sustains_nothing_is_a_loss() -> None:
    none = run("nexus-spf-plan", 2.0, 0.1, 40.0, "500/15")
    (table,) = tables_of([*CELLS[:4], none])
    ratio = table.ratio("nexus-spf-plan", TIGHT)
    assert ratio is not None
    assert str(ratio) == "≤ 0.25×"
    (aim,) = (aim for aim in aims([table]) if "never below" in aim.what)
    assert aim.met is False


def test_the_same_requests_are_compared() -> None:
    (table,) = tables_of(CELLS)
    (duel,) = duels(table, Figure("ttft", "mean"))
    assert (duel.system, duel.rate, duel.ratio) == ("nexus-spf-plan", 8.0, 0.25)
    assert mean_and_range([2.0]) == "2.0"
    assert mean_and_range([2.0, 4.0]) == "3.0 (2.0 to 4.0)"


def test_each_stock_setting_has_a_ratio_of_its_own() -> None:
    (table,) = tables_of(CELLS)
    ratio = table.ratio("nexus-spf-plan", TIGHT, "vllm-512")
    assert ratio is not None
    assert (ratio.at_least, ratio.at_most) == pytest.approx((16.5 / 8, 16.5 / 4))
    rows = goodput_rows(table)
    assert [row[0] for row in rows[-3:]] == [
        "nexus-spf-plan / best stock",
        "nexus-spf-plan / vllm-default",
        "nexus-spf-plan / vllm-512",
    ]


def test_runs_of_a_minute_are_not_compared_with_shorter_ones() -> None:
    longer = [
        replace(cell, setting=replace(cell.setting, duration_s=60.0))
        for cell in CELLS
        if cell.key.system == "nexus-spf-plan"
    ]
    tables = tables_of([*CELLS, *longer])
    assert [table.arrivals for table in tables] == ["60 s", "45 s"]
    # Short runs tell of a gain only where no long ones do.
    stock = [replace(c, setting=replace(c.setting, duration_s=60.0)) for c in CELLS[2:4]]
    assert "2.04×" in aims(tables)[0].found
    assert "2.06× to 4.12×" in aims(tables_of([*CELLS, *longer, *stock]))[0].found
    assert tables[0].systems == ["nexus-spf-plan"]
    assert "azure_conv, 60 s of arrivals" in document([*CELLS, *longer], [], "")
    assert "azure_conv, 45 s of arrivals" in render(tables)


def test_an_aim_that_a_bracket_leaves_open_is_neither_met_nor_missed() -> None:
    wide = [run("vllm-default", 4.0, 1.0, 40.0), run("vllm-default", 15.0, 0.5, 60.0)]
    gain = aims(tables_of(wide + CELLS[4:]))[0]
    assert (gain.found, gain.met) == ("1.10× to 4.12× (nexus-spf-plan)", None)


def test_an_aim_is_judged_by_who_surely_reaches_most() -> None:
    never = run("nexus-deadline-plan", 60.0, 0.1, 900.0, "500/15")  # up to 7 times as much
    both = aims(tables_of([*CELLS, never]))[0]
    assert "nexus-spf-plan" in both.found
    assert both == aims(tables_of(CELLS))[0]


def test_aims_say_what_was_not_run() -> None:
    found = {aim.what.partition(", ")[2] or aim.what: aim for aim in aims(tables_of(CELLS))}
    gain = found["azure_conv at 500/15: goodput at least 1.3× the best stock setting"]
    assert gain.met is True
    assert "2.04×" in gain.found
    assert (
        found["long-documents at 500/15: goodput at least 1.3× the best stock setting"].met is None
    )
    tail = next(aim for aim in found.values() if "TBT p99" in aim.what)
    assert tail.met is None  # nothing ran at the aim's own load
    assert tail.found.startswith("not run; elsewhere 4.00× (nexus-spf-plan@500/15, ")


def duel_runs(rate: float, *ratios: float, planned: str = "500/15") -> list[Cell]:
    """Default vLLM and repeats of the plan whose figures are so many times the default's."""
    return [
        each
        for n, ratio in enumerate(ratios)
        for each in (
            run("vllm-default", rate, 1.0, 100.0, repeat=n),
            run("nexus-spf-plan", rate, 1.0, 100.0 * ratio, planned, repeat=n),
        )
    ]


def test_the_worst_run_of_one_plan_decides() -> None:
    cells = duel_runs(4.0, 0.9, 1.2) + duel_runs(16.0, 0.1, 0.5)
    found = aims(tables_of(cells))
    low = [aim for aim in found if "at most 4 requests/s" in aim.what]
    assert [aim.met for aim in low] == [False, False]
    assert low[0].found.startswith("0.90× (")
    assert "most 1.20×" in low[0].found
    (tail,) = (aim for aim in found if "TBT p99" in aim.what)
    assert tail.met is False
    assert tail.found.startswith("10.00× (")
    assert "least 2.00× (nexus-spf-plan@500/15, azure_conv at 16/s)" in tail.found
    # Another plan meets both, in every run of its own.
    cells += duel_runs(4.0, 1.0, 1.01, planned="1000/25")
    cells += duel_runs(16.0, 0.1, 0.15, planned="1000/25")
    found = aims(tables_of(cells))
    met = [aim for aim in found if "at most 4 requests/s" in aim.what or "TBT p99" in aim.what]
    assert [aim.met for aim in met] == [True] * 3
    assert all(aim.found.partition("; elsewhere ")[0].count("1000/25") == 2 for aim in met)
    # And as its TBT is a part of the default's, so is its TTFT here.
    (price,) = (aim for aim in found if "of the same plan" in aim.what)
    assert price.met is True
    assert price.found.startswith("0.10× (nexus-spf-plan@1000/25, azure_conv at 16/s)")


def test_the_tail_is_judged_at_its_own_load() -> None:
    tails = [
        next(aim for aim in aims(tables_of(cells)) if "TBT p99" in aim.what)
        for cells in (duel_runs(16.0, 0.15) + duel_runs(4.0, 0.5), duel_runs(8.0, 0.1))
    ]
    assert [aim.met for aim in tails] == [True, None]
    assert "elsewhere 2.00×" in tails[0].found


def test_machines_are_kept_apart() -> None:
    here = run("vllm-default", 8.0, 1.0, 40.0)
    other = replace(here, setting=replace(SETTING, machine=Machine("cuda", "A100", 108)))
    assert latest([here, other]) == [here, other]
    assert [table.machine for table in tables_of([here, other])] == ["H200", "A100"]


def test_overload_is_where_the_default_does_not_keep_up() -> None:
    cells = [
        run("vllm-default", 6.0, 0.1, 9000.0, workload="mixed", done_per_s=4.0),
        run("nexus-spf-plan", 6.0, 0.9, 1000.0, "500/15", workload="mixed"),
    ]
    met = [aim for aim in aims(tables_of(cells)) if "overloaded" in aim.what]
    assert [aim.met for aim in met] == [True, True]
    assert "9.00×" in met[0].found
    cells += [
        run("vllm-default", 7.0, 0.1, 4000.0, workload="mixed", done_per_s=5.8),
        run("nexus-spf-plan", 7.0, 0.9, 9000.0, "500/15", workload="mixed"),
    ]
    worse = [aim for aim in aims(tables_of(cells)) if "overloaded" in aim.what]
    assert [aim.met for aim in worse] == [False, False]
    assert "most 2.25×" in worse[1].found
    cells = [replace(cell, key=replace(cell.key, rate=5.0)) for cell in cells[2:]]
    assert all(aim.met is None for aim in aims(tables_of(cells)) if "overloaded" in aim.what)


def test_the_page_tells_all_systems_apart() -> None:
    systems = list(SYSTEMS)
    cells = [run(name, 8.0, 1.0, 10.0, None if name in STOCK else "500/15") for name in systems]
    page = render(tables_of(cells))
    symbols = set(re.findall(r'"symbol":"([^"]+)"', page))
    assert len(symbols) == len(systems)


def test_page_and_document_stand_with_what_there_is() -> None:
    for cells in (CELLS, CELLS[:1], CELLS[4:5]):
        tables = tables_of(cells)
        assert "Plotly.newPlot(" in render(tables)
        text = document(cells, [], "the command")
        assert "`the command`" in text
        assert "shape, azure_conv" in text
        assert "nexus bench benchmarks/shapes/shape --load-format dummy" in text
    assert "not run" in document(CELLS[:1], [], "x")


def test_the_document_has_its_tables_from_the_committed_results(tmp_path: Path) -> None:
    """The script runs on what is committed, and replaces its own part alone."""
    spec = importlib.util.spec_from_file_location("results", ROOT / "evidence" / "result_tables.py")
    assert spec is not None
    assert spec.loader is not None
    script = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(script)
    page = tmp_path / "results.md"
    page.write_text(f"before\n{script.BEGIN}old\n{script.END}after\n")
    script.put(page, "new")
    assert page.read_text() == f"before\n{script.BEGIN}\nnew\n{script.END}after\n"
    committed = (ROOT / "docs" / "results.md").read_text()
    assert script.BEGIN in committed
    assert script.END in committed
    files = sorted((ROOT / "evidence" / "results").glob("*/*.jsonl"))
    measured = document(script.cells_of(files), [], script.SHOWN)
    assert measured.rstrip() in committed, (
        "run: python evidence/result_tables.py --write docs/results.md"
    )
    assert "Predicted and measured" in script.tables(files[:1])
