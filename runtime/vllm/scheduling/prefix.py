"""What the prefix cache holds of the requests that wait, and so what is left to compute of them.

vLLM looks a request up when it admits it. Ranks, backlog and room need to know before, and the
answer changes while a request waits: others compute its prefix, or its blocks are evicted. So a
request is looked up when it comes, when its next block has been computed, and while it is among
the first of the queue. A look-up takes no reference and evicts nothing.
"""

from collections.abc import Iterable, Mapping
from itertools import islice
from typing import Any
from weakref import WeakKeyDictionary, WeakSet

from nexus.runtime.vllm.compat import Request, SchedulerOutput

FIRST = 4
"""So many of the queue are looked up at every step: their blocks may have been evicted."""

_FEW = 64  # requests that wait no more may be remembered


class PrefixCache:
    """The hits of requests that are not started, as last looked up."""

    def __init__(self, manager: Any, block_size: int) -> None:
        """``manager`` is vLLM's ``KVCacheManager``, whose hits grow by ``block_size`` tokens."""
        self._manager = manager
        self._enabled: bool = manager.enable_caching
        self._hash_size: int = manager.block_pool.hash_block_size
        self._block_size = block_size
        self._hits: WeakKeyDictionary[Request, int] = WeakKeyDictionary()
        self._missing: dict[Any, WeakSet[Request]] = {}  # by the hash of the next block
        self._grown: WeakSet[Request] = WeakSet()

    def tokens_left(self, request: Request) -> int:
        """Prompt tokens (and, after a preemption, output tokens) still to be computed."""
        left = int(request.num_tokens - request.num_computed_tokens)
        if request.num_computed_tokens or not self._enabled:
            return left
        hit = self._hits.get(request)
        return left - (self._find(request) if hit is None else hit)

    def look_up(self, request: Request) -> tuple[Any, int]:
        """The cached blocks of a request, by KV cache group, and the tokens that they hold."""
        manager = self._manager
        if not self._enabled or request.skip_reading_prefix_cache:
            return manager.empty_kv_cache_blocks.blocks, 0
        # One token is computed at least, for its logits.
        found = manager.coordinator.find_longest_cache_hit(
            request.block_hashes, request.num_tokens - 1
        )
        return found[0], int(found[1])

    def look_again(self, waiting: Iterable[Request]) -> set[str]:
        """Look up who may have another hit; the ids of those that do."""
        if not self._enabled:
            return set()
        looked_at = [*self._grown, *islice(waiting, FIRST)]
        self._grown.clear()
        return {
            request.request_id
            for request in looked_at
            if request.num_computed_tokens == 0 and self._hits.get(request) != self._find(request)
        }

    def scheduled(self, output: SchedulerOutput, requests: Mapping[str, Request]) -> None:
        """A step's tokens are in the cache from now on, for all that is scheduled after it."""
        if not self._missing:
            return
        new = {each.req_id for each in output.scheduled_new_reqs}
        for req_id, tokens in output.num_scheduled_tokens.items():
            request = requests[req_id]
            # The lane may have computed what comes before a new request's first step.
            computed = 0 if req_id in new else request.num_computed_tokens - tokens
            start = computed // self._hash_size
            end = request.num_computed_tokens // self._hash_size
            for block_hash in islice(request.block_hashes, start, end) if start < end else ():
                self._grown |= self._missing.pop(block_hash, ())
        if len(self._missing) > 2 * len(requests) + _FEW:
            self._missing = {key: those for key, those in self._missing.items() if those}

    def _find(self, request: Request) -> int:
        hit = self._hits[request] = self.look_up(request)[1]
        following = (hit + self._block_size) // self._hash_size
        if following <= len(request.block_hashes):
            block_hash = request.block_hashes[following - 1]
            self._missing.setdefault(block_hash, WeakSet()).add(request)
        return hit
