"""Prompts that wait in an imagined engine, in the order in which they run."""

from collections.abc import Collection, Hashable, Mapping

from nexus.core.prefill.prompts import Prompt
from nexus.core.prefill.ranking import PrefillRanker, Rank
from nexus.planner.simulator.sequence import Sequence


class SimQueue:
    """What the server's queue does, in virtual time."""

    def __init__(self, ranker: PrefillRanker) -> None:
        """``ranker`` ranks the sequences, by their index."""
        self._ranker = ranker
        self._sequences: dict[Hashable, Sequence] = {}

    def __bool__(self) -> bool:
        return len(self._ranker) > 0

    @property
    def first(self) -> Sequence | None:
        """Who is next, if anyone waits; its rank is that of the present step."""
        key = self._ranker.first
        if key is None:
            return None
        sequence = self._sequences[key]
        sequence.rank = self._ranker.rank(key)
        return sequence

    def push(self, sequence: Sequence) -> None:
        """It waits from now on, or has another number of tokens left than when it came."""
        sequence.waits = True
        self._sequences[sequence.index] = sequence
        self._ranker.add(prompt_of(sequence), front=sequence.preempted)

    def pop(self) -> Sequence:
        """Take the first."""
        sequence = self._sequences.pop(self._ranker.pop())
        sequence.waits = False
        return sequence

    def step(self, now_s: float, partial: Collection[Sequence], tokens_per_s: float) -> None:
        """A step begins; ``partial``: those that are partially computed, which are ranked too."""
        self._ranker.step(now_s, map(prompt_of, partial), tokens_per_s)
        for sequence in partial:
            sequence.rank = self._ranker.rank(sequence.index)

    def computed(self, tokens: Mapping[Hashable, int]) -> None:
        """The step computes so many tokens of prompts, by index."""
        self._ranker.computed(tokens)

    def handed_over(self, sequence: Sequence) -> Rank:
        """The rest of a prompt is to be computed on the lane; its rank there."""
        return self._ranker.handed_over(sequence.index, sequence.remaining)


def prompt_of(sequence: Sequence) -> Prompt:
    """What the ranker knows of it."""
    return Prompt(sequence.index, sequence.remaining, sequence.arrival_s)
