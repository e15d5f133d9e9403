"""The waiting queue: always in the order of ranks, whatever came, went and grew late."""

from itertools import pairwise
from types import SimpleNamespace
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from nexus.core.ranking import PrefillOrder, PrefillRanker

pytestmark = pytest.mark.engine


def request(name: int, tokens: int, arrival_s: float) -> Any:
    from vllm.v1.request import RequestStatus

    return SimpleNamespace(
        request_id=str(name), num_tokens=tokens, num_computed_tokens=0,
        arrival_time=arrival_s, num_preemptions=0, status=RequestStatus.WAITING,
    )  # fmt: skip


def queue_of(ttft_s: float = 1.0, order: PrefillOrder = "spf") -> Any:
    from nexus.runtime.vllm.scheduling.prefix import PrefixCache
    from nexus.runtime.vllm.scheduling.queue import RankedQueue, RequestRanks

    nothing_cached = SimpleNamespace(
        enable_caching=False, block_pool=SimpleNamespace(hash_block_size=16)
    )
    ranker = PrefillRanker(order, 50.0, ttft_s, 20_000.0)
    return RankedQueue(RequestRanks(ranker, PrefixCache(nothing_cached, 16)))


@pytest.mark.parametrize("order", ["spf", "deadline"])
@given(
    events=st.lists(
        st.tuples(
            st.sampled_from(["add", "add", "pop", "preempted", "advance", "reselect"]),
            st.integers(1, 9000),
            st.floats(-0.2, 1.5),
        ),
        max_size=200,
    )
)
def test_the_queue_is_sorted_at_any_time(
    order: PrefillOrder, events: list[tuple[str, int, float]]
) -> None:
    from vllm.v1.request import RequestStatus

    queue, now_s = queue_of(order=order), 100.0
    partial: list[Any] = []
    for number, (event, tokens, seconds) in enumerate(events):
        if event == "add":
            queue.add_request(request(number, tokens, now_s))
        elif event == "advance":
            now_s += seconds
            queue.advance(now_s)
        elif event == "reselect":
            queue.reselect(partial, float(tokens))
        elif queue:
            taken = queue.pop_request()
            if event == "preempted":
                queue.prepend_request(taken)
            else:
                taken.status = RequestStatus.RUNNING
                taken.num_computed_tokens = taken.num_tokens // 2
                partial = [*partial[-2:], taken]
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


def test_those_that_can_all_be_on_time_go_before_a_shorter_one_that_cannot() -> None:
    queue = queue_of(order="deadline")
    queue.advance(100.0)
    rows = [(11_000, 99.6), (7000, 99.8), (4000, 99.9), (16_000, 99.91)]
    for number, (tokens, arrival_s) in enumerate(rows):
        queue.add_request(request(number, tokens, arrival_s))
    queue.reselect([], 20_000.0)
    assert [waiting.request_id for waiting in queue] == ["1", "2", "0", "3"]
    queue.reselect([], 60_000.0)
    assert [waiting.request_id for waiting in queue] == ["2", "1", "0", "3"]
    queue.reselect([], 0.0)  # not known, or on the lane: as spf
    assert [waiting.request_id for waiting in queue] == ["2", "1", "0", "3"]


def test_who_waits_for_a_grammar_can_go_first_and_who_was_preempted_always_does() -> None:
    from vllm.v1.request import RequestStatus

    queue = queue_of(order="deadline")
    queue.advance(100.0)
    for number, tokens in enumerate((50, 3000, 3000, 9000)):
        queue.add_request(request(number, tokens, 99.9))
    names = [s.name for s in RequestStatus]
    grammar = next(name for name in names if "FSM" in name or "GRAMMAR" in name)
    queue[0].status = RequestStatus[grammar]
    queue[3].status, queue[3].num_preemptions = RequestStatus.PREEMPTED, 1
    preempted = queue.pop()
    queue.prepend_request(preempted)
    queue.reselect([], 20_000.0)
    assert [waiting.request_id for waiting in queue] == ["3", "0", "1", "2"]
