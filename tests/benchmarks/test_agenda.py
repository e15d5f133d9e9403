from dataclasses import replace

import pytest

from nexus.benchmarks.agenda import (
    Grid,
    attained,
    deployments,
    next_cell,
    plan_serving,
    planned,
    rates_around,
)
from nexus.benchmarks.metrics import Objective, PerRequest
from nexus.benchmarks.results import SCHEMA, Cell, Key, Setting
from nexus.benchmarks.search import crossing
from nexus.benchmarks.systems import DECISIVE, SYSTEMS, systems_called
from nexus.core.errors import UserError
from nexus.core.machine import Machine

TIGHT, LOOSE = Objective.parse("500/15"), Objective.parse("2000/50")
GRID = Grid(tuple(SYSTEMS.values()), ("arxiv", "mixed"), (TIGHT, LOOSE), (8.0, 16.0, 24.0))
SETTING = Setting("m", "h", Machine("cpu", "c", 2), {}, "nexus serve m", 60.0, "r")


def measured(rate: float, repeat: int, share: float) -> Cell:
    good = tuple(1.0 if n < 100 * share else 1e6 for n in range(100))
    ones = (1,) * 100
    each = PerRequest(ones, ones, good, (1.0,) * 100, (1.0,) * 100)
    return Cell(SCHEMA, Key("s", "arxiv", repeat, rate), SETTING, "now", per_request=each)


def test_what_decides_comes_first_and_one_start_does_all() -> None:
    made = list(deployments(GRID, None))
    assert [each.system for each in made if each.system in DECISIVE] == [
        each.system for each in made[: len([m for m in made if m.system in DECISIVE])]
    ]
    stock = [each for each in made if each.system.sharing is None]
    assert all(each.workloads == GRID.workloads for each in stock)
    assert all(each.objectives == GRID.objectives for each in stock)
    labels = [each.label for each in made]
    nexus = len(SYSTEMS) - len(stock)
    assert len(labels) == len(set(labels)) == len(stock) + nexus * 2 * 2
    assert "nexus-spf-plan@500/15 on arxiv" in labels


def test_a_plan_serves_the_bounds_that_it_implies() -> None:
    bounds = tuple(map(Objective.parse, ("500/15", "1000/25", "2000/50", "500/30:tpot")))
    grid = replace(GRID, objectives=bounds, plan_for=(TIGHT, LOOSE), plan_on="mixed")
    assert planned(grid) == {TIGHT: (TIGHT, bounds[1], bounds[3]), LOOSE: (LOOSE,)}
    made = [each for each in deployments(grid, None) if each.system.name == "nexus-spf-plan"]
    assert [each.planned_for for each in made] == [TIGHT, LOOSE]
    assert {each.planned_on for each in made} == {"mixed"}
    assert all(each.workloads == GRID.workloads for each in made)
    assert plan_serving(TIGHT, [LOOSE]) is None
    assert plan_serving(LOOSE, [TIGHT, bounds[1]]) == bounds[1]


def test_a_given_plan_serves_every_workload() -> None:
    grid = replace(GRID, systems=systems_called("nexus-spf-plan,nexus-fcfs-plan"))
    made = list(deployments(grid, LOOSE))
    assert [each.workloads for each in made] == [GRID.workloads] * 2
    assert {each.planned_for for each in made} == {LOOSE}


def cells_of(grid: Grid, rates: tuple[float, ...], expected: dict[Objective, float]) -> list[Cell]:
    cells: list[Cell] = []
    while (found := next_cell(grid, (TIGHT,), cells, rates, expected)) is not None:
        cells.append(measured(*found, 1.0 if found[0] < 13.2 else 0.4))
    return cells


def test_rates_then_crossings_then_repeats() -> None:
    order = [(c.key.rate, c.key.repeat) for c in cells_of(GRID, (8.0, 16.0, 24.0), {})]
    assert order[:3] == [(8.0, 0), (16.0, 0), (24.0, 0)]
    assert len(order) == len(set(order))
    first = [rate for rate, repeat in order if repeat == 0]
    again = [rate for rate, repeat in order if repeat == 1]
    assert set(again) >= {8.0, 16.0, 24.0}
    assert max(rate for rate in first if rate and rate < 13.2) in again
    assert min(rate for rate in first if rate and rate >= 13.2) in again
    assert [repeat for _, repeat in order] == sorted(repeat for _, repeat in order)


def test_an_expected_crossing_needs_few_runs() -> None:
    for guess in (12.0, 13.2, 14.5):
        cells = cells_of(replace(GRID, repeats=1), (), {TIGHT: guess})
        assert 2 <= len(cells) <= 4
        edge = crossing(attained(cells, TIGHT))
        assert edge.found
        assert 12.0 < edge.goodput < 13.2


def test_rates_are_chosen_around_what_a_burst_is_served_at() -> None:
    assert rates_around(16.0) == pytest.approx((8.0, 12.8, 19.2), rel=0.03)


def test_systems_have_names() -> None:
    assert systems_called("all") == tuple(SYSTEMS.values())
    assert systems_called("stock, vllm-512")[:2] == systems_called("vllm-default,vllm-512")
    for name in ("vllm-513", "", " , "):
        with pytest.raises(UserError, match="no system"):
            systems_called(name)


def test_a_workload_has_rates_of_its_own() -> None:
    own = {"arxiv": (4.0,), "mixed": (14.0,)}
    grid = replace(GRID, rates=(8.0,), own_rates=own, fixed=frozenset({"mixed"}))
    assert (grid.rates_of("arxiv"), grid.rates_of("mixed")) == ((8.0, 4.0), (14.0,))
    assert grid.searches("arxiv")
    assert not grid.searches("mixed")
    assert next_cell(grid, (), [measured(14.0, 0, 1.0)], (14.0,), {}) == (14.0, 1)
