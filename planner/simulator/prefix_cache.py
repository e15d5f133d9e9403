"""vLLM's prefix cache in virtual time: blocks of prompts stay until their room is needed."""

from itertools import takewhile

from nexus.planner.simulator.sequence import Prefix, Sequence
from nexus.planner.workload.prefixes import Prefixes


class PrefixCache:
    """Blocks of prompts: those in use, and those that are kept, the longest unused first.

    ``version`` grows whenever blocks go: what was found before may be no more.
    """

    def __init__(self, prefixes: Prefixes, block_size: int) -> None:
        """Empty; a hit ends where a block of the engine does, of ``block_size`` tokens."""
        self._size_of, self._tokens = prefixes.size_of, prefixes.tokens
        self._block_size = block_size
        self._users: dict[int, int] = {}  # of each block that is here
        self._kept: dict[int, None] = {}
        self._kept_tokens = 0
        self._wanted: dict[int, list[Sequence]] = {}
        self.version = 0

    def hit(self, sequence: Sequence) -> int:
        """Tokens of a sequence that waits which are here; its last one is computed anyway."""
        return self._found(sequence)[1]

    def shared(self, sequence: Sequence) -> int:
        """Those of them that are in use, and take no more room."""
        return sum(self._size_of(key) for key in self._found(sequence)[0] if self._users[key])

    def want(self, sequence: Sequence) -> None:
        """Tell by ``add`` when the first block is there that the sequence does not find."""
        missing = next((k for k in _prefix_of(sequence).keys if k not in self._users), None)
        if missing is not None:
            self._wanted.setdefault(missing, []).append(sequence)

    def take(self, sequence: Sequence) -> None:
        """It runs: the blocks that it finds are in use."""
        prefix = _prefix_of(sequence)
        prefix.held = self._found(sequence)[0]
        prefix.num_done = len(prefix.held)
        for key in prefix.held:
            if not self._users[key]:
                del self._kept[key]
                self._kept_tokens -= self._size_of(key)
            self._users[key] += 1

    def add(self, sequence: Sequence) -> list[Sequence]:
        """Blocks that the sequence has computed are for all; who waits for one of them."""
        prefix, told = _prefix_of(sequence), list[Sequence]()
        while prefix.num_done < len(prefix.keys):
            key = prefix.keys[prefix.num_done]
            if prefix.num_done * self._tokens + self._size_of(key) > sequence.computed:
                break
            prefix.num_done += 1
            if key not in self._users:  # else another computed it at the same time
                self._users[key] = 1
                prefix.held.append(key)
                told += self._wanted.pop(key, ())
        return told

    def release(self, sequence: Sequence) -> int:
        """It runs no more, and its blocks are kept, the last to go first; tokens still in use."""
        prefix, in_use = _prefix_of(sequence), 0
        for key in reversed(prefix.held):
            self._users[key] -= 1
            if self._users[key]:
                in_use += self._size_of(key)
            else:
                self._kept[key] = None
                self._kept_tokens += self._size_of(key)
        prefix.held = []
        return in_use

    def keep(self, tokens: float) -> None:
        """Of the blocks that nobody uses only so many tokens."""
        while self._kept and self._kept_tokens > tokens:
            key = next(iter(self._kept))
            del self._kept[key], self._users[key]
            self._kept_tokens -= self._size_of(key)
            self.version += 1

    def _found(self, sequence: Sequence) -> tuple[list[int], int]:
        """The blocks that are here from the prompt's beginning on, and the hit that they make."""
        found = list(takewhile(self._users.__contains__, _prefix_of(sequence).keys))
        if not found:
            return found, 0
        tokens = (len(found) - 1) * self._tokens + self._size_of(
            found[-1]
        )  # only a last one is cut
        most = sequence.prompt + sequence.emitted - 1
        hit = min(tokens, most) // self._block_size * self._block_size
        return (found, hit) if hit else ([], 0)


def _prefix_of(sequence: Sequence) -> Prefix:
    assert sequence.prefix is not None
    return sequence.prefix
