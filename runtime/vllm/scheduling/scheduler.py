"""vLLM's scheduler, with the plan's batch in every step and the plan's prefill order.

vLLM's own ``schedule`` does all the work. Before it runs, some of its inputs are set:
the step's token budget, the order of running and waiting requests, and, where a waiting
prompt is to pass a partially prefilled one, how much of the budget that one may take. While prompts
go to the prefill lane, it sees only those waiting that the lane has room for. All of it is
restored or recomputed at the next step.
"""

import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from itertools import chain, islice
from typing import Any

from nexus.core.policy import State, rate_in_steps
from nexus.core.prefill.ranking import PrefillRanker
from nexus.core.slo import has_late_budget
from nexus.runtime.vllm.compat import (
    SEATS_BESIDE_HELD_BLOCKS,
    AsyncScheduler,
    FCFSRequestQueue,
    KVConnectorOutput,
    Request,
    RequestStatus,
    SchedulerOutput,
    since,
)
from nexus.runtime.vllm.context import ServeContext
from nexus.runtime.vllm.observed import Decision, ObservedScheduler
from nexus.runtime.vllm.scheduling.multimodal import chunk_of_whole_items
from nexus.runtime.vllm.scheduling.passing import Passing
from nexus.runtime.vllm.scheduling.prefix import PrefixCache
from nexus.runtime.vllm.scheduling.queue import RankedQueue


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
        context = ServeContext.of(self.vllm_config)
        ranker = PrefillRanker.of(plan, context.prefill_order, context.late_share)
        self._prefix_cache = PrefixCache(self.kv_cache_manager, self.block_size)
        self._ranked = context.prefill_order != "fcfs"
        by_priority = self.scheduler_config.policy == "priority"
        self.waiting = self._queue = RankedQueue(
            ranker, self._prefix_cache, by_priority=by_priority
        )
        if self._lane is not None:
            self._lane.admission.queue = self._queue
        self.nexus_clock: Callable[[], float] = time.time  # that of arrivals
        self._passing = Passing(self, self._prefix_cache)

    def schedule(self, *args: Any, **kwargs: Any) -> SchedulerOutput:
        """One step, as vLLM schedules it, within the plan's chunk."""
        if self._lane is not None and (news := self._lane.look()) is not None:
            self._update_from_kv_xfer_finished(news)
        self._queue.have_other_tokens(self._prefix_cache.look_again(self._queue))
        prefills, decodes, kv_tokens = self._of_running()
        state = State(len(decodes), kv_tokens, self._backlog(prefills))
        mode, row = self.nexus_policy.decide(state, self._all_afford_a_late_gap)
        self.nexus_decision = Decision(state, mode, row)
        self._queue.step(self.nexus_clock(), prefills, rate_in_steps(mode, row))
        if self._ranked:
            prefills.sort(key=self._queue.rank)
        decode_tokens = self._decode_tokens(decodes)
        chunk = mode.prompt_tokens(decode_tokens)
        if self._lane is not None:
            self._lane.admission.set_mode(mode)
            if self._lane.admission.open:
                chunk = min(chunk, self._beside_lane.prompt_tokens(decode_tokens))
        chunk = self._schedulable(chunk, prefills, decode_tokens)
        self.max_num_scheduled_tokens = min(self._most_tokens, decode_tokens + chunk)
        if prefills:
            # Decodes first: the budget holds all of them, and the chunk is what is left.
            self.running = decodes + prefills
        with self._arranged(prefills, chunk):
            output = super().schedule(*args, **kwargs)
        self._queue.computed(output.num_scheduled_tokens)
        self._prefix_cache.scheduled(output, self.requests)
        self.note_scheduled(output, len(decodes), decode_tokens)
        return output

    def _decode_tokens(self, decodes: list[Request]) -> int:
        """Tokens that decodes take of a step, drafts and prompts that left the lane included."""
        if self.scheduler_config.disable_chunked_mm_input:  # what they leave may cut an image
            decodes = [request for request in decodes if not _ends_with_the_step_before(request)]
        tokens = len(decodes) + len(self.finished_recving_kv_req_ids)
        if self.num_spec_tokens:
            tokens += sum(len(request.spec_token_ids) for request in decodes)
        return tokens

    def _schedulable(self, chunk: int, prefills: list[Request], decode_tokens: int) -> int:
        """``chunk``, or more where vLLM might schedule no prompt tokens, or cut an item in two."""
        # A prompt of which one token is left is filled up with drafts.
        chunk = max(chunk, 1 + self.num_spec_tokens)
        if self.need_mamba_block_aligned_split and self.block_size <= decode_tokens + chunk:
            chunk = max(chunk, self.block_size)
        if self.scheduler_config.disable_chunked_mm_input:
            cache = self._prefix_cache
            coming = chain(prefills, islice(self.waiting, self._most_tokens))
            prompts = [(r, r.num_tokens - cache.tokens_left(r)) for r in coming]
            chunk = chunk_of_whole_items(chunk, self._most_tokens - decode_tokens, prompts)
        return chunk

    def _all_afford_a_late_gap(self) -> bool:
        # Those that came last have the fewest tokens: mostly the first that is asked cannot.
        return all(
            has_late_budget(
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
            with self._passing.before(prefills, chunk):
                yield
        else:
            yield

    def _of_running(self) -> tuple[list[Request], list[Request], int]:
        """The running requests whose prompt is partially prefilled, those that decode, all's KV tokens."""
        prefills: list[Request] = []
        decodes: list[Request] = []
        kv_tokens = 0
        for request in self.running:
            kv_tokens += request.num_computed_tokens
            (prefills if request.is_prefill_chunk else decodes).append(request)
        return prefills, decodes, kv_tokens

    def _backlog(self, prefills: list[Request]) -> int:
        backlog = sum(map(self._prefix_cache.tokens_left, prefills))
        if self._lane is not None:
            backlog += self._lane.admission.backlog + self._returned_backlog()
        return backlog + self._queue.tokens

    def _returned_backlog(self) -> int:
        """Tokens of prompts that were on the lane and wait for a place in a batch."""
        newer = since(SEATS_BESIDE_HELD_BLOCKS)
        held = self.kv_holding_waiting if newer else self.skipped_waiting
        waits = RequestStatus.WAITING_FOR_REMOTE_KVS
        return sum(self._prefix_cache.tokens_left(r) for r in held if r.status != waits)

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
            tokens = self._prefix_cache.tokens_left(request)
            if chunk <= 0:
                break
            if not admission.suits(request, tokens - 1):
                chunk -= tokens
            elif admission.has_room(self._queue.rank(request), on_lane):
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


def _ends_with_the_step_before(request: Request) -> bool:
    """Whether vLLM, scheduling ahead, passes over it: its last token is under way."""
    known = request.num_computed_tokens + 2 - request.num_output_placeholders
    last = request.num_prompt_tokens + request.max_tokens
    return bool(request.num_output_placeholders > 0 and known >= last)


class PlannedScheduler(_Planned):
    """For engines that schedule a step when the one before it is done (CPU)."""


class PlannedAsyncScheduler(_Planned, AsyncScheduler):
    """For engines that schedule ahead of the running step (GPU)."""
