"""Waiting requests in the order of their prefill rank."""

import math
from collections.abc import Hashable, Iterable, Iterator, Mapping, Sequence, Set

from nexus.core.prefill.prompts import BATCH, INTERACTIVE, Prompt
from nexus.core.prefill.ranking import PrefillRanker, Rank
from nexus.runtime.vllm.compat import Request, RequestQueue
from nexus.runtime.vllm.front_end.requests import own_ttft_s_of
from nexus.runtime.vllm.scheduling.prefix import PrefixCache

_FIRST_OF_ALL: Rank = (-math.inf,)


class RankedQueue(RequestQueue):
    """The lowest rank first: vLLM's interface to a ``PrefillRanker``.

    A preempted request goes before all others, as its client is reading.
    """

    def __init__(
        self, ranker: PrefillRanker, cache: PrefixCache, *, by_priority: bool = False
    ) -> None:
        """``ranker`` ranks prompts; ``cache`` knows what is left of each.

        ``by_priority``: where the order is fcfs, vLLM's priorities come before it, all of them.
        """
        self._by_priority = by_priority
        self.ranker = ranker
        self._cache = cache
        self._requests: dict[Hashable, Request] = {}

    @property
    def tokens(self) -> int:
        """Prompt tokens of all that wait."""
        return self.ranker.tokens

    def rank(self, request: Request) -> Rank:
        """Where a request stands in the present step, be it waiting or partially prefilled."""
        if request.num_preemptions > 0:
            return _FIRST_OF_ALL
        return self.ranker.rank(request.request_id)

    def step(self, now_s: float, partial: Sequence[Request], tokens_per_s: float) -> None:
        """A step begins: choose who goes first, of those that wait and of those ``partial``.

        ``partial`` are partially prefilled; ``tokens_per_s`` is the rate at which prompts are
        computed now, 0 if not known.
        """
        self.ranker.step(now_s, map(self._prompt_of, partial), tokens_per_s)

    def _prompt_of(self, request: Request) -> Prompt:
        """What the ranker knows of it."""
        if self.ranker.order == "fcfs":
            class_number = request.priority if self._by_priority else INTERACTIVE
        else:
            class_number = BATCH if request.priority > 0 else INTERACTIVE
        tokens = self._cache.tokens_left(request)
        own_s = own_ttft_s_of(request)
        return Prompt(request.request_id, tokens, request.arrival_time, own_s, class_number)

    def computed(self, num_scheduled_tokens: Mapping[str, int]) -> None:
        """A step has so many tokens of each request; those of decodes do not count."""
        self.ranker.computed(num_scheduled_tokens)

    def handed_over(self, request: Request, tokens: int) -> Rank:
        """The lane is to compute so many of its tokens; its rank there."""
        return self.ranker.handed_over(request.request_id, tokens)

    def have_other_tokens(self, req_ids: Set[str]) -> None:
        """Of these, other numbers of tokens are left than when they came."""
        for req_id in req_ids:
            request = self._requests.get(req_id)
            if request is not None:
                self.add_request(request)

    def add_request(self, request: Request) -> None:
        """Insert at the request's rank, behind its equals."""
        self._requests[request.request_id] = request
        self.ranker.add(self._prompt_of(request), front=request.num_preemptions > 0)

    def pop_request(self) -> Request:
        """Take the first."""
        if not self._requests:
            raise IndexError("pop from an empty queue")
        return self._requests.pop(self.ranker.pop())

    def peek_request(self) -> Request:
        """The first."""
        first = self.ranker.first
        if first is None:
            raise IndexError("peek from an empty queue")
        return self._requests[first]

    def prepend_request(self, request: Request) -> None:
        """Insert at its rank; what was just taken has the place among its equals that it had."""
        self._requests[request.request_id] = request
        self.ranker.put_back(self._prompt_of(request), front=request.num_preemptions > 0)

    def prepend_requests(self, requests: Iterable[Request]) -> None:
        """As ``prepend_request``, for each."""
        for request in requests:
            self.prepend_request(request)

    def remove_request(self, request: Request) -> None:
        """It waits no more."""
        del self._requests[request.request_id]
        self.ranker.remove(request.request_id)

    def remove_requests(self, requests: Iterable[Request]) -> None:
        """Those of ``requests`` that wait here do no more."""
        for request in requests:
            if request.request_id in self._requests:
                self.remove_request(request)

    def __bool__(self) -> bool:
        return bool(self._requests)

    def __len__(self) -> int:
        return len(self._requests)

    def __iter__(self) -> Iterator[Request]:
        """In their order; nobody may come or go meanwhile."""
        return (self._requests[key] for key in self.ranker)
