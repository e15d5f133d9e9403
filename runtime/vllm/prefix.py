"""What the prefix cache holds of the requests that wait, and so what is left to compute of them.

vLLM looks a request up when it admits it. Ranks, backlog and room need to know before, and the
answer changes while a request waits: others compute its prefix, or its blocks are evicted. A
look-up takes no reference and evicts nothing.
"""

from collections.abc import Iterable
from itertools import islice
from typing import Any
from weakref import WeakKeyDictionary

from vllm.v1.request import Request

from nexus.runtime.line import Prompt

BLOCKS_A_STEP = 128
"""So many blocks are looked up again at each step, or those of one request."""


class PrefixCache:
    """The hits of requests that are not started, as last looked up."""

    def __init__(self, manager: Any) -> None:
        """``manager`` is vLLM's ``KVCacheManager``."""
        self._manager = manager
        self._block_size: int = manager.block_pool.hash_block_size
        self._hits: WeakKeyDictionary[Request, int] = WeakKeyDictionary()
        self._next = 0  # the place in the queue from which on to look again

    def tokens_left(self, request: Request) -> int:
        """Prompt tokens (and, after a preemption, output tokens) still to be computed."""
        left = int(request.num_tokens - request.num_computed_tokens)
        if request.num_computed_tokens or not self._manager.enable_caching:
            return left
        hit = self._hits.get(request)
        if hit is None:
            hit = self._hits[request] = self.look_up(request)[1]
        return left - hit

    def prompt_of(self, request: Request) -> Prompt:
        """What the line knows of it."""
        return Prompt(request.request_id, self.tokens_left(request), request.arrival_time)

    def look_up(self, request: Request) -> tuple[Any, int]:
        """The cached blocks of a request, by KV cache group, and the tokens that they hold."""
        manager = self._manager
        if not manager.prefix_cache_lookup_enabled(request):
            return manager.empty_kv_cache_blocks.blocks, 0
        # One token is computed at least, for its logits.
        found = manager.coordinator.find_longest_cache_hit(
            request.block_hashes, request.num_tokens - 1
        )
        return found[0], int(found[1])

    def look_again(self, waiting: Iterable[Request]) -> set[str]:
        """Look up some of ``waiting``, at each step others; the ids of those with other hits."""
        changed: set[str] = set()
        if not self._manager.enable_caching:
            return changed
        blocks = BLOCKS_A_STEP
        for place, request in enumerate(islice(waiting, self._next, None), self._next):
            if request.num_computed_tokens == 0:
                hit = self.look_up(request)[1]
                if hit != self._hits.get(request):
                    self._hits[request] = hit
                    changed.add(request.request_id)
                blocks -= 1 + hit // self._block_size
            if blocks <= 0:
                self._next = place + 1
                return changed
        self._next = 0
        return changed
