"""Prompts that wait in an imagined engine, in the order in which they run."""

from collections.abc import Collection, Iterator
from heapq import heappop, heappush
from itertools import chain
from math import inf

from nexus.core.ranking import PrefillRanker, Prompt
from nexus.planner.simulator.sequence import Sequence

_FRONT = -1e12  # rank of a sequence that was preempted: before all others

_Entry = tuple[float, int, Sequence]


class SimQueue:
    """The lowest rank first; what the server's queue does, in virtual time."""

    def __init__(self, ranker: PrefillRanker) -> None:
        """``ranker`` ranks the sequences."""
        self._ranker = ranker
        self._entries: list[_Entry] = []  # those with a rank that is no longer theirs among them
        self._late_after: list[_Entry] = []

    def __bool__(self) -> bool:
        return self.first is not None

    @property
    def first(self) -> Sequence | None:
        """Who is next, if anyone waits."""
        entries = self._entries
        while entries:
            rank, _, sequence = entries[0]
            if sequence.waits and sequence.rank == rank:
                return sequence
            heappop(entries)
        return None

    def push(self, sequence: Sequence) -> None:
        """It waits from now on, or has another number of tokens left than when it came."""
        sequence.waits = True
        self._enter(sequence)
        after_s = self._ranker.late_after(prompt_of(sequence))
        if after_s < inf and not sequence.preempted:
            heappush(self._late_after, (after_s, sequence.index, sequence))

    def pop(self) -> Sequence:
        """Take the first."""
        first = self.first
        assert first is not None
        heappop(self._entries)
        first.waits = False
        return first

    def advance(self, now_s: float) -> None:
        """Time has passed: prompts that are too late by now go behind those that are not."""
        self._ranker.now_s = now_s
        while self._late_after and self._late_after[0][0] < now_s:
            sequence = heappop(self._late_after)[2]
            if sequence.waits:
                self._enter(sequence)

    def reselect(self, partial: Collection[Sequence], tokens_per_s: float) -> None:
        """Choose who goes first, of those that wait and of those whose prompt is ``partial``."""
        changed = self._ranker.reselect(self._contenders(partial), tokens_per_s)
        if changed:
            for _, _, sequence in self._late_after:
                if sequence.waits and sequence.index in changed:
                    self._enter(sequence)
        for sequence in partial:
            sequence.rank = self._rank(sequence)

    def _contenders(self, partial: Collection[Sequence]) -> Iterator[Prompt]:
        waiting = (each for _, _, each in self._late_after if each.waits)
        return (prompt_of(each) for each in chain(waiting, partial) if not each.preempted)

    def _rank(self, sequence: Sequence) -> float:
        if sequence.preempted:
            return _FRONT + sequence.arrival_s
        return self._ranker.rank(prompt_of(sequence))

    def _enter(self, sequence: Sequence) -> None:
        sequence.rank = self._rank(sequence)
        heappush(self._entries, (sequence.rank, sequence.index, sequence))


def prompt_of(sequence: Sequence) -> Prompt:
    """What the ranker knows of it."""
    return Prompt(sequence.index, sequence.remaining, sequence.arrival_s)
