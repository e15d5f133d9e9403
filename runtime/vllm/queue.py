"""Waiting requests in the order of their prefill rank."""

import math
from bisect import insort_left, insort_right
from collections.abc import Iterable

from vllm.v1.core.sched.request_queue import FCFSRequestQueue
from vllm.v1.request import Request

from nexus.runtime.policy import prefill_rank


def remaining_prefill(request: Request) -> int:
    """Prompt tokens (and, after a preemption, output tokens) still to be computed."""
    return int(request.num_tokens - request.num_computed_tokens)


class ShortestPrefillFirstQueue(FCFSRequestQueue):
    """Shortest remaining prefill first, aged by waiting time.

    A preempted request goes before all others, since its client is already reading.
    Ranks do not change while a request waits, so the queue is sorted on insertion.
    """

    def __init__(self, aging_tokens_per_s: float) -> None:
        """``aging_tokens_per_s``: how many tokens one second of waiting is worth."""
        super().__init__()
        self.aging_tokens_per_s = aging_tokens_per_s

    def rank(self, request: Request) -> float:
        """Lowest first."""
        if request.num_preemptions > 0:
            return -math.inf
        return prefill_rank(
            remaining_prefill(request), request.arrival_time, "spf", self.aging_tokens_per_s
        )

    def add_request(self, request: Request) -> None:
        """Insert at the request's rank, behind its equals."""
        insort_right(self, request, key=self.rank)

    def prepend_request(self, request: Request) -> None:
        """Insert before the request's equals: what is put back keeps its place in line."""
        insort_left(self, request, key=self.rank)

    def prepend_requests(self, requests: Iterable[Request]) -> None:
        """As ``prepend_request``, for each."""
        for request in requests:
            self.prepend_request(request)
