import pytest
from hypothesis import given
from hypothesis import strategies as st

from nexus.benchmarks.search import crossing, index_of, next_rate, on_grid, rate_at

MOST = 40  # runs that a search may take


def searched(limit: float, start: float) -> dict[float, float]:
    """What is measured of a system whose attainment falls through 0.9 at ``limit``."""
    attained: dict[float, float] = {}
    while (rate := next_rate(attained, start)) is not None:
        assert rate not in attained
        attained[rate] = max(0.0, 1.0 - 0.1 * rate / limit)
        assert len(attained) <= MOST
    return attained


@given(st.floats(0.2, 200), st.floats(0.5, 60))
def test_the_crossing_is_found_between_neighbours(limit: float, start: float) -> None:
    attained = searched(limit, start)
    edge = crossing(attained)
    if edge.goodput == 0.0:
        assert limit < start / 16
        return
    assert edge.found
    assert edge.above is not None
    assert edge.goodput <= limit * (1 + 1e-9) <= edge.above * (1 + 1e-6)
    assert edge.goodput <= edge.estimate <= edge.above
    assert edge.estimate == pytest.approx(limit, rel=0.02)
    assert len(attained) < 4 + 2 * abs(index_of(limit) - index_of(start)) / 8 + 5


@given(st.integers(-100, 200))
def test_the_grid_is_its_own_rounding(index: int) -> None:
    assert index_of(rate_at(index)) == index
    assert on_grid(rate_at(index)) == rate_at(index)


def test_rates_that_were_asked_for_count() -> None:
    assert next_rate({8.0: 1.0, 8.3: 0.5}, 8.0) is None
    assert crossing({8.0: 1.0, 8.3: 0.5}).found
    assert not crossing({8.0: 1.0, 16.0: 0.5}).found
    assert not crossing({8.0: 1.0}).found
    assert crossing({}).goodput == 0.0


def test_a_dip_below_a_sustained_rate_is_chance() -> None:
    assert crossing({4.0: 0.89, 8.0: 0.95, 8.3: 0.7}).goodput == 8.0


def test_another_bound_s_runs_are_used_and_left_where_they_do_not_help() -> None:
    """What is known far away does not draw the search away from where it should begin."""
    assert next_rate({2.0: 1.0, 64.0: 0.0}, 16.0) == 16.0
    assert next_rate({2.0: 1.0}, 16.0) == 16.0
    assert next_rate({64.0: 0.0}, 16.0) == 16.0
    near = next_rate({16.0: 1.0}, 16.0)
    assert near is not None
    assert index_of(near) - index_of(16.0) == 1
