"""From waiting prompts to an order.

The server and the simulator drive this same code, one on the wall clock, the other on
virtual time: it reads no clock.
"""

from collections.abc import Hashable, Iterable, Sequence
from heapq import heappop, heappush
from math import inf
from typing import Literal, NamedTuple, get_args

from nexus.core.plan import Plan

PrefillOrder = Literal["deadline", "spf", "fcfs"]
ORDERS: tuple[PrefillOrder, ...] = get_args(PrefillOrder)

DEFAULT_ORDER: PrefillOrder = "deadline"
DEFAULT_AGING_TOKENS_PER_S = 50.0

LATE_TOKENS = 16384
"""What being too late for the bound on TTFT counts as: about the longest prompt. Aging makes up
for it, so that none waits for ever."""

# Of the rate at which prompts are computed, as others arrive meanwhile: so much must be enough for
# all that go first, and so much for one to let shorter ones pass.
_RATE_TO_COUNT_ON = 0.9
_RATE_TO_LET_PASS = 0.63

_APART = 1 / 32  # tokens between the ranks of those that go first: few, but seen at any time of day


class Prompt(NamedTuple):
    """A prompt that is not computed yet: its key, tokens that are left, and arrival in seconds."""

    key: Hashable
    tokens: int
    arrival_s: float


class PrefillRanker:
    """Ranks prompts: the lowest rank runs first.

    ``fcfs`` ranks by arrival. ``spf`` ranks by tokens left minus ``aging_tokens_per_s`` for each
    second waited; as every prompt ages alike, the present time cancels out of each comparison.
    A prompt whose first token would come after ``ttft_s`` even if it ran now, at
    ``tokens_per_s``, counts as ``LATE_TOKENS`` longer. ``deadline`` is as ``spf``, but as many as
    can all be on time together go before the others: ``reselect`` chooses them.
    """

    def __init__(
        self,
        order: PrefillOrder,
        aging_tokens_per_s: float = DEFAULT_AGING_TOKENS_PER_S,
        ttft_s: float = inf,
        tokens_per_s: float = inf,
    ) -> None:
        """``now_s`` is to be set, on the clock of arrivals."""
        self.order = order
        self.now_s = 0.0
        self._aging_tokens_per_s = aging_tokens_per_s
        self._ttft_s = ttft_s
        self._tokens_per_s = tokens_per_s
        self._ahead: dict[Hashable, float] = {}

    @classmethod
    def of(cls, plan: Plan, order: PrefillOrder, aging_tokens_per_s: float) -> "PrefillRanker":
        """With the plan's bound on TTFT, and the fastest prefill that its table has."""
        fastest = max(row.prefill_tokens_per_s for row in plan.rows)
        return cls(order, aging_tokens_per_s, plan.bounds.ttft_ms / 1e3, fastest or inf)

    def late_after(self, prompt: Prompt) -> float:
        """Until when a prompt must have begun to be on time; never where the order is fcfs."""
        if self.order == "fcfs":
            return inf
        return prompt.arrival_s + self._ttft_s - prompt.tokens / self._tokens_per_s

    def is_late(self, prompt: Prompt) -> bool:
        """Whether its first token would be too late even if it ran now."""
        return self.now_s > self.late_after(prompt)

    def rank(self, prompt: Prompt) -> float:
        """The rank of a prompt at ``now_s``."""
        if self.order == "fcfs":
            return prompt.arrival_s
        aged = prompt.tokens + self._aging_tokens_per_s * prompt.arrival_s
        if self.is_late(prompt):
            return aged + LATE_TOKENS
        return self._ahead.get(prompt.key, aged)

    def reselect(self, prompts: Iterable[Prompt], tokens_per_s: float) -> set[Hashable]:
        """Choose who goes first in ``deadline`` order; the keys of those whose rank changed.

        ``prompts`` wait or are partially prefilled; those that are late are passed over. ``tokens_per_s`` is
        the rate at which they are computed; where that is 0, not known, the order is ``spf``. Part
        of the rate is left for those that are yet to come. Who is chosen ranks as a prompt of no
        tokens that came just now: who has waited long enough is still before it.
        """
        before = self._ahead
        if self.order != "deadline" or self._ttft_s == inf or not (before or tokens_per_s):
            return set()
        here = {prompt.key: prompt for prompt in prompts if not self.is_late(prompt)}
        first = self._first(list(here.values()), tokens_per_s) if tokens_per_s else []
        if [key for key in before if key in here] == first:
            self._ahead = {key: before[key] for key in first}
        else:
            rank = self._aging_tokens_per_s * self.now_s
            self._ahead = {key: rank + _APART * place for place, key in enumerate(first)}
        return {key for key in here if before.get(key) != self._ahead.get(key)}

    def _first(self, prompts: list[Prompt], tokens_per_s: float) -> list[Hashable]:
        until_s = self.now_s - self._ttft_s
        on_time = most_on_time(prompts, until_s, _RATE_TO_COUNT_ON * tokens_per_s)
        order = shortest_first(on_time, until_s, _RATE_TO_LET_PASS * tokens_per_s)
        return [prompt.key for prompt in order]


def most_on_time(prompts: Sequence[Prompt], until_s: float, tokens_per_s: float) -> list[Prompt]:
    """As many of ``prompts`` as can all be on time, by Moore and Hodgson's rule; by arrival.

    They run one after the other at ``tokens_per_s``, from ``until_s`` on, which is now less the
    bound on TTFT: who has ended by its arrival then is on time.
    """
    end_s, chosen = until_s, list[tuple[float, int]]()
    by_arrival = sorted(prompts, key=_arrival_of)
    for index, prompt in enumerate(by_arrival):
        end_s += prompt.tokens / tokens_per_s
        heappush(chosen, (-prompt.tokens, index))
        if end_s > prompt.arrival_s:
            end_s += heappop(chosen)[0] / tokens_per_s
    return [by_arrival[index] for index in sorted(index for _, index in chosen)]


def shortest_first(prompts: Sequence[Prompt], until_s: float, tokens_per_s: float) -> list[Prompt]:
    """``prompts`` (by arrival) so that shorter ones pass where that makes no other late.

    By Smith's rule, from the end: last is the longest of those that would be on time there, or
    where none would, the one that came last.
    """
    end_s = until_s + sum(prompt.tokens for prompt in prompts) / tokens_per_s
    left, may_end, order = list(prompts), list[tuple[float, int, Prompt]](), list[Prompt]()
    while left or may_end:
        while left and left[-1].arrival_s >= end_s:
            heappush(may_end, (-left[-1].tokens, -len(left), left.pop()))
        prompt = heappop(may_end)[2] if may_end else left.pop()
        order.append(prompt)
        end_s -= prompt.tokens / tokens_per_s
    return order[::-1]


def _arrival_of(prompt: Prompt) -> float:
    return prompt.arrival_s
