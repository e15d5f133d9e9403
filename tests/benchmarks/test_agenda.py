from dataclasses import replace

import pytest

from nexus.benchmarks.agenda import Deployment, Grid, Task, agenda, next_cell, wanted_rates
from nexus.benchmarks.metrics import Objective, PerRequest
from nexus.benchmarks.results import SCHEMA, Cell, Key, Setting
from nexus.benchmarks.systems import DECISIVE, SYSTEMS, systems_called
from nexus.errors import UserError
from nexus.profiles.schema import Machine

TIGHT, LOOSE = Objective.parse("500/15"), Objective.parse("2000/50")
GRID = Grid(tuple(SYSTEMS.values()), ("arxiv", "mixed"), (TIGHT, LOOSE), (8.0, 16.0, 24.0))
SETTING = Setting("m", "h", Machine("cpu", "c", 2), {}, "nexus serve m", 60.0, "r")


def measured(rate: float, repeat: int, share: float) -> Cell:
    good = tuple(1.0 if n < 100 * share else 1e6 for n in range(100))
    ones = (1,) * 100
    each = PerRequest(ones, ones, good, (1.0,) * 100, (1.0,) * 100)
    return Cell(SCHEMA, Key("s", "arxiv", repeat, rate), SETTING, "now", per_request=each)


def test_what_decides_comes_first_when_time_is_short() -> None:
    tasks = list(agenda(GRID, None, in_haste=True))
    stages = [(task.stages[0], task.deployment.system in DECISIVE) for task in tasks]
    assert list(dict.fromkeys(stages)) == [
        ("rates", True), ("search", True), ("repeats", True),
        ("rates", False), ("search", False), ("repeats", False),
    ]  # fmt: skip
    stock = [task for task in tasks if task.deployment.system.sharing is None]
    assert all(task.deployment.workloads == GRID.workloads for task in stock)
    assert [task.deployment.system.name for task in tasks][:3] == [s.name for s in DECISIVE[:3]]


def test_one_start_does_all_when_there_is_time() -> None:
    labels = [task.deployment.label for task in agenda(GRID, None, in_haste=False)]
    assert len(labels) == len(set(labels)) == 5 + 9 * 2 * 2
    assert "nexus-spf-plan@500/15 on arxiv" in labels


def test_a_given_plan_serves_every_workload() -> None:
    grid = replace(GRID, systems=systems_called("nexus-spf-plan,nexus-fcfs-plan"))
    tasks = list(agenda(grid, LOOSE, in_haste=False))
    assert [task.deployment.workloads for task in tasks] == [GRID.workloads] * 2
    assert {task.deployment.planned_for for task in tasks} == {LOOSE}


def test_rates_then_crossings_then_repeats() -> None:
    system = SYSTEMS["vllm-512"]
    task = Task(Deployment(system, ("arxiv",), (TIGHT,)), ("rates", "search", "repeats"))
    grid = replace(GRID, repeats=2)
    cells: list[Cell] = []
    while (found := next_cell(grid, task, cells, None)) is not None:
        cells.append(measured(*found, 1.0 if found[0] < 13.2 else 0.4))
    order = [(cell.key.rate, cell.key.repeat) for cell in cells]
    assert order[:3] == [(8.0, 0), (16.0, 0), (24.0, 0)]
    assert len(order) == len(set(order))
    first = [rate for rate, repeat in order if repeat == 0]
    again = [rate for rate, repeat in order if repeat == 1]
    assert set(again) >= {8.0, 16.0, 24.0}
    assert max(rate for rate in first if rate and rate < 13.2) in again
    assert min(rate for rate in first if rate and rate >= 13.2) in again
    assert [repeat for _, repeat in order] == sorted(repeat for _, repeat in order)


def test_rates_are_chosen_around_what_a_burst_is_served_at() -> None:
    grid = replace(GRID, rates=())
    assert wanted_rates(grid, None) == ()
    assert wanted_rates(grid, 16.0) == pytest.approx((8.0, 12.8, 19.2), rel=0.03)
    assert wanted_rates(GRID, 16.0) == GRID.rates


def test_systems_have_names() -> None:
    assert systems_called("all") == tuple(SYSTEMS.values())
    assert systems_called("stock, vllm-512")[:2] == systems_called("vllm-default,vllm-512")
    for name in ("vllm-513", "", " , "):
        with pytest.raises(UserError, match="no system"):
            systems_called(name)
