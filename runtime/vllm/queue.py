"""Waiting requests in the order of their prefill rank."""

import math
from bisect import insort_left, insort_right
from collections.abc import Hashable, Iterable, Iterator, Sequence, Set
from heapq import heapify, heappop, heappush

from vllm.v1.core.sched.request_queue import FCFSRequestQueue
from vllm.v1.request import Request, RequestStatus

from nexus.runtime.line import Line, Prompt

_FEW = 64  # requests that wait no more may be remembered


def remaining_prefill(request: Request) -> int:
    """Prompt tokens (and, after a preemption, output tokens) still to be computed."""
    return int(request.num_tokens - request.num_computed_tokens)


def prompt_of(request: Request) -> Prompt:
    """What the line knows of it."""
    return Prompt(request.request_id, remaining_prefill(request), request.arrival_time)


def _is_to_be_scheduled(request: Request) -> bool:
    """Whether it waits, be it for its grammar, and is not on the prefill lane."""
    status = request.status
    return status < RequestStatus.RUNNING and status != RequestStatus.WAITING_FOR_REMOTE_KVS


class RankedQueue(FCFSRequestQueue):
    """The lowest rank first.

    A preempted request goes before all others, since its client is already reading. The
    queue is sorted on insertion, and whose rank has changed is inserted anew.
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
        late: set[Hashable] = set()
        while self._late_after and self._late_after[0][0] < now_s:
            late.add(heappop(self._late_after)[1])
        self._expected -= late
        self._line.now_s = now_s
        self._insert_anew(late)

    def arrange(self, half_done: Sequence[Request], tokens_per_s: float) -> None:
        """Choose who goes first, of those that wait and of those whose prompt is ``half_done``.

        ``tokens_per_s`` is the rate at which prompts are computed now, 0 if not known.
        """
        self._insert_anew(self._line.arrange(self._contenders(half_done), tokens_per_s))

    def _contenders(self, half_done: Sequence[Request]) -> Iterator[Prompt]:
        for _, _, request in self._late_after:
            if _is_to_be_scheduled(request):
                yield prompt_of(request)
        for request in half_done:
            if request.num_preemptions == 0:
                yield prompt_of(request)

    def rank(self, request: Request) -> float:
        """Lowest first."""
        if request.num_preemptions > 0:
            return -math.inf
        return self._line.rank(prompt_of(request))

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
        after_s = self._line.late_after(prompt_of(request))
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
