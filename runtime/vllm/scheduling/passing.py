"""Waiting prompts that pass partially prefilled ones of lower rank.

vLLM serves running requests before waiting ones. A cap on every prompt's tokens leaves the
waiting ones their share; where no cap can, as it would cut them too, the partially prefilled
prompts sit a step out. They keep their seats and KV blocks, so they do only for a prompt that
vLLM can admit in this very step: else nothing would be computed, or two that hold half of what
they need would wait for each other.
"""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any

from nexus.runtime.vllm.compat import SEATS_BESIDE_HELD_BLOCKS, Request, RequestStatus, since
from nexus.runtime.vllm.scheduling.prefix import PrefixCache

_READY = (RequestStatus.WAITING, RequestStatus.PREEMPTED)

_STEPS_AFTER_A_REFUSAL = 16
"""Nobody sits out for so long after vLLM refused a prompt for a reason that is not known here."""


class Passing:
    """Arranges one scheduler's steps so that prompts run in the order of their ranks."""

    def __init__(self, scheduler: Any, cache: PrefixCache) -> None:
        """``scheduler`` is a vLLM ``Scheduler`` whose waiting queue has ``rank``."""
        self._scheduler = scheduler
        self._cache = cache
        self._not_before_step = 0

    @contextmanager
    def before(self, prefills: Sequence[Request], chunk: int) -> Iterator[None]:
        """A step of ``chunk`` prompt tokens, ``prefills`` being partially prefilled, by rank."""
        wanted = self._wanted(prefills[0], chunk)
        left = chunk - sum(wanted)
        first = self._first_ready()
        if (
            first is None
            or not wanted
            or self._could_cut_an_item(prefills, chunk)
            or not self._can_be_admitted(first, chunk)
        ):
            yield
        elif left >= max(wanted):
            with self._each_prompt_capped(left):
                yield
        elif self._scheduler.current_step < self._not_before_step:
            yield
        else:
            with self._sitting_out(prefills):
                yield
            if first.status != RequestStatus.RUNNING:
                self._not_before_step = self._scheduler.current_step + _STEPS_AFTER_A_REFUSAL

    def _could_cut_an_item(self, prefills: Sequence[Request], chunk: int) -> bool:
        """Whether items that must stay whole are near: the chunk is sized for the usual order.

        A cap cuts an item, and so does a turn that comes with fewer tokens left than expected.
        """
        if not self._scheduler.scheduler_config.disable_chunked_mm_input:
            return False
        if any(request.mm_features for request in prefills):
            return True
        for request in self._scheduler.waiting:
            if request.mm_features:
                return True
            chunk -= self._cache.tokens_left(request)
            if chunk <= 0:
                break
        return False

    def _wanted(self, prefill: Request, chunk: int) -> list[int]:
        """Tokens of the waiting prompts before ``prefill``, until they fill the chunk."""
        waiting = self._scheduler.waiting
        rank = waiting.rank(prefill)
        wanted: list[int] = []
        for request in waiting:
            if waiting.rank(request) >= rank or sum(wanted) >= chunk:
                break
            wanted.append(self._cache.tokens_left(request))
        return wanted

    def _first_ready(self) -> Request | None:
        """The first waiting request that waits for nothing but its turn."""
        return next((each for each in self._scheduler.waiting if each.status in _READY), None)

    def _can_be_admitted(self, request: Request, chunk: int) -> bool:
        """Whether vLLM has a seat, a LoRA slot and KV blocks for it."""
        scheduler = self._scheduler
        taken = len(scheduler.running) + scheduler.num_waiting_for_streaming_input
        seats, others_first = scheduler.max_num_running_reqs, False
        if since(SEATS_BESIDE_HELD_BLOCKS):
            seats = min(seats, scheduler.max_num_active_reqs)
            others_first = bool(scheduler.kv_holding_waiting)  # what holds blocks already
        # Items of other modalities have budgets too.
        return (
            taken < seats
            and not others_first
            and not request.mm_features
            and self._has_a_lora_slot(request)
            and self._has_blocks(request, chunk)
        )

    def _has_a_lora_slot(self, request: Request) -> bool:
        config = self._scheduler.lora_config
        if config is None or request.lora_request is None:
            return True
        running = {
            each.lora_request.lora_int_id for each in self._scheduler.running if each.lora_request
        }
        return len(running | {request.lora_request.lora_int_id}) <= config.max_loras

    def _has_blocks(self, request: Request, chunk: int) -> bool:
        """Whether KV blocks are free for all of its tokens, and for the next ``chunk`` of them.

        As vLLM asks when it admits a request, in each KV cache group.
        """
        scheduler, manager = self._scheduler, self._scheduler.kv_cache_manager
        cached, hit = self._cache.look_up(request)
        free = manager.block_pool.get_num_free_blocks() - manager.watermark_blocks
        whole = min(request.num_tokens, scheduler.max_model_len)
        part = min(hit + chunk, whole) + scheduler.num_lookahead_tokens
        return all(
            manager.coordinator.get_num_blocks_to_allocate(
                request_id=request.request_id,
                num_tokens=tokens,
                new_computed_blocks=cached,
                num_encoder_tokens=0,
                total_computed_tokens=hit,
                num_local_computed_tokens=hit,
                num_tokens_main_model=tokens,
                apply_admission_cap=capped,
            )
            <= free
            for tokens, capped in ((whole, True), (part, False))
        )

    @contextmanager
    def _each_prompt_capped(self, tokens: int) -> Iterator[None]:
        config = self._scheduler.scheduler_config
        before = config.long_prefill_token_threshold
        config.long_prefill_token_threshold = min(tokens, before or tokens)
        try:
            yield
        finally:
            config.long_prefill_token_threshold = before

    @contextmanager
    def _sitting_out(self, prefills: Sequence[Request]) -> Iterator[None]:
        """VLLM passes over them in this step, as over those whose turn in a pipeline it is not."""
        before = [request.next_decode_eligible_step for request in prefills]
        for request in prefills:
            request.next_decode_eligible_step = self._scheduler.current_step + 2
        try:
            yield
        finally:
            for request, step in zip(prefills, before, strict=True):
                request.next_decode_eligible_step = step
