"""From waiting prompts to an order: who can be on time first, and a share for who cannot.

``deadline``: as many as can all be on time together go first, then the others that are not late,
the shortest first. ``spf``: all that are not late, the shortest first. In both a prompt is late
once its first token would miss its bound even if it ran now. The late of a class, oldest first,
keep ``late_share`` of all prompt tokens and have what the others leave. So one that is late has
its first token within

    (late tokens of its class that came before it + its own + those of 3 steps)
    / (late_share x prompt tokens computed per second)

Interactive prompts go before batch ones, but for the share of the batch prompts that are late.
``fcfs`` is the order in which they came, those of a lower class number first.

The server and the simulator drive this same code, one on the wall clock, the other on
virtual time: it reads no clock.
"""

from collections import deque
from collections.abc import Hashable, Iterable, Iterator, Mapping
from heapq import heapify, heappop, heappush
from math import inf
from typing import Any, Literal, get_args

from nexus.core.plan import Plan
from nexus.core.prefill.late_share import CLASSES, DEFAULT_LATE_SHARE, STEPS_OF_SLACK, LateShare
from nexus.core.prefill.prompts import BATCH, INTERACTIVE, Entry, Line, Prompt
from nexus.core.prefill.selection import choose_first, steps_to_keep
from nexus.core.slo import Bounds

PrefillOrder = Literal["deadline", "spf", "fcfs"]
ORDERS: tuple[PrefillOrder, ...] = get_args(PrefillOrder)

DEFAULT_ORDER: PrefillOrder = "deadline"

Rank = tuple[float, ...]
"""Of two prompts the one of lower rank runs first, at the present step."""

_LEAST_RATE = 0.1  # of the whole, whatever share the late have
_LEAST_S = 1e-3  # of a bound on TTFT
_FEW = 64  # prompts that wait no more may be remembered


class PrefillRanker:
    """The prompts that wait, and those that are partially computed, in their order.

    Each step: ``step``, then ``first``, ``pop`` and ``rank`` as often as needed, then ``computed``.
    """

    def __init__(
        self,
        order: PrefillOrder,
        bounds: Bounds | None = None,
        tokens_per_s: float = inf,
        late_share: float = DEFAULT_LATE_SHARE,
    ) -> None:
        """``bounds``: None for no bound on TTFT; ``tokens_per_s``: the fastest prefill there is."""
        self.order = order
        self.now_s = -inf
        self.tokens = 0  # of all that wait
        self._bounds, self._tokens_per_s = bounds, tokens_per_s
        self._share = LateShare(late_share)
        self._waiting: dict[Hashable, Entry] = {}
        self._started: dict[Hashable, Entry] = {}
        self._front: deque[Entry] = deque()
        self._lines = tuple(Line() for _ in range(CLASSES))
        self._late_after: list[tuple[float, int, Entry]] = []
        self._numbers = 0
        self._steps_since_choice = 0

    @classmethod
    def of(cls, plan: Plan, order: PrefillOrder, late_share: float) -> "PrefillRanker":
        """With the plan's bounds, and the fastest prefill that its table has."""
        fastest = max(row.prefill_tokens_per_s for row in plan.rows)
        return cls(order, plan.bounds, fastest or inf, late_share)

    def __len__(self) -> int:
        return len(self._waiting)

    def __contains__(self, key: Hashable) -> bool:
        return key in self._waiting

    def __iter__(self) -> Iterator[Hashable]:
        """The keys of those that wait, in their order; nobody may come or go meanwhile."""
        yield from (entry.key for entry in self._front)
        for number, late in self._turns():
            yield from (entry.key for entry in self._lines[number].each(late))

    @property
    def first(self) -> Hashable | None:
        """The key of the prompt to run next, of those that wait; None if none does."""
        if self._front:
            return self._front[0].key
        for number, late in self._turns():
            entry = self._lines[number].first(late)
            if entry is not None:
                return entry.key
        return None

    def add(self, prompt: Prompt, *, front: bool = False) -> None:
        """It waits from now on, or another number of its tokens is left; ``front``: before all."""
        self._started.pop(prompt.key, None)
        entry = self._waiting.get(prompt.key)
        if entry is None:
            entry = self._new(prompt)
        else:
            self._leave(entry)
            self._set(entry, prompt)
        self._enter(entry, front)

    def put_back(self, prompt: Prompt, *, front: bool = False) -> None:
        """As ``add``; one that was just popped has its bound and its place among its equals again."""
        entry = self._started.pop(prompt.key, None)
        if entry is None:
            self.add(prompt, front=front)
        else:
            entry.tokens = prompt.tokens
            self._enter(entry, front)

    def pop(self) -> Hashable:
        """Take the first, whose prompt starts."""
        key = self.first
        assert key is not None
        entry = self._started[key] = self._waiting.pop(key)
        self._leave(entry)
        return key

    def remove(self, key: Hashable) -> None:
        """It waits no more, and does not start."""
        self._leave(self._waiting.pop(key))

    def step(self, now_s: float, partial: Iterable[Prompt], tokens_per_s: float) -> None:
        """A step begins; ``partial``: all prompts that are partially computed.

        ``tokens_per_s``: the rate at which prompts are computed now; where that is 0, not known,
        all that are not late go shortest first. When the clock is set back, time stands still.
        """
        self.now_s = max(now_s, self.now_s)
        started = self._started
        self._started = {}
        for prompt in partial:
            entry = started.get(prompt.key) or self._new(prompt)
            entry.tokens = prompt.tokens
            entry.late = self._is_late(entry)
            self._started[prompt.key] = entry
        self._grow_late()
        oldest = self._lines[INTERACTIVE].first(late=True)
        if oldest is not None and self.order != "fcfs":
            bound_s = max(oldest.due_s - oldest.arrival_s, _LEAST_S)
            waited = (self.now_s - oldest.arrival_s) / bound_s
            self._share.oldest_waited(waited, self._lines[BATCH].has_late)
        if self.order == "deadline" and self._bounds is not None:
            self._choose(tokens_per_s)

    def computed(self, tokens: Mapping[Any, int]) -> None:
        """The step computes so many ``tokens`` of prompts, by key; of others too, if that is so."""
        if self.order != "fcfs":
            self._account([(entry, tokens.get(key, 0)) for key, entry in self._started.items()])

    def handed_over(self, key: Hashable, tokens: int) -> Rank:
        """So many tokens of a prompt are to be computed beside the steps; its rank there, for good.

        Those that are late have had their turn, and are not passed by others any more.
        """
        entry = self._waiting.get(key) or self._started.get(key)
        if entry is None or self.order == "fcfs":
            return self.rank(key)
        self._account([(entry, tokens)])
        return self._rank_in_turn(entry) if entry.late and not entry.front else self.rank(key)

    def is_late(self, key: Hashable) -> bool:
        """Whether a prompt that waits or has started is too late for its bound."""
        return (self._waiting.get(key) or self._started[key]).late and self.order != "fcfs"

    def rank(self, key: Hashable) -> Rank:
        """Where a prompt stands that waits or has started; an unknown one behind all others."""
        entry = self._waiting.get(key) or self._started.get(key)
        if entry is None:
            return (inf,)
        if entry.front:
            return (-inf,)
        group = 2.0 * entry.batch
        if entry.late:
            if self._share.has_turn(entry.batch):
                return self._rank_in_turn(entry)
            return (group + 1.0, entry.arrival_s, entry.number)
        if entry.place is not None:
            return (group, 0.0, entry.place)
        return (group, 1.0, entry.tokens, entry.arrival_s, entry.number)

    def _rank_in_turn(self, entry: Entry) -> Rank:
        return (2.0 * (entry.batch - CLASSES), entry.arrival_s, entry.number)

    def longest_wait_s(self, prompt: Prompt, tokens_per_s: float, step_tokens: int) -> float:
        """Within how many seconds ``prompt``, should it be late, is to have its first token.

        The guarantee as things stand, where ``tokens_per_s`` prompt tokens are computed in steps
        of ``step_tokens`` at most, and all that are late came before.
        """
        ahead = self._lines[prompt.batch].late_tokens
        ahead += sum(e.tokens for e in self._started.values() if e.late and e.batch == prompt.batch)
        tokens = ahead + prompt.tokens + STEPS_OF_SLACK * step_tokens
        return tokens / (self._share.promised * tokens_per_s)

    def _turns(self) -> Iterator[tuple[int, bool]]:
        """Classes, and whether their late ones are meant, in the order in which they run."""
        turns = [number for number in range(CLASSES) if self._share.has_turn(number)]
        yield from ((number, True) for number in turns)
        for number in range(CLASSES):
            yield number, False
            if number not in turns:
                yield number, True

    def _new(self, prompt: Prompt) -> Entry:
        self._numbers += 1
        entry = Entry(prompt.key, self._numbers)
        self._set(entry, prompt)
        return entry

    def _set(self, entry: Entry, prompt: Prompt) -> None:
        entry.tokens = prompt.tokens
        if self.order == "fcfs":  # of those that are alike, their numbers tell who came first
            entry.arrival_s = float(prompt.batch)
            return
        entry.arrival_s, entry.batch = prompt.arrival_s, prompt.batch
        ttft_s = prompt.ttft_s
        if ttft_s is None:
            bounds = self._bounds
            ttft_s = inf if bounds is None else bounds.ttft_ms_for(prompt.tokens) / 1e3
        entry.due_s = prompt.arrival_s + ttft_s

    def _late_after_s(self, entry: Entry) -> float:
        """Until when it must have begun to be on time."""
        return entry.due_s - entry.tokens / self._tokens_per_s

    def _is_late(self, entry: Entry) -> bool:
        if self.order == "fcfs":
            return True
        return self.now_s > self._late_after_s(entry) and not entry.front

    def _enter(self, entry: Entry, front: bool = False) -> None:
        self._waiting[entry.key] = entry
        entry.waits, entry.front = True, front
        self.tokens += entry.tokens
        entry.late = self._is_late(entry)
        if entry.front:
            entry.place = None  # it may still be among those that were chosen
            self._front.appendleft(entry)
            return
        self._lines[entry.batch].enter(entry)
        if not entry.late and entry.due_s < inf:
            heappush(self._late_after, (self._late_after_s(entry), entry.number, entry))

    def _leave(self, entry: Entry) -> None:
        entry.waits = False
        self.tokens -= entry.tokens
        if entry.front:
            self._front.remove(entry)
        else:
            self._lines[entry.batch].leave(entry)

    def _grow_late(self) -> None:
        """Those that are too late by now join the late."""
        heap = self._late_after
        if len(heap) > 2 * len(self._waiting) + _FEW:
            heap = self._late_after = [one for one in heap if self._is_right(one)]
            heapify(heap)
        while heap and heap[0][0] < self.now_s:
            one = heappop(heap)
            if self._is_right(one):
                self._leave(one[2])
                self._enter(one[2])

    def _is_right(self, one: tuple[float, int, Entry]) -> bool:
        """Whether it still waits to be late after that time."""
        at_s, _, entry = one
        waits = entry.waits and not (entry.late or entry.front)
        return waits and at_s == self._late_after_s(entry)

    def _choose(self, tokens_per_s: float) -> None:
        """Choose who goes first, if the last choice is old enough."""
        partial = [e for e in self._started.values() if not (e.late or e.front)]
        self._steps_since_choice += 1
        if self._steps_since_choice < steps_to_keep(self._lines, partial):
            return
        self._steps_since_choice = 0
        late = sum(self._share.of(n) for n, line in enumerate(self._lines) if line.has_late)
        rate = tokens_per_s * max(1.0 - late, _LEAST_RATE)
        choose_first(self._lines, partial, self.now_s, rate)

    def _account(self, parts: list[tuple[Entry, int]]) -> None:
        """Of these prompts so many tokens are computed."""
        late, waits = [0] * CLASSES, [line.has_late for line in self._lines]
        for entry, tokens in parts:
            if entry.late:
                late[entry.batch] += tokens
                waits[entry.batch] = True
        self._share.computed(sum(tokens for _, tokens in parts), late, waits)
