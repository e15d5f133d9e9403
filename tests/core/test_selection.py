"""Who goes first: as many as can all be on time, and shorter ones where that makes none late."""

from itertools import combinations
from typing import NamedTuple

from hypothesis import given
from hypothesis import strategies as st

from nexus.core.prefill.selection import most_on_time, shortest_first

PER_S = 20_000.0


class Due(NamedTuple):
    tokens: int
    due_s: float


WAITING = st.lists(st.builds(Due, st.integers(1, 10_000), st.floats(0, 1)), min_size=1, max_size=9)


def late_s(prompts: list[Due]) -> list[float]:
    """How much later than it is due each of them would be, one after the other from 0 on."""
    end_s, late = 0.0, []
    for prompt in prompts:
        end_s += prompt.tokens / PER_S
        late.append(end_s - prompt.due_s)
    return late


@given(WAITING)
def test_no_more_can_be_on_time_than_go_first(prompts: list[Due]) -> None:
    chosen = most_on_time(prompts, 0.0, PER_S)
    assert max(late_s(chosen), default=0.0) <= 1e-9
    by_due = sorted(prompts, key=lambda prompt: prompt.due_s)
    for more in combinations(by_due, len(chosen) + 1):
        assert max(late_s(list(more))) > -1e-9


@given(WAITING)
def test_shorter_ones_pass_where_no_other_is_late_for_it(prompts: list[Due]) -> None:
    on_time = most_on_time(prompts, 0.0, PER_S)
    order = shortest_first(on_time, 0.0, PER_S)
    assert sorted(order) == sorted(on_time)
    assert max(late_s(order), default=0.0) <= 1e-9
    assert sum(late_s(order)) <= sum(late_s(on_time)) + 1e-9


def test_with_time_to_spare_the_shortest_is_first() -> None:
    prompts = [Due(3000, 10.0), Due(100, 10.1), Due(1000, 10.2)]
    assert [prompt.tokens for prompt in shortest_first(prompts, 0.0, PER_S)] == [100, 1000, 3000]
