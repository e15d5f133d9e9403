"""The waiting queue: always in the order of ranks, whatever came, went and grew late."""

from itertools import pairwise
from types import SimpleNamespace
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from nexus.runtime.policy import Line

pytestmark = pytest.mark.engine


def request(name: int, tokens: int, arrival_s: float) -> Any:
    return SimpleNamespace(
        request_id=str(name), num_tokens=tokens, num_computed_tokens=0,
        arrival_time=arrival_s, num_preemptions=0,
    )  # fmt: skip


def queue_of(ttft_s: float = 1.0) -> Any:
    from nexus.runtime.vllm.queue import RankedQueue

    return RankedQueue(Line("spf", 50.0, ttft_s, 20_000.0))


@given(
    st.lists(
        st.tuples(
            st.sampled_from(["add", "add", "pop", "put back", "advance"]),
            st.integers(1, 9000),
            st.floats(-0.2, 1.5),
        ),
        max_size=200,
    )
)
def test_the_queue_is_sorted_at_any_time(events: list[tuple[str, int, float]]) -> None:
    queue, now_s = queue_of(), 100.0
    for number, (event, tokens, seconds) in enumerate(events):
        if event == "add":
            queue.add_request(request(number, tokens, now_s))
        elif event == "advance":
            now_s += seconds
            queue.advance(now_s)
        elif queue:
            taken = queue.pop_request()
            if event == "put back":
                queue.prepend_request(taken)
        ranks = [queue.rank(waiting) for waiting in queue]
        assert all(a <= b for a, b in pairwise(ranks))


def test_who_waits_is_not_forgotten_with_those_that_were_started() -> None:
    queue = queue_of(ttft_s=60.0)
    for number in range(200):
        queue.add_request(request(number, 10, 100.0))
        queue.pop_request()
    queue.add_request(request(1000, 100, 100.0))
    queue.add_request(request(1001, 500, 150.0))
    queue.advance(101.0)
    assert len(queue._late_after) < 100  # those that were
    queue.advance(170.0)
    assert [waiting.request_id for waiting in queue] == ["1001", "1000"]
