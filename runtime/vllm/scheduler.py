"""vLLM's scheduler, with the plan's batch in every step and the plan's prefill order.

vLLM's own ``schedule`` does all the work. Before it runs, some of its inputs are set:
the step's token budget, the order of running and waiting requests, and, where a waiting
prompt is to pass a half-done one, how much of the budget that one may take. While prompts
go to the prefill lane, it sees only those waiting that the lane has room for. All of it is
restored or recomputed at the next step.
"""

import time
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from vllm.v1.core.sched.async_scheduler import AsyncScheduler
from vllm.v1.core.sched.output import SchedulerOutput
from vllm.v1.core.sched.request_queue import FCFSRequestQueue
from vllm.v1.outputs import KVConnectorOutput
from vllm.v1.request import Request, RequestStatus

from nexus.runtime.line import Line
from nexus.runtime.pace import affords
from nexus.runtime.policy import State, rate_in_steps
from nexus.runtime.vllm.context import ServeContext
from nexus.runtime.vllm.observed import Decision, ObservedScheduler
from nexus.runtime.vllm.queue import RankedQueue, remaining_prefill


class _Planned(ObservedScheduler):
    """What both schedulers below share."""

    max_num_scheduled_tokens: int
    running: list[Request]
    waiting: Any

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        plan = self.nexus_plan
        self._beside_lane = plan.beside_lane
        self._most_tokens = self.max_num_scheduled_tokens
        self._most_backlog = self.nexus_policy.table.axes.prefill_backlog[-1]
        context = ServeContext.of(self.vllm_config)
        line = Line.of(plan, context.prefill_order, context.aging_tokens_per_s)
        self._ranked = context.prefill_order != "fcfs"
        if self._ranked:
            self.waiting = RankedQueue(line)
        if self._lane is not None:
            self._lane.admission.line = line

    def schedule(self, *args: Any, **kwargs: Any) -> SchedulerOutput:
        """One step, as vLLM schedules it, within the plan's chunk."""
        if self._lane is not None and (news := self._lane.look()) is not None:
            self._update_from_kv_xfer_finished(news)
        prefills, kv_tokens = self._prefills_and_kv_tokens()
        decode_batch = len(self.running) - len(prefills)
        state = State(decode_batch, kv_tokens, self._backlog(prefills))
        mode, row = self.nexus_policy.decide(state, self._all_afford_a_late_gap)
        self.nexus_decision = Decision(state, mode, row)
        if self._ranked:
            self.waiting.advance(time.time())  # the clock of arrivals
            self.waiting.arrange(prefills, rate_in_steps(mode, row))
            prefills.sort(key=self.waiting.rank)
        decodes = decode_batch + len(self.finished_recving_kv_req_ids)
        chunk = mode.prompt_tokens(decodes)
        if self._lane is not None:
            self._lane.admission.set_mode(mode)
            if self._lane.admission.open:
                chunk = min(chunk, self._beside_lane.prompt_tokens(decodes))
        self.max_num_scheduled_tokens = min(self._most_tokens, decodes + chunk)
        if prefills:
            # Decodes first: the budget holds all of them, and the chunk is what is left.
            self.running = [r for r in self.running if not r.is_prefill_chunk] + prefills
        with self._arranged(prefills, chunk):
            output = super().schedule(*args, **kwargs)
        self.note_scheduled(output, decode_batch)
        return output

    def _all_afford_a_late_gap(self) -> bool:
        # Those that came last have the fewest tokens: mostly the first that is asked cannot.
        return all(
            affords(
                request.num_output_tokens + request.num_output_placeholders,
                self._late_gaps.get(request.request_id, 0),
            )
            for request in reversed(self.running)
            if not request.is_prefill_chunk
        )

    @contextmanager
    def _arranged(self, prefills: list[Request], chunk: int) -> Iterator[None]:
        """The waiting queue as the step is to see it."""
        if self._lane is not None and self._lane.admission.open:
            with self._only_what_the_lane_takes(chunk):
                yield
        elif prefills and self._ranked and self.waiting:
            with self._those_before_pass(prefills, chunk):
                yield
        else:
            yield

    def _prefills_and_kv_tokens(self) -> tuple[list[Request], int]:
        """The running requests whose prompt is half done; all running's KV tokens."""
        prefills: list[Request] = []
        kv_tokens = 0
        for request in self.running:
            kv_tokens += request.num_computed_tokens
            if request.is_prefill_chunk:
                prefills.append(request)
        return prefills, kv_tokens

    def _backlog(self, prefills: list[Request]) -> int:
        backlog = sum(map(remaining_prefill, prefills))
        if self._lane is not None:
            backlog += self._lane.admission.backlog + self._returned_backlog()
        for request in self.waiting:
            if backlog >= self._most_backlog:  # the table tells no larger ones apart
                break
            backlog += remaining_prefill(request)
        return backlog

    def _returned_backlog(self) -> int:
        """Tokens of prompts that were on the lane and wait for a place in a batch."""
        held = getattr(self, "kv_holding_waiting", None)
        if held is None:  # older releases
            held = self.skipped_waiting
        waits = RequestStatus.WAITING_FOR_REMOTE_KVS
        return sum(remaining_prefill(r) for r in held if r.status != waits)

    @contextmanager
    def _only_what_the_lane_takes(self, chunk: int) -> Iterator[None]:
        """Hide waiting prompts from the first on that finds the lane full.

        vLLM gives every prompt that it sees KV blocks for all of its tokens, and looks each
        one up in the prefix cache.
        """
        shown = FCFSRequestQueue()
        hidden = self.waiting
        for _ in range(self._num_taken(chunk)):
            shown.append(hidden.pop_request())
        self.waiting = shown
        try:
            yield
        finally:
            for request in reversed(self.waiting):
                hidden.prepend_request(request)
            self.waiting = hidden

    def _num_taken(self, chunk: int) -> int:
        """How many of the first waiting prompts this step can do something with."""
        assert self._lane is not None
        admission, on_lane, taken = self._lane.admission, 0, 0
        for request in self.waiting:
            tokens = remaining_prefill(request)
            if chunk <= 0:
                break
            if not admission.suits(request, tokens - 1):
                chunk -= tokens
            elif admission.has_room(admission.rank(request), on_lane):
                on_lane += tokens
            else:
                break
            taken += 1
        return taken

    def _update_from_kv_xfer_finished(self, kv_connector_output: KVConnectorOutput) -> None:
        """As vLLM's, and prompts that the lane gave up go on from where it left them."""
        super()._update_from_kv_xfer_finished(kv_connector_output)
        if self._lane is None:
            return
        for req_id in self._lane.returned & self.finished_recving_kv_req_ids:
            self.failed_recving_kv_req_ids.add(req_id)
        self._lane.returned.clear()
        # vLLM ends these with an error; their blocks stay theirs until the pass is over.
        self.grammar_compile_error_reqs |= self._lane.lost
        self._lane.lost.clear()

    @contextmanager
    def _those_before_pass(self, prefills: list[Request], chunk: int) -> Iterator[None]:
        """Let waiting prompts that rank before all half-done ones have tokens first.

        vLLM serves running requests before waiting ones. A cap on every prompt's tokens
        leaves the others their share; where no cap can, as it would cut them too,
        the half-done prompts sit this step out. Their KV blocks and slots stay theirs, so
        that they do only for a prompt that there is room for: two that hold half of what
        they need would wait for each other.
        """
        if not self._has_room_for(next(iter(self.waiting))):
            yield
            return
        rank = self.waiting.rank(prefills[0])
        wanted: list[int] = []
        for request in self.waiting:
            if self.waiting.rank(request) >= rank or sum(wanted) >= chunk:
                break
            wanted.append(remaining_prefill(request))
        if not wanted:
            yield
            return
        left = chunk - sum(wanted)
        if left >= max(wanted):
            with self._each_prompt_capped(left):
                yield
        else:
            with self._sitting_out(prefills):
                yield

    def _has_room_for(self, request: Request) -> bool:
        """Whether there are free KV blocks for all of a waiting prompt's tokens."""
        free = self.kv_cache_manager.block_pool.get_num_free_blocks()
        return remaining_prefill(request) <= free * self.block_size

    @contextmanager
    def _each_prompt_capped(self, tokens: int) -> Iterator[None]:
        config = self.scheduler_config
        before = config.long_prefill_token_threshold
        config.long_prefill_token_threshold = min(tokens, before or tokens)
        try:
            yield
        finally:
            config.long_prefill_token_threshold = before

    @contextmanager
    def _sitting_out(self, prefills: list[Request]) -> Iterator[None]:
        # The worker holds a slot for each of them all the while.
        limits = [n for n in ("max_num_running_reqs", "max_num_active_reqs") if hasattr(self, n)]
        absent = set(prefills)
        self.running = [request for request in self.running if request not in absent]
        for name in limits:
            setattr(self, name, getattr(self, name) - len(prefills))
        try:
            yield
        finally:
            for name in limits:
                setattr(self, name, getattr(self, name) + len(prefills))
            self.running.extend(prefills)


class PlannedScheduler(_Planned):
    """For engines that schedule a step when the one before it is done (CPU)."""


class PlannedAsyncScheduler(_Planned, AsyncScheduler):
    """For engines that schedule ahead of the running step (GPU)."""
