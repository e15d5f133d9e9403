"""Prompts' order: who goes first, what the late keep, and that nobody waits for ever.

A server of one step at a time is enough: it computes up to ``CHUNK`` tokens in each, in the order
of ranks, and tells the ranker.
"""

from dataclasses import dataclass, field
from itertools import pairwise
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from nexus.core.prefill.late_share import STEPS_OF_SLACK
from nexus.core.prefill.prompts import BATCH, INTERACTIVE, Prompt
from nexus.core.prefill.ranking import ORDERS, PrefillOrder, PrefillRanker
from nexus.core.slo import Bounds

CHUNK, STEP_S = 512, 0.02
PER_S = CHUNK / STEP_S
BOUNDS = Bounds(500, 100)


@dataclass
class Server:
    """Serves prompts; ``first_s`` has each one's end by key, ``late_s`` when it became late."""

    ranker: PrefillRanker
    now_s: float = 0.0
    left: dict[Any, Prompt] = field(default_factory=dict)
    partial: list[Any] = field(default_factory=list)
    first_s: dict[Any, float] = field(default_factory=dict)
    order: list[Any] = field(default_factory=list)

    def add(self, prompt: Prompt) -> None:
        self.left[prompt.key] = prompt
        self.ranker.add(prompt)

    def step(self, clock_s: float | None = None) -> dict[Any, int]:
        ranker, budget, taken = self.ranker, CHUNK, dict[Any, int]()
        partial = [self.left[key] for key in self.partial]
        ranker.step(self.now_s if clock_s is None else clock_s, partial, PER_S)
        while budget and (key := self._next()) is not None:
            taken[key] = min(budget, self.left[key].tokens)
            budget -= taken[key]
            self.order.append(key)
            self._compute(key, taken[key])
        ranker.computed(taken)
        self.now_s += STEP_S
        return taken

    def _next(self) -> Any:
        partial = min(self.partial, key=self.ranker.rank, default=None)
        first = self.ranker.first
        if first is None or (
            partial is not None and self.ranker.rank(partial) <= self.ranker.rank(first)
        ):
            return partial
        assert self.ranker.pop() == first
        self.partial.append(first)
        return first

    def _compute(self, key: Any, tokens: int) -> None:
        left = self.left[key]._replace(tokens=self.left[key].tokens - tokens)
        self.left[key] = left
        if not left.tokens:
            self.partial.remove(key)
            self.first_s[key] = self.now_s + STEP_S
            del self.left[key]


def ranker_of(
    order: PrefillOrder = "deadline", share: float = 0.1, bounds: Bounds = BOUNDS
) -> PrefillRanker:
    return PrefillRanker(order, bounds, PER_S, share)


def keys_at(ranker: PrefillRanker, now_s: float, *prompts: Prompt, rate: float = PER_S) -> Any:
    for prompt in prompts:
        ranker.add(prompt)
    ranker.step(now_s, [], rate)
    return list(ranker)


ARRIVALS = st.lists(
    st.tuples(
        st.floats(0, 0.1),  # seconds after the one before
        st.integers(1, 6000),
        st.sampled_from([INTERACTIVE, INTERACTIVE, BATCH]),
        st.none() | st.floats(0.05, 2),
    ),
    min_size=1,
    max_size=20,
)
SHARES = st.sampled_from([0.05, 0.1, 0.3, 0.5])
RANKED = st.sampled_from(["deadline", "spf"])


def prompts_of(rows: list[Any]) -> list[Prompt]:
    prompts, at_s = [], 0.0
    for key, (gap_s, tokens, batch, ttft_s) in enumerate(rows):
        at_s += gap_s
        prompts.append(Prompt(key, tokens, at_s, ttft_s, batch))
    return prompts


def serve(server: Server, prompts: list[Prompt], most_steps: int = 100_000) -> None:
    coming = list(prompts)
    for _ in range(most_steps):
        while coming and coming[0].arrival_s <= server.now_s:
            server.add(coming.pop(0))
        if not (coming or server.left):
            return
        server.step()
    raise AssertionError("not all are served")


@given(ARRIVALS, SHARES, st.sampled_from(ORDERS))
def test_every_prompt_is_served(rows: list[Any], share: float, order: PrefillOrder) -> None:
    server, prompts = Server(ranker_of(order, share)), prompts_of(rows)
    serve(server, prompts)
    assert server.first_s.keys() == {prompt.key for prompt in prompts}
    assert len(server.ranker) == server.ranker.tokens == 0


@given(ARRIVALS)
def test_no_step_is_less_than_full_while_prompts_wait(rows: list[Any]) -> None:
    server = Server(ranker_of())
    for prompt in prompts_of(rows):
        server.add(prompt)
    while server.left:
        left = sum(prompt.tokens for prompt in server.left.values())
        assert sum(server.step().values()) == min(CHUNK, left)


@settings(max_examples=25, deadline=None)
@given(ARRIVALS, SHARES, RANKED, st.integers(100, 2000), st.floats(0.5, 2))
def test_a_late_prompt_waits_no_longer_than_is_stated(
    rows: list[Any], share: float, order: PrefillOrder, length: int, load: float
) -> None:
    """Under overload that lasts: without a share none of the late would ever be served."""
    server = Server(ranker_of(order, share))
    coming = prompts_of(rows)
    promised: dict[Any, float] = {}
    late_s: dict[Any, float] = {}
    number = 0
    while coming or any(isinstance(key, int) for key in server.left):
        while coming and coming[0].arrival_s <= server.now_s:
            server.add(coming.pop(0))
        for _ in range(round(load * CHUNK / length) + 1):
            number += 1
            server.add(Prompt(f"on time {number}", length, server.now_s, 0.05 + length / PER_S))
        server.step()
        for key, left in server.left.items():
            if isinstance(key, int) and key not in promised and server.ranker.is_late(key):
                ahead = sum(
                    each.tokens
                    for each in server.left.values()
                    if each.batch == left.batch
                    and each.arrival_s <= left.arrival_s
                    and each.key != key
                )
                tokens = ahead + left.tokens + STEPS_OF_SLACK * CHUNK
                promised[key], late_s[key] = tokens / (share * PER_S), server.now_s
        assert server.now_s < 10_000
    for key, seconds in promised.items():
        assert server.first_s[key] - late_s[key] <= seconds + 2 * STEP_S


@given(st.integers(1, 8000), st.integers(1, 3000))
def test_the_wait_that_is_stated_is_the_formula(ahead: int, own: int) -> None:
    ranker = ranker_of(share=0.2)
    keys_at(ranker, 100.0, Prompt("ahead", ahead, 90.0))
    wait_s = ranker.longest_wait_s(Prompt("own", own, 95.0), PER_S, CHUNK)
    assert wait_s == pytest.approx((ahead + own + 3 * CHUNK) / (0.2 * PER_S))


@settings(max_examples=15, deadline=None)
@given(SHARES, RANKED, st.integers(50, 4000), st.sampled_from([0.5, 1000.0]))
def test_interactive_prompts_wait_for_batch_ones_no_more_than_their_share(
    share: float, order: PrefillOrder, length: int, ttft_s: float
) -> None:
    server, number = Server(ranker_of(order, share)), 0
    for key in range(50):
        server.add(Prompt(key, 4000, 0.0, ttft_s, BATCH))
    batch = steps = 0
    while steps < 400:
        while sum(p.tokens for p in server.left.values() if p.batch == INTERACTIVE) < CHUNK:
            number += 1
            server.add(Prompt(f"interactive {number}", length, server.now_s, 1e3))
        taken = server.step()
        batch += sum(tokens for key, tokens in taken.items() if isinstance(key, int))
        steps += 1
    assert batch <= share * steps * CHUNK + STEPS_OF_SLACK * CHUNK
    if ttft_s == 0.5:  # they are late for most of the time
        assert batch >= share * (steps - 30) * CHUNK - STEPS_OF_SLACK * CHUNK
    else:
        assert batch == 0


@given(ARRIVALS, RANKED)
def test_equal_inputs_give_an_equal_order(rows: list[Any], order: PrefillOrder) -> None:
    first, second = Server(ranker_of(order)), Server(ranker_of(order))
    serve(first, prompts_of(rows))
    serve(second, prompts_of(rows))
    assert first.order == second.order


@given(ARRIVALS, st.lists(st.floats(-1e5, 1), min_size=1, max_size=20), st.sampled_from(ORDERS))
def test_a_clock_that_is_set_back_does_no_harm(
    rows: list[Any], jumps: list[float], order: PrefillOrder
) -> None:
    server = Server(ranker_of(order))
    for prompt in prompts_of(rows):
        server.add(prompt)
    for number in range(10_000):
        if not server.left:
            break
        before = server.ranker.now_s
        server.step(server.now_s + jumps[number % len(jumps)])
        assert server.ranker.now_s >= before
    assert not server.left


@given(ARRIVALS)
def test_fcfs_order_is_that_of_arrival(rows: list[Any]) -> None:
    server = Server(ranker_of("fcfs"))
    serve(server, [prompt._replace(batch=INTERACTIVE) for prompt in prompts_of(rows)])
    assert server.order == sorted(server.order)


@given(ARRIVALS, st.lists(st.integers(-3, 3), min_size=1))
def test_fcfs_has_those_of_a_lower_class_number_first(rows: list[Any], numbers: list[int]) -> None:
    ranker = ranker_of("fcfs")
    prompts = [
        prompt._replace(batch=numbers[at % len(numbers)])
        for at, prompt in enumerate(prompts_of(rows))
    ]
    wanted = sorted(range(len(prompts)), key=lambda at: (prompts[at].batch, at))
    assert keys_at(ranker, 0.0, *prompts) == [prompts[at].key for at in wanted]


@given(ARRIVALS, st.floats(0, 5))
def test_those_that_are_not_late_go_before_those_that_are(rows: list[Any], now_s: float) -> None:
    ranker = ranker_of("spf")
    prompts = {p.key: p._replace(batch=INTERACTIVE) for p in prompts_of(rows)}
    keys = keys_at(ranker, now_s, *prompts.values())
    late = [ranker.is_late(key) for key in keys]
    assert late == sorted(late)
    on_time, behind = keys[: late.count(False)], keys[late.count(False) :]
    assert all(prompts[a].tokens <= prompts[b].tokens for a, b in pairwise(on_time))
    assert all(prompts[a].arrival_s <= prompts[b].arrival_s for a, b in pairwise(behind))
    ranks = [ranker.rank(key) for key in keys]
    assert ranks == sorted(ranks)


@given(
    st.lists(
        st.tuples(
            st.sampled_from(["add", "add", "add", "pop", "back", "other", "remove", "step"]),
            st.integers(1, 9000),
            st.floats(0, 0.3),
            st.sampled_from([INTERACTIVE, BATCH]),
        ),
        max_size=150,
    ),
    st.sampled_from(ORDERS),
)
def test_the_order_is_that_of_the_ranks_at_any_time(
    events: list[tuple[str, int, float, int]], order: PrefillOrder
) -> None:
    ranker, now_s, waiting, popped = ranker_of(order), 0.0, dict[Any, Prompt](), dict[Any, Any]()
    for number, (event, tokens, seconds, batch) in enumerate(events):
        if event == "add":
            waiting[number] = Prompt(number, tokens, now_s - seconds, None, batch)
            ranker.add(waiting[number])
        elif event == "step":
            now_s += seconds
            ranker.step(now_s, list(popped.values())[:1], PER_S)
            popped = dict(list(popped.items())[:1])
            ranker.computed(dict.fromkeys(popped, tokens))
        elif event == "back" and popped:
            key, prompt = popped.popitem()
            waiting[key] = prompt
            ranker.put_back(prompt, front=bool(tokens % 2))
        elif waiting:
            key = list(waiting)[tokens % len(waiting)]
            if event == "other":
                waiting[key] = waiting[key]._replace(tokens=tokens)
                ranker.add(waiting[key])
            elif event == "remove":
                ranker.remove(key)
                del waiting[key]
            elif event == "pop":
                key = ranker.pop()
                popped[key] = waiting.pop(key)
        keys = list(ranker)
        assert set(keys) == waiting.keys()
        assert len(keys) == len(ranker)
        assert ranker.tokens == sum(prompt.tokens for prompt in waiting.values())
        assert ranker.first == (keys[0] if keys else None)
        ranks = [ranker.rank(key) for key in keys]
        assert ranks == sorted(ranks)


def test_those_that_can_all_be_on_time_go_before_a_shorter_one_that_cannot() -> None:
    old, long, fresh = Prompt("old", 3000, 99.7), Prompt("long", 9000, 99.9), Prompt("f", 3000, 100)
    assert keys_at(ranker_of(), 100.0, old, long, fresh) == ["old", "f", "long"]
    assert keys_at(ranker_of(), 100.0, old, long, fresh, rate=0.0) == ["old", "f", "long"]


def test_without_a_known_rate_the_order_is_that_of_length() -> None:
    ranker = ranker_of()
    older, shorter = Prompt("older", 4000, 99.75), Prompt("shorter", 3000, 99.95)
    assert keys_at(ranker, 100.0, older, shorter, rate=0.0) == ["shorter", "older"]
    assert keys_at(ranker, 100.0) == ["older", "shorter"]
    assert keys_at(ranker, 100.0, rate=0.0) == ["shorter", "older"]


def test_a_prompt_that_needs_longer_has_a_later_bound() -> None:
    long = Prompt("long", 20_000, 100.0)
    fixed, sloped = ranker_of(), ranker_of(bounds=Bounds(500, 100, 60))
    keys_at(fixed, 100.1, long)
    keys_at(sloped, 100.1, long)
    assert fixed.is_late("long")
    assert not sloped.is_late("long")


def test_a_prompt_s_own_bound_counts() -> None:
    first, second = Prompt("first", 4000, 99.9), Prompt("second", 5000, 100.0, ttft_s=0.25)
    assert keys_at(ranker_of(), 100.0, first, second) == ["second", "first"]


def test_batch_prompts_have_what_interactive_ones_leave() -> None:
    batch = Prompt("batch", 10, 99.9, None, BATCH)
    assert keys_at(ranker_of(), 100.0, batch, Prompt("chat", 3000, 100.0)) == ["chat", "batch"]


def test_what_is_handed_over_is_paid_for_and_not_passed() -> None:
    ranker = ranker_of(share=0.5)
    keys_at(ranker, 100.0, Prompt("late", 4000, 90.0), Prompt("fresh", 100, 100.0))
    assert ranker.pop() == "fresh"
    ranker.computed({"fresh": 100})
    assert ranker.first == "late"  # its turn
    newer = Prompt("newer", 100, 100.0)
    ranker.add(newer)
    assert ranker.handed_over(ranker.pop(), 4000) < ranker.rank("newer")
    ranker.add(Prompt("late too", 4000, 91.0))
    assert list(ranker) == ["newer", "late too"]
