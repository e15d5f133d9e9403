"""Waiting requests in the order of their prefill rank."""

import math
from bisect import insort_left, insort_right
from collections.abc import Hashable, Iterable, Iterator, Sequence, Set
from heapq import heapify, heappop, heappush
from itertools import count

from nexus.core.ranking import PrefillRanker, Prompt
from nexus.runtime.vllm.compat import FCFSRequestQueue, Request, RequestStatus
from nexus.runtime.vllm.scheduling.prefix import PrefixCache

_FEW = 64  # requests that wait no more may be remembered


class RequestRanks:
    """The prefill ranks of vLLM's requests, by the tokens that are left to compute."""

    def __init__(self, ranker: PrefillRanker, cache: PrefixCache) -> None:
        """``ranker`` ranks prompts; ``cache`` knows what is left of each."""
        self.ranker = ranker
        self.cache = cache

    def __call__(self, request: Request) -> float:
        """Lowest first; a preempted request goes before all others, as its client is reading."""
        if request.num_preemptions > 0:
            return -math.inf
        return self.ranker.rank(self.cache.prompt_of(request))


def _is_to_be_scheduled(request: Request) -> bool:
    """Whether it waits, be it for its grammar, and is not on the prefill lane."""
    status = request.status
    return status < RequestStatus.RUNNING and status != RequestStatus.WAITING_FOR_REMOTE_KVS


class RankedQueue(FCFSRequestQueue):
    """The lowest rank first.

    The queue is sorted on insertion, and whose rank has changed is inserted anew.
    """

    def __init__(self, ranks: RequestRanks) -> None:
        """``ranks`` says where a request stands."""
        super().__init__()
        self.rank = ranks
        self._ranker = ranks.ranker
        self._prompt_of = ranks.cache.prompt_of
        self._numbers = count()
        self._late_after: list[tuple[float, int, Request]] = []
        self._expected: dict[str, float] = {}  # of these entries, those that are still right

    def advance(self, now_s: float) -> None:
        """Time has passed: requests that are too late by now go behind those that are not."""
        now_s = max(now_s, self._ranker.now_s)  # clocks are set back at times
        if len(self._late_after) > 2 * len(self) + _FEW:
            self._forget_the_started()
        late: set[Hashable] = set()
        while self._late_after and self._late_after[0][0] < now_s:
            entry = heappop(self._late_after)
            if self._is_right(entry):
                req_id = entry[2].request_id
                del self._expected[req_id]
                late.add(req_id)
        self._ranker.now_s = now_s
        self._insert_anew(late)

    def reselect(self, partial: Sequence[Request], tokens_per_s: float) -> None:
        """Choose who goes first, of those that wait and of those whose prompt is ``partial``.

        ``tokens_per_s`` is the rate at which prompts are computed now, 0 if not known.
        """
        self._insert_anew(self._ranker.reselect(self._contenders(partial), tokens_per_s))

    def _contenders(self, partial: Sequence[Request]) -> Iterator[Prompt]:
        for entry in self._late_after:
            if self._is_right(entry) and _is_to_be_scheduled(entry[2]):
                yield self._prompt_of(entry[2])
        for request in partial:
            if request.num_preemptions == 0:
                yield self._prompt_of(request)

    def have_other_tokens(self, req_ids: Set[str]) -> None:
        """Of these, other numbers of tokens are left than when they were inserted."""
        if req_ids:
            for request in self:
                if request.request_id in req_ids:
                    self._expect(request)
            self._insert_anew(req_ids)

    def add_request(self, request: Request) -> None:
        """Insert at the request's rank, behind its equals."""
        self._expect(request)
        insort_right(self, request, key=self.rank)

    def prepend_request(self, request: Request) -> None:
        """Insert before the request's equals: what is preempted keeps its place in the queue."""
        self._expect(request)
        insort_left(self, request, key=self.rank)

    def prepend_requests(self, requests: Iterable[Request]) -> None:
        """As ``prepend_request``, for each."""
        for request in requests:
            self.prepend_request(request)

    def _insert_anew(self, req_ids: Set[Hashable]) -> None:
        """Those of ``req_ids`` that wait here, at their present rank."""
        if not req_ids:
            return
        ordered: list[Request] = []
        moving: list[Request] = []
        for request in self:
            (moving if request.request_id in req_ids else ordered).append(request)
        for request in moving:
            insort_right(ordered, request, key=self.rank)
        if moving:
            self.clear()
            self.extend(ordered)

    def _expect(self, request: Request) -> None:
        """Remember when the request will be too late, unless it is, or goes first anyway."""
        after_s = self._ranker.late_after(self._prompt_of(request))
        req_id = request.request_id
        if not self._ranker.now_s <= after_s < math.inf or request.num_preemptions > 0:
            self._expected.pop(req_id, None)
        elif self._expected.get(req_id) != after_s:
            self._expected[req_id] = after_s
            heappush(self._late_after, (after_s, next(self._numbers), request))

    def _is_right(self, entry: tuple[float, int, Request]) -> bool:
        return self._expected.get(entry[2].request_id) == entry[0]

    def _forget_the_started(self) -> None:
        waiting = {request.request_id for request in self}
        self._expected = {key: at_s for key, at_s in self._expected.items() if key in waiting}
        self._late_after = [entry for entry in self._late_after if self._is_right(entry)]
        heapify(self._late_after)
