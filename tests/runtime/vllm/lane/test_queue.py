"""The lane's queue: every prompt is computed in order, once, and leaves once."""

from dataclasses import dataclass, field

from hypothesis import given
from hypothesis import strategies as st

from nexus.runtime.vllm.lane.pass_inputs import Row
from nexus.runtime.vllm.lane.queue import LanePrompt, LaneQueue

MAX_PASSES = 2


@dataclass
class Work:
    rows: list[Row] = field(default_factory=list)
    over: bool = False

    def finished(self) -> bool:
        return self.over


def prompt(name: str, tokens: int, rank: float = 0.0, context: int = 0) -> LanePrompt:
    first = 1000 * (ord(name[-1]) + 1)
    return LanePrompt(name, (rank,), list(range(first, first + tokens)), context, ([0],))


def launch(queue: LaneQueue, chunk: int) -> Work | None:
    shares = queue.take(chunk, max_rows=8)
    if not shares:
        return None
    work = Work([share.row for share in shares])
    queue.launched(shares, work)
    return work


def test_short_prompts_share_a_pass_and_long_ones_take_several() -> None:
    queue = LaneQueue(MAX_PASSES)
    queue.add(prompt("long", 100, rank=3, context=16))
    queue.add(prompt("a", 20, rank=1))
    queue.add(prompt("b", 30, rank=2))
    first = launch(queue, 64)
    assert first is not None
    assert [len(row.tokens) for row in first.rows] == [20, 30, 14]
    second = launch(queue, 64)
    assert second is not None
    assert [(len(row.tokens), row.context) for row in second.rows] == [(64, 30)]
    assert launch(queue, 64) is None  # two are under way
    first.over = True
    assert queue.reap().finished == {"a", "b"}
    third = launch(queue, 64)
    assert third is not None
    assert [len(row.tokens) for row in third.rows] == [22]
    second.over = third.over = True
    assert queue.reap().finished == {"long"}
    assert len(queue) == 0


def test_a_cancelled_prompt_leaves_when_its_passes_are_over() -> None:
    queue = LaneQueue(MAX_PASSES)
    queue.add(prompt("a", 100))
    work = launch(queue, 10)
    assert work is not None
    queue.cancel("a")
    queue.cancel("unknown")
    assert launch(queue, 10) is None
    assert queue.reap().finished == set()
    work.over = True
    reaped = queue.reap()
    assert (reaped.finished, reaped.returned) == ({"a"}, {})


def test_withdrawn_prompts_go_on_elsewhere_from_where_they_were() -> None:
    queue = LaneQueue(MAX_PASSES)
    queue.add(prompt("a", 100, rank=1, context=32))
    queue.add(prompt("b", 100, rank=2))
    work = launch(queue, 60)
    assert work is not None
    queue.withdraw()
    assert queue.reap().returned == {"b": 0}
    work.over = True
    assert queue.reap().returned == {"a": 92}


def test_a_prompt_near_its_end_is_not_withdrawn() -> None:
    queue = LaneQueue(MAX_PASSES)
    queue.add(prompt("a", 100, rank=1))
    queue.add(prompt("b", 20, rank=2))
    first = launch(queue, 60)
    assert first is not None
    queue.withdraw(last_tokens=60)
    second = launch(queue, 60)
    assert second is not None
    assert [len(row.tokens) for row in second.rows] == [40]
    first.over = second.over = True
    reaped = queue.reap()
    assert (reaped.finished, reaped.returned) == ({"a", "b"}, {"b": 0})


def test_a_failed_launch_waits_for_what_ran_of_it() -> None:
    queue = LaneQueue(MAX_PASSES)
    queue.add(prompt("a", 100, context=5))
    first = launch(queue, 60)
    assert first is not None
    fence = Work()
    queue.failed(queue.take(60, max_rows=8), fence)
    first.over = True
    assert queue.reap().finished == set()
    fence.over = True
    assert queue.reap().returned == {"a": 65}


def test_a_pass_has_room_for_so_many_prompts() -> None:
    queue = LaneQueue(MAX_PASSES)
    for rank in range(10):
        queue.add(prompt(chr(40 + rank), 5, rank=rank))
    work = launch(queue, 64)
    assert work is not None
    assert len(work.rows) == 8


def test_a_prompt_leaves_during_its_last_pass_if_that_ends_in_time() -> None:
    queue = LaneQueue(MAX_PASSES)
    queue.add(prompt("a", 40, rank=1))
    queue.add(prompt("b", 60, rank=2))
    first = launch(queue, 64)
    second = launch(queue, 64)
    assert first is not None
    assert second is not None
    assert queue.reap(lambda _: False).finished == set()
    reaped = queue.reap(lambda work: work is first)
    assert (reaped.finished, reaped.under_way) == ({"a"}, first)  # b has another pass to go
    assert queue.reap(lambda work: work is first).under_way is None
    queue.add(prompt("a", 10, rank=1))  # preempted, and back before the pass is over
    first.over = True
    queue.cancel("b")
    assert queue.reap(lambda _: True).finished == set()  # who is cancelled waits for the end
    second.over = True
    assert queue.reap(lambda _: True).finished == {"b"}
    assert len(queue) == 1


ACTIONS = st.lists(
    st.one_of(
        st.tuples(st.just("add"), st.integers(1, 90)),
        st.tuples(st.sampled_from(["launch", "fail"]), st.integers(1, 64)),
        st.tuples(st.sampled_from(["end", "cancel", "withdraw"]), st.integers(0, 5)),
    ),
    max_size=60,
)


@given(ACTIONS)
def test_every_prompt_leaves_once_and_is_computed_in_order(actions: list[tuple[str, int]]) -> None:
    queue = LaneQueue(MAX_PASSES)
    works: list[Work] = []
    prompts: dict[str, LanePrompt] = {}
    computed: dict[str, int] = {}
    left: list[str] = []

    def reap() -> None:
        reaped = queue.reap()
        left.extend(reaped.finished)
        for name, tokens in reaped.returned.items():
            assert computed[name] == tokens - prompts[name].context
        assert not reaped.returned.keys() - reaped.finished

    def run(work: Work) -> None:
        works.append(work)
        for row in work.rows:
            (name,) = [n for n, p in prompts.items() if row.tokens[0] in p.tokens]
            assert row.context == prompts[name].context + computed[name]
            assert row.tokens[0] == prompts[name].tokens[computed[name]]
            computed[name] += len(row.tokens)

    for action, number in actions:
        if action == "add":
            name = f"p{chr(len(prompts) + 33)}"
            prompts[name] = prompt(name, number, rank=number, context=number % 3)
            computed[name] = 0
            queue.add(prompts[name])
        elif action == "launch" and (work := launch(queue, number)):
            assert sum(len(row.tokens) for row in work.rows) <= number
            run(work)
        elif action == "fail" and (shares := queue.take(number, max_rows=8)):
            works.append(Work())
            queue.failed(shares, works[-1])
        elif action == "end":
            for work in works[: len(works) - queue.passes_under_way + 1]:
                work.over = True
            reap()
        elif action == "cancel" and prompts:
            queue.cancel(list(prompts)[number % len(prompts)])
        elif action == "withdraw":
            queue.withdraw(last_tokens=10 * number)
        assert queue.passes_under_way <= MAX_PASSES

    def end_all() -> None:
        for each in works:
            each.over = True
        reap()

    end_all()
    while work := launch(queue, 64):
        run(work)
        end_all()
    assert sorted(left) == sorted(prompts)
    assert len(queue) == 0
