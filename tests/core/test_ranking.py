"""Prompts' order: who goes first, who lets others pass, and that nobody waits for ever."""

from itertools import combinations, pairwise

import pytest
from hypothesis import given
from hypothesis import strategies as st

from nexus.core.ranking import (
    LATE_TOKENS,
    PrefillOrder,
    PrefillRanker,
    Prompt,
    most_on_time,
    shortest_first,
)

TTFT_S, PER_S = 0.5, 20_000.0


def prompts_of(rows: list[tuple[int, float]]) -> list[Prompt]:
    return [Prompt(key, *row) for key, row in enumerate(rows)]


PROMPTS = st.lists(
    st.tuples(st.integers(1, 10_000), st.floats(0, 1e5)), min_size=2, max_size=20
).map(prompts_of)
# As they wait on a busy server: within the last half second.
WAITING = st.lists(
    st.tuples(st.integers(1, 10_000), st.floats(0, TTFT_S)), min_size=1, max_size=9
).map(prompts_of)


@given(PROMPTS)
def test_spf_order_is_that_of_length_minus_aging_at_any_moment(prompts: list[Prompt]) -> None:
    now, gamma = 2e5, 500.0
    by_rank = sorted(prompts, key=PrefillRanker("spf", gamma).rank)
    scores = [prompt.tokens - gamma * (now - prompt.arrival_s) for prompt in by_rank]
    assert all(a <= b + 1e-3 for a, b in pairwise(scores))


@given(PROMPTS)
def test_fcfs_order_is_that_of_arrival(prompts: list[Prompt]) -> None:
    ranker = PrefillRanker("fcfs", ttft_s=1.0)
    ranker.now_s = 5e4
    assert ranker.reselect(prompts, PER_S) == set()
    arrivals = [prompt.arrival_s for prompt in sorted(prompts, key=ranker.rank)]
    assert arrivals == sorted(arrivals)


@given(PROMPTS, st.floats(0, 1e5))
def test_prompts_that_can_be_on_time_go_first(prompts: list[Prompt], now: float) -> None:
    ranker = PrefillRanker("spf", 50.0, TTFT_S, PER_S)
    ranker.now_s = now
    here = [p for p in prompts if now - 10 < p.arrival_s <= now]  # none is aged much yet
    late = [ranker.is_late(prompt) for prompt in sorted(here, key=ranker.rank)]
    assert late == sorted(late)


@pytest.mark.parametrize("order", ["spf", "deadline"])
@given(length=st.integers(1, 10_000), arrival=st.floats(0, 1e5))
def test_nobody_waits_for_ever(order: PrefillOrder, length: int, arrival: float) -> None:
    ranker = PrefillRanker(order, 50.0, TTFT_S, PER_S)
    ranker.now_s = arrival + 1 + (length + LATE_TOKENS) / 50.0
    newcomers = [Prompt("a", 1, ranker.now_s), Prompt("b", 1, ranker.now_s)]
    ranker.reselect(newcomers, PER_S)
    oldest = ranker.rank(Prompt("long", length, arrival))
    assert all(oldest < ranker.rank(newcomer) for newcomer in newcomers)


def ends(prompts: list[Prompt], until_s: float) -> list[float]:
    """How much later than its bound each of them would be, one after the other."""
    end_s, late = until_s, []
    for prompt in prompts:
        end_s += prompt.tokens / PER_S
        late.append(end_s - prompt.arrival_s)
    return late


@given(WAITING)
def test_no_more_can_be_on_time_than_go_first(prompts: list[Prompt]) -> None:
    chosen = most_on_time(prompts, 0.0, PER_S)
    assert max(ends(chosen, 0.0), default=0.0) <= 1e-9
    by_arrival = sorted(prompts, key=lambda prompt: prompt.arrival_s)
    for more in combinations(by_arrival, len(chosen) + 1):
        assert max(ends(list(more), 0.0)) > -1e-9


@given(WAITING)
def test_shorter_ones_pass_where_no_other_is_late_for_it(prompts: list[Prompt]) -> None:
    on_time = most_on_time(prompts, 0.0, PER_S)
    order = shortest_first(on_time, 0.0, PER_S)
    assert sorted(order) == sorted(on_time)
    assert max(ends(order, 0.0), default=0.0) <= 1e-9
    wait_s = sum(ends(order, 0.0))
    assert wait_s <= sum(ends(on_time, 0.0)) + 1e-9


def test_with_time_to_spare_the_shortest_is_first() -> None:
    prompts = prompts_of([(3000, 10.0), (100, 10.1), (1000, 10.2)])
    order = shortest_first(prompts, 0.0, PER_S)
    assert [prompt.tokens for prompt in order] == [100, 1000, 3000]


def test_the_longest_lets_the_others_pass_where_not_all_can_be_on_time() -> None:
    ranker = PrefillRanker("deadline", 50.0, TTFT_S, PER_S)
    ranker.now_s = 100.0
    old, long, fresh = Prompt("old", 3000, 99.7), Prompt("long", 9000, 99.9), Prompt("f", 3000, 100)
    assert ranker.reselect([old, long, fresh], PER_S) == {"old", "f"}
    assert sorted([long, fresh, old], key=ranker.rank) == [old, fresh, long]


def test_ranks_stay_while_the_same_go_first() -> None:
    ranker = PrefillRanker("deadline", 50.0, TTFT_S, PER_S)
    ranker.now_s = 100.0
    prompts = [Prompt(name, 1000, 99.9) for name in "abc"]
    assert ranker.reselect(prompts, PER_S) == {"a", "b", "c"}
    ranker.now_s = 100.01
    assert ranker.reselect(prompts[1:], PER_S) == set()
    ranks = [ranker.rank(prompt) for prompt in prompts[1:]]
    assert ranks == sorted(ranks)
    newcomer = Prompt("d", 500, 100.01)
    assert "d" in ranker.reselect([*prompts[1:], newcomer], PER_S)
    assert ranker.rank(newcomer) < ranker.rank(prompts[1])


def test_without_a_known_rate_the_order_is_that_of_length() -> None:
    ranker = PrefillRanker("deadline", 50.0, TTFT_S, PER_S)
    ranker.now_s = 100.0
    older, shorter = Prompt("older", 4000, 99.75), Prompt("shorter", 3000, 99.95)
    for rate, order in (
        (0.0, [shorter, older]),
        (PER_S, [older, shorter]),
        (0.0, [shorter, older]),
    ):
        ranker.reselect([older, shorter], rate)
        assert sorted([older, shorter], key=ranker.rank) == order


def test_a_prompt_that_cannot_be_on_time_at_this_rate_is_not_chosen() -> None:
    ranker = PrefillRanker("deadline", 50.0, TTFT_S, PER_S)
    ranker.now_s = 100.0
    assert ranker.reselect([Prompt("long", 9500, 100.0)], PER_S) == set()
