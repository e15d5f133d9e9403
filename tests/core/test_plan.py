"""The lookup table: whole, rounded up, and honest about what is wrong with it."""

from dataclasses import replace
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st
from pydantic import ValidationError

from nexus.core.errors import DocumentError
from nexus.core.io.documents import Provenance, dump_document
from nexus.core.machine import Engine, Machine, Model, PartitionerName
from nexus.core.plan import (
    PLAN_SCHEMA,
    Axes,
    Mode,
    Plan,
    Prediction,
    Row,
    Shares,
    Table,
    Workload,
    read_plan,
    write_plan,
)
from nexus.core.slo import Bounds

MODES = (
    Mode("fused", 64),
    Mode("fused", 512),
    Mode("split", 1024, 84, 48),
    Mode("overlap", 1024, 100),
)


@st.composite
def axes(draw: st.DrawFn) -> Axes:
    grids = [
        sorted(draw(st.sets(st.integers(0, 10_000), min_size=1, max_size=4))) for _ in range(3)
    ]
    return Axes(*map(tuple, grids))


@st.composite
def plans(draw: st.DrawFn) -> Plan:
    grid = draw(axes())
    rows = tuple(
        Row(*state, mode=draw(st.sampled_from(MODES)).name, tbt_ms=draw(st.floats(0, 1e6)))
        for state in grid.states()
    )
    return plan_of(grid, rows)


def plan_of(grid: Axes, rows: tuple[Row, ...]) -> Plan:
    return Plan(
        provenance=Provenance("2026-01-01", "nexus plan", {}),
        profile_hash="0" * 16,
        machine=Machine("cuda", "a GPU", 132),
        model=Model("m", "0" * 16, "bfloat16", 32, 4096, 32, 8, 128, 8192),
        engine=Engine(8192, 256, 16, 1_000_000),
        bounds=Bounds(1000, 25),
        workload=Workload("test", 1000, 100),
        policy="nexus",
        prediction=Prediction(10, "fused-512", 9, 100, 20, "tbt"),
        axes=grid,
        modes={mode.name: mode for mode in MODES},
        rows=rows,
    )


@given(plans())
def test_a_plan_survives_writing_and_reading(tmp_path_factory: object, plan: Plan) -> None:
    path = tmp_path_factory.mktemp("plan") / "plan.yaml"  # type: ignore[attr-defined]
    write_plan(path, plan)
    again = read_plan(path)
    assert again == plan
    assert again.hash == plan.hash


@given(plans(), st.tuples(*[st.integers(0, 20_000)] * 3))
def test_every_state_has_a_row_at_or_above_it(plan: Plan, state: tuple[int, int, int]) -> None:
    row = Table(plan).row(*state)
    for asked, found, grid in zip(
        state,
        row.state,
        (plan.axes.decode_batch, plan.axes.kv_tokens, plan.axes.prefill_backlog),
        strict=True,
    ):
        at_or_above = [value for value in grid if value >= asked]
        assert found == (at_or_above[0] if at_or_above else grid[-1])


GRID = Axes((0, 8), (0, 1000), (0, 512))
GOOD = plan_of(GRID, tuple(Row(*state, mode="fused-64") for state in GRID.states()))


@pytest.mark.parametrize(
    ("old", "new", "told"),
    [
        ("nexus.plan/1", "nexus.profile/1", "expected 'nexus.plan/1'"),
        ("- {decode_batch: 8, kv_tokens: 1000, prefill_backlog: 512,", "- {decode_batch: 9,", "kv"),
        ("decode_batch: 8, kv_tokens: 1000", "decode_batch: 8, kv_tokens: 0", "does not cover"),
        ("mode: fused-64,", "mode: fused-65,", "unknown mode 'fused-65'"),
        ("mode: fused, chunk: 64", "mode: fused, chunk: 65", "should be called 'fused-65'"),
        ("decode_sms: 48", "decode_sms: 50", "should be called 'split-84-50'"),
        ("sms: 132", "sms: 100", "wants more than 100 SMs"),
        ("prefill_sms: 100", "prefill_sms: 0", "disagree"),
        ("tbt_ms: 25.0", "tbt_ms: 0", "bounds.tbt_ms"),
        ("tbt_ms: 25.0", "tbt_ms: .inf", "bounds.tbt_ms"),
    ],
)
def test_a_bad_plan_is_refused_in_one_line(tmp_path: Path, old: str, new: str, told: str) -> None:
    path = tmp_path / "plan.yaml"
    text = dump_document(GOOD, PLAN_SCHEMA)
    assert old in text
    path.write_text(text.replace(old, new, 1))
    with pytest.raises(DocumentError) as caught:
        read_plan(path)
    assert told in str(caught.value)
    assert "\n" not in str(caught.value)


def test_axes_of_more_states_than_fit_in_memory_are_refused() -> None:
    long = tuple(range(1, 5000))
    with pytest.raises(ValueError, match=r"no row for state \(1, 1, 1\)"):
        plan_of(Axes(long, long, long), GOOD.rows)


def test_axes_must_increase() -> None:
    with pytest.raises(ValueError, match="does not increase"):
        Axes((0, 0), (0,), (0,))


ONE_STATE = Axes((0,), (1,), (0,))


def static(mode: Mode, shares: Shares | None, partitioner: PartitionerName = "mps") -> Plan:
    """A plan of one mode and one state."""
    plan = plan_of(ONE_STATE, (Row(0, 1, 0, MODES[0].name),))
    return replace(
        plan,
        modes={mode.name: mode},
        rows=(Row(0, 1, 0, mode.name),),
        partitioner=partitioner,
        shares=shares,
    )


@pytest.mark.parametrize(
    ("mode", "shares"),
    [
        (Mode("split", 2048, 84, 48), Shares(64, 37, 50_000, 500_000)),
        (Mode("split", 2048, 100, 66), Shares(76, 50, 50_000, 500_000)),
        (Mode("overlap", 2048, 66), Shares(50, 100, 50_000, 500_000)),
    ],
)
def test_a_plan_for_mps_is_static(tmp_path: Path, mode: Mode, shares: Shares) -> None:
    write_plan(tmp_path / "plan.yaml", static(mode, shares))
    plan = read_plan(tmp_path / "plan.yaml")
    assert (plan.partitioner, plan.shares) == ("mps", shares)


@pytest.mark.parametrize(
    ("mode", "shares", "partitioner"),
    [
        (Mode("split", 2048, 84, 48), None, "mps"),
        (Mode("split", 2048, 84, 48), Shares(64, 37, 1, 1), "green"),
        (Mode("split", 2048, 84, 48), Shares(50, 37, 1, 1), "mps"),
        (Mode("fused", 512), Shares(100, 100, 1, 1), "mps"),
        (Mode("split", 2048, 100, 66), None, "green"),
    ],
)
def test_shares_fit_their_partitioner(
    mode: Mode, shares: Shares | None, partitioner: PartitionerName
) -> None:
    with pytest.raises(ValidationError):
        static(mode, shares, partitioner)


def test_a_plan_for_green_contexts_does_not_name_them() -> None:
    assert "partitioner" not in dump_document(static(MODES[2], None, "green"), PLAN_SCHEMA)
