"""Which prompts can all be on time together, and in which order.

They run one after the other at a rate, from a time on; each is due at a time of its own.
"""

from collections.abc import Iterable, Sequence
from heapq import heappop, heappush, heappushpop
from operator import attrgetter
from typing import Protocol, TypeVar

from nexus.core.prefill.prompts import Entry, Line


class Due(Protocol):
    """A prompt that is due at a time; in tokens and seconds."""

    @property
    def tokens(self) -> int:
        """What is left to compute."""
        ...

    @property
    def due_s(self) -> float:
        """When the first token is to be there."""
        ...


# Of the rate at which prompts are computed, as others arrive meanwhile: so much must be enough for
# all that go first, and so much for one to let shorter ones pass.
_RATE_TO_COUNT_ON = 0.9
_RATE_TO_LET_PASS = 0.63

# Of many the shortest contend, and a choice among n is kept for n / 32 steps: choosing costs the
# same at any load, and steps compute few of them meanwhile.
_MOST_CONTENDERS = 512
_CONTENDERS_A_STEP = 32

DueT = TypeVar("DueT", bound=Due)
_due_of = attrgetter("due_s")


def most_on_time(prompts: Iterable[DueT], from_s: float, tokens_per_s: float) -> list[DueT]:
    """As many of ``prompts`` as can all be on time, by Moore and Hodgson's rule; by due time."""
    end_s, s_per_token, chosen = from_s, 1.0 / tokens_per_s, list[tuple[int, int]]()
    by_due = sorted(prompts, key=_due_of)
    for index, prompt in enumerate(by_due):
        tokens = prompt.tokens
        end_s += tokens * s_per_token
        if end_s <= prompt.due_s:
            heappush(chosen, (-tokens, index))
        else:
            end_s += heappushpop(chosen, (-tokens, index))[0] * s_per_token
    return [by_due[index] for index in sorted(index for _, index in chosen)]


def shortest_first(prompts: Sequence[DueT], from_s: float, tokens_per_s: float) -> list[DueT]:
    """``prompts`` (by due time) so that shorter ones pass where that makes no other late.

    By Smith's rule, from the end: last is the longest of those that would be on time there, or
    where none would, the one that is due last.
    """
    end_s = from_s + sum(prompt.tokens for prompt in prompts) / tokens_per_s
    left, may_end, order = list(prompts), list[tuple[int, int, DueT]](), list[DueT]()
    while left or may_end:
        while left and left[-1].due_s >= end_s:
            heappush(may_end, (-left[-1].tokens, -len(left), left.pop()))
        prompt = heappop(may_end)[2] if may_end else left.pop()
        order.append(prompt)
        end_s -= prompt.tokens / tokens_per_s
    return order[::-1]


def steps_to_keep(lines: Sequence[Line], partial: Sequence[Entry]) -> int:
    """For how many steps a choice among those that are not late is kept."""
    contend = len(partial) + sum(min(line.num_on_time, _MOST_CONTENDERS) for line in lines)
    return max(-(-contend // _CONTENDERS_A_STEP), 1)


def choose_first(
    lines: Sequence[Line], partial: Sequence[Entry], now_s: float, tokens_per_s: float
) -> None:
    """Choose in each class's line, the first class first, who goes before the others there.

    ``partial`` have started, and are not late. What waits in one class goes before the next one's.
    A rate of 0 is one that is not known: nobody is chosen.
    """
    for entry in partial:
        entry.place = None
    from_s = now_s
    for number, line in enumerate(lines):
        if not tokens_per_s:
            line.choose(())
            continue
        contenders = line.shortest(_MOST_CONTENDERS)
        contenders += (entry for entry in partial if entry.batch == number)
        on_time = most_on_time(contenders, from_s, _RATE_TO_COUNT_ON * tokens_per_s)
        line.choose(shortest_first(on_time, from_s, _RATE_TO_LET_PASS * tokens_per_s))
        ahead = line.late_tokens + sum(entry.tokens for entry in on_time)
        from_s += ahead / (_RATE_TO_COUNT_ON * tokens_per_s)
