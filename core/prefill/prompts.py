"""Prompts that are not computed yet, and the lines in which those of a class wait."""

from bisect import bisect_left, insort
from collections import deque
from collections.abc import Hashable, Iterable, Iterator
from itertools import islice
from math import inf
from typing import NamedTuple

from nexus.core.prefill.late_share import CLASSES

INTERACTIVE, BATCH = range(CLASSES)


class Prompt(NamedTuple):
    """A prompt that is not computed yet: its key, tokens that are left, and arrival in seconds.

    ``ttft_s``: its own bound on TTFT in seconds after arrival; None: the ranker's for its tokens.
    ``batch``: its class, INTERACTIVE or BATCH.
    """

    key: Hashable
    tokens: int
    arrival_s: float
    ttft_s: float | None = None
    batch: int = INTERACTIVE


class Entry:
    """What is known of a prompt that waits or has started.

    ``due_s``: when its first token is to be there; ``late``: that is no longer possible;
    ``front``: it goes before all others; ``place``: among the chosen, None if it is not.
    """

    __slots__ = (
        "arrival_s", "batch", "due_s", "front", "key", "late", "number", "place", "tokens", "waits",
    )  # fmt: skip

    def __init__(self, key: Hashable, number: int) -> None:
        """``number``: of two that are equal otherwise, the lower one goes first."""
        self.key, self.number = key, number
        self.tokens, self.batch = 0, INTERACTIVE
        self.arrival_s = self.due_s = inf
        self.late = self.front = self.waits = False
        self.place: int | None = None


_Sorted = list[tuple[float, float, int, Entry]]  # numbers differ, so entries are never compared


class Line:
    """Those of one class that wait: chosen, others that are not late, and late.

    The chosen stand in the order of the choice, others by tokens, the late by arrival. Coming and
    going take time logarithmic in their number, but for the move of a list's end.
    """

    def __init__(self) -> None:
        """Nobody waits."""
        self.late_tokens = 0
        self._on_time: _Sorted = []  # the chosen among them
        self._late: _Sorted = []
        self._chosen: deque[Entry] = deque()  # some of whom may wait no more

    @property
    def has_late(self) -> bool:
        """Whether anyone late waits."""
        return bool(self._late)

    @property
    def num_on_time(self) -> int:
        """How many wait that are not late."""
        return len(self._on_time)

    def enter(self, entry: Entry) -> None:
        """It waits from now on, and is not chosen."""
        entry.place = None
        if entry.late:
            self.late_tokens += entry.tokens
            insort(self._late, (entry.arrival_s, 0.0, entry.number, entry))
        else:
            insort(self._on_time, (entry.tokens, entry.arrival_s, entry.number, entry))

    def leave(self, entry: Entry) -> None:
        """It waits no more, and is as it was when it entered."""
        if entry.late:
            self.late_tokens -= entry.tokens
            line, key = self._late, (entry.arrival_s, 0.0, entry.number)
        else:
            line, key = self._on_time, (entry.tokens, entry.arrival_s, entry.number)
        index = bisect_left(line, key)
        assert line[index][3] is entry
        del line[index]

    def first(self, late: bool) -> Entry | None:
        """Who goes first of the late, or of the others."""
        if late:
            return self._late[0][3] if self._late else None
        chosen = self._chosen
        while chosen and not _is_chosen(chosen[0]):
            chosen.popleft()
        if chosen:
            return chosen[0]
        return self._on_time[0][3] if self._on_time else None

    def each(self, late: bool) -> Iterator[Entry]:
        """The late, or the others, in their order; nobody may come or go meanwhile."""
        if late:
            yield from (entry for *_, entry in self._late)
            return
        yield from filter(_is_chosen, self._chosen)
        yield from (entry for *_, entry in self._on_time if entry.place is None)

    def shortest(self, count: int) -> list[Entry]:
        """The shortest that are not late, at most ``count``."""
        return [entry for *_, entry in islice(self._on_time, count)]

    def choose(self, entries: Iterable[Entry]) -> None:
        """These go first, in this order; those that have started have a place, and do not wait."""
        for entry in self._chosen:
            entry.place = None
        self._chosen.clear()
        for place, entry in enumerate(entries):
            entry.place = place
            if entry.waits:
                self._chosen.append(entry)


def _is_chosen(entry: Entry) -> bool:
    return entry.waits and entry.place is not None
