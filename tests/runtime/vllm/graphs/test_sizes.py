"""Sizes of a partition's graphs."""

from dataclasses import replace
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from nexus.core.lane import pass_sizes
from nexus.core.plan import Mode, Plan, read_plan
from nexus.runtime.vllm.graphs.sizes import MAX_GRAPHS, graph_sizes

STOCK = [1, 2, 4, *range(8, 257, 8)]
SPLIT = Mode("split", 96, prefill_sms=1, decode_sms=1)


@pytest.fixture
def plan(make_plan: Any) -> Plan:
    """Splits where more than 4 and at most 16 decode; its axis has 0, 4, 16 and 64."""
    fused = read_plan(make_plan((64,)))
    rows = tuple(
        replace(row, mode=SPLIT.name) if row.decode_batch == 16 else row for row in fused.rows
    )
    return replace(fused, modes=fused.modes | {SPLIT.name: SPLIT}, rows=rows)


def test_sizes_cover_the_batches_that_the_plan_splits(plan: Plan) -> None:
    assert graph_sizes(plan, {SPLIT.name}, STOCK) == [4, 8, 16, 24]


def test_batches_beyond_the_grid_are_covered_too(plan: Plan) -> None:
    everywhere = replace(plan, rows=tuple(replace(row, mode=SPLIT.name) for row in plan.rows))
    sizes = graph_sizes(everywhere, {SPLIT.name}, STOCK)
    assert sizes[-1] == 256
    assert len(sizes) <= MAX_GRAPHS


def test_no_graphs_for_a_mode_that_no_state_names(plan: Plan) -> None:
    assert graph_sizes(plan, {"split-9-9"}, STOCK) == []
    assert graph_sizes(plan, {SPLIT.name}, []) == []


@given(st.integers(1, 16384), st.integers(1, 16384))
def test_every_pass_has_a_graph_that_is_little_longer(chunk: int, tokens: int) -> None:
    sizes = pass_sizes(chunk)
    assert sizes == sorted(set(sizes))
    assert sizes[-1] == chunk
    if 64 <= tokens <= chunk:
        padded = next(size for size in sizes if size >= tokens)
        assert padded - tokens < max(128, tokens / 8 + 1)
