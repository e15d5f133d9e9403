"""Systems side by side and their page, also of runs that are incomplete."""

import re
from dataclasses import replace
from typing import Any

import pytest

from nexus.benchmarks.metrics import Metrics, Objective, PerRequest
from nexus.benchmarks.report.compare import STOCK, goodput_rows, latest, tables_of
from nexus.benchmarks.report.page import render
from nexus.benchmarks.results import SCHEMA, Cell, Key, Setting
from nexus.benchmarks.systems import SYSTEMS
from nexus.core.machine import Machine
from nexus.core.spread import Spread

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
    assert ratio.at_least == pytest.approx(16.5 / 12.0)
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
    assert tables[0].systems == ["nexus-spf-plan"]
    assert "azure_conv, 45 s of arrivals" in render(tables)


def test_machines_are_kept_apart() -> None:
    here = run("vllm-default", 8.0, 1.0, 40.0)
    other = replace(here, setting=replace(SETTING, machine=Machine("cuda", "A100", 108)))
    assert latest([here, other]) == [here, other]
    assert [table.machine for table in tables_of([here, other])] == ["H200", "A100"]


def test_the_page_tells_all_systems_apart() -> None:
    systems = list(SYSTEMS)
    cells = [run(name, 8.0, 1.0, 10.0, None if name in STOCK else "500/15") for name in systems]
    page = render(tables_of(cells))
    symbols = set(re.findall(r'"symbol":(\d+)', page))
    assert len(symbols) == len(systems)


def test_the_page_stands_with_what_there_is() -> None:
    for cells in (CELLS, CELLS[:1], CELLS[4:5]):
        page = render(tables_of(cells))
        assert "Plotly.newPlot(" in page
        assert "shape, azure_conv" in page
    assert ">not run<" in page  # stock vLLM, of the last ones
