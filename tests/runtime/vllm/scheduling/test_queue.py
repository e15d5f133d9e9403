"""The waiting queue as vLLM uses it: the ranker's order, whatever came, went and grew late."""

from types import SimpleNamespace
from typing import Any

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from nexus.core.prefill.ranking import ORDERS, PrefillOrder, PrefillRanker
from nexus.core.slo import Bounds

pytestmark = pytest.mark.engine


def request(name: int, tokens: int, arrival_s: float) -> Any:
    from vllm.v1.request import RequestStatus

    return SimpleNamespace(
        request_id=str(name), num_tokens=tokens, num_computed_tokens=0,
        arrival_time=arrival_s, num_preemptions=0, status=RequestStatus.WAITING,
        priority=0, sampling_params=None,
    )  # fmt: skip


def queue_of(ttft_s: float = 1.0, order: PrefillOrder = "spf") -> Any:
    from nexus.runtime.vllm.scheduling.prefix import PrefixCache
    from nexus.runtime.vllm.scheduling.queue import RankedQueue

    nothing_cached = SimpleNamespace(
        enable_caching=False, block_pool=SimpleNamespace(hash_block_size=16)
    )
    ranker = PrefillRanker(order, Bounds(1e3 * ttft_s, 100), 20_000.0)
    return RankedQueue(ranker, PrefixCache(nothing_cached, 16))


def names(queue: Any) -> list[str]:
    return [waiting.request_id for waiting in queue]


@pytest.mark.parametrize("order", ORDERS)
@example(events=[("add", 1, 0.0), ("step", 2, 0.0), ("preempted", 1, 0.0)])
@given(
    events=st.lists(
        st.tuples(
            st.sampled_from(["add", "add", "pop", "skipped", "preempted", "step", "remove"]),
            st.integers(1, 9000),
            st.floats(-0.2, 1.5),
        ),
        max_size=100,
    )
)
def test_the_queue_holds_what_waits_in_the_order_of_ranks(
    order: PrefillOrder, events: list[tuple[str, int, float]]
) -> None:
    queue, now_s, waiting, partial = queue_of(order=order), 100.0, set[str](), list[Any]()
    for number, (event, tokens, seconds) in enumerate(events):
        if event == "add":
            queue.add_request(request(number, tokens, now_s))
            waiting.add(str(number))
        elif event == "step":
            now_s += seconds
            queue.step(now_s, partial, float(tokens))
            queue.computed({each.request_id: tokens for each in partial})
        elif queue and event == "remove":
            queue.remove_requests({queue.peek_request().request_id: queue.peek_request()}.values())
            waiting &= set(names(queue))
        elif queue:
            taken = queue.pop_request()
            if event == "pop":
                waiting.remove(taken.request_id)
                taken.num_computed_tokens = taken.num_tokens // 2
                partial = [*partial[-2:], taken]
            else:
                taken.num_preemptions = int(event == "preempted") or taken.num_preemptions
                queue.prepend_requests([taken])
        ranks = [queue.rank(each) for each in queue]
        assert ranks == sorted(ranks)
        assert set(names(queue)) == waiting
        assert len(queue) == len(waiting)
        assert queue.tokens == sum(each.num_tokens for each in queue)
        assert not queue or queue.peek_request() is next(iter(queue))


def test_an_empty_queue_says_so_as_vllm_s_does() -> None:
    queue = queue_of()
    for take in (queue.pop_request, queue.peek_request):
        with pytest.raises(IndexError):
            take()


def test_who_waits_is_not_forgotten_with_those_that_were_started() -> None:
    queue = queue_of(ttft_s=60.0)
    for number in range(200):
        queue.add_request(request(number, 10, 100.0))
        queue.pop_request()
    queue.add_request(request(1000, 100, 100.0))
    queue.add_request(request(1001, 500, 150.0))
    queue.step(101.0, [], 0.0)
    assert len(queue.ranker._late_after) < 100  # those that were
    assert not queue.ranker._started
    queue.step(170.0, [], 0.0)
    assert names(queue) == ["1001", "1000"]


def test_those_that_can_all_be_on_time_go_before_a_shorter_one_that_cannot() -> None:
    queue = queue_of(order="deadline")
    rows = [(11_000, 99.6), (7000, 99.8), (4000, 99.9), (16_000, 99.91)]
    for number, (tokens, arrival_s) in enumerate(rows):
        queue.add_request(request(number, tokens, arrival_s))
    queue.step(100.0, [], 20_000.0)
    assert names(queue) == ["1", "2", "0", "3"]
    queue.step(100.0, [], 60_000.0)
    assert names(queue) == ["2", "1", "0", "3"]
    queue.step(100.0, [], 0.0)  # not known, or on the lane: as spf
    assert names(queue) == ["2", "1", "0", "3"]


def test_who_waits_for_a_grammar_can_go_first_and_who_was_preempted_always_does() -> None:
    from vllm.v1.request import RequestStatus

    queue = queue_of(order="deadline")
    for number, tokens in enumerate((50, 3000, 3000, 9000)):
        queue.add_request(request(number, tokens, 99.9))
    statuses = [s.name for s in RequestStatus]
    grammar = next(name for name in statuses if "FSM" in name or "GRAMMAR" in name)
    queue.step(100.0, [], 20_000.0)
    waiting = list(queue)
    waiting[0].status = RequestStatus[grammar]
    waiting[3].status, waiting[3].num_preemptions = RequestStatus.PREEMPTED, 1
    queue.remove_request(waiting[3])
    queue.prepend_request(waiting[3])
    queue.step(100.0, [], 20_000.0)
    assert names(queue) == ["3", "0", "1", "2"]
