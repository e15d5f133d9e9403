"""What prompts begin with: blocks of tokens that several of them may share."""

from dataclasses import dataclass

import numpy as np

from nexus.core.arrays import Ints


@dataclass(frozen=True)
class Prefixes:
    """Blocks of ``tokens`` each at the beginning of prompts.

    ``ids`` (blocks,) are those of all requests one after the other, at least 0; ``counts`` (n,)
    is how many each has. Equal ids are equal tokens from the prompt's beginning on. What a
    prompt has beyond its blocks is its own.
    """

    tokens: int
    ids: Ints
    counts: Ints

    @classmethod
    def of(cls, tokens: int, ids: Ints, counts: Ints) -> "Prefixes":
        """From ids that are equal for equal tokens, whatever is before them."""
        starts, chained = np.cumsum(counts) - counts, np.zeros_like(ids)
        before, used = np.zeros_like(counts), 0
        for place in range(int(counts.max(initial=0))):
            has = counts > place
            at = starts[has]
            at += place  # in place, as there may be millions
            pairs = before[has]
            pairs *= len(at)
            pairs += np.unique(ids[at], return_inverse=True)[1]
            kinds, which = np.unique(pairs, return_inverse=True)
            which += used
            chained[at] = before[has] = which
            used += len(kinds)
        return cls(tokens, chained, counts)

    def take(self, index: slice | Ints) -> "Prefixes":
        """Only the requests at ``index``, in that order."""
        counts = self.counts[index]
        starts = (np.cumsum(self.counts) - self.counts)[index]
        places = np.repeat(starts - np.cumsum(counts) + counts, counts) + np.arange(counts.sum())
        return Prefixes(self.tokens, self.ids[places], counts)

    def keys(self, inputs: Ints) -> list[list[int]]:
        """Each request's blocks, with prompts of ``inputs`` tokens, as numbers with their size.

        A block that the prompt's end cuts is the same as others of that size alone, as in
        vLLM's ``timed_trace``.
        """
        ends = np.cumsum(self.counts)
        keys = (self.ids * (self.tokens + 1) + self._sizes(inputs)).tolist()
        used = np.minimum(self.counts, -(-inputs // self.tokens))
        starts = (ends - self.counts).tolist()
        return [keys[start : start + n] for start, n in zip(starts, used.tolist(), strict=True)]

    def size_of(self, key: int) -> int:
        """Tokens of a block as ``keys`` numbers it."""
        return key % (self.tokens + 1)

    def num_repeated(self, inputs: Ints) -> int:
        """Tokens, of prompts of ``inputs``, in blocks that an earlier prompt had too."""
        sizes = self._sizes(inputs)
        first = np.zeros(self.ids.max(initial=0) + 1, dtype=np.int64)
        first[self.ids[::-1]] = sizes[::-1]  # the last that is set stays: an id's first block
        return int(sizes.sum() - first.sum())

    def _sizes(self, inputs: Ints) -> Ints:
        """Tokens of each block; 0 beyond the prompt's end."""
        starts = np.cumsum(self.counts) - self.counts
        places = np.arange(len(self.ids)) - np.repeat(starts, self.counts)
        left = np.repeat(inputs, self.counts) - places * self.tokens
        return np.clip(left, 0, self.tokens)
