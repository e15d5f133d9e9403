"""Waiting requests in the order of their prefill rank."""

import math
from bisect import insort_left, insort_right
from collections.abc import Iterable
from heapq import heapify, heappop, heappush

from vllm.v1.core.sched.request_queue import FCFSRequestQueue
from vllm.v1.request import Request

from nexus.runtime.policy import Line

_FEW = 64  # requests that wait no more may be remembered


def remaining_prefill(request: Request) -> int:
    """Prompt tokens (and, after a preemption, output tokens) still to be computed."""
    return int(request.num_tokens - request.num_computed_tokens)


class RankedQueue(FCFSRequestQueue):
    """The lowest rank first: the shortest prefill of those that can be on time.

    A preempted request goes before all others, since its client is already reading.
    A rank changes once while a request waits, when it has waited too long: the queue is
    sorted on insertion, and those are inserted anew.
    """

    def __init__(self, line: Line) -> None:
        """``line`` ranks the requests."""
        super().__init__()
        self._line = line
        self._late_after: list[tuple[float, str, Request]] = []
        self._expected: set[str] = set()

    def advance(self, now_s: float) -> None:
        """Time has passed: requests that are too late by now go behind those that are not."""
        now_s = max(now_s, self._line.now_s)  # clocks are set back at times
        if len(self._late_after) > 2 * len(self) + _FEW:
            self._forget_the_started()
        late = []
        while self._late_after and self._late_after[0][0] < now_s:
            late.append(heappop(self._late_after)[2])
        self._expected.difference_update(request.request_id for request in late)
        waiting = [request for request in late if request in self]
        for request in waiting:
            self.remove_request(request)
        self._line.now_s = now_s
        for request in waiting:
            insort_right(self, request, key=self.rank)

    def rank(self, request: Request) -> float:
        """Lowest first."""
        if request.num_preemptions > 0:
            return -math.inf
        return self._line.rank(remaining_prefill(request), request.arrival_time)

    def add_request(self, request: Request) -> None:
        """Insert at the request's rank, behind its equals."""
        self._expect(request)
        insort_right(self, request, key=self.rank)

    def prepend_request(self, request: Request) -> None:
        """Insert before the request's equals: what is put back keeps its place in line."""
        self._expect(request)
        insort_left(self, request, key=self.rank)

    def prepend_requests(self, requests: Iterable[Request]) -> None:
        """As ``prepend_request``, for each."""
        for request in requests:
            self.prepend_request(request)

    def _expect(self, request: Request) -> None:
        """Remember when the request will be too late, unless it is, or goes first anyway."""
        after_s = self._line.late_after(remaining_prefill(request), request.arrival_time)
        req_id = request.request_id
        in_time = self._line.now_s <= after_s < math.inf and request.num_preemptions == 0
        if in_time and req_id not in self._expected:
            self._expected.add(req_id)
            heappush(self._late_after, (after_s, req_id, request))

    def _forget_the_started(self) -> None:
        waiting = {request.request_id for request in self}
        self._late_after = [each for each in self._late_after if each[1] in waiting]
        self._expected = {req_id for _, req_id, _ in self._late_after}
        heapify(self._late_after)
