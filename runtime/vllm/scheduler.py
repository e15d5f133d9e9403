"""vLLM's scheduler, with the plan's chunk in every step and the plan's prefill order.

vLLM's own ``schedule`` does all the work. Before it runs, three of its inputs are set:
the step's token budget, the order of running and waiting requests, and, where a
shorter prompt must pass a half-done longer one, how much of the budget that one may
take. All three are restored or recomputed at the next step.
"""

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

from vllm.v1.core.sched.async_scheduler import AsyncScheduler
from vllm.v1.core.sched.output import SchedulerOutput
from vllm.v1.core.sched.scheduler import Scheduler
from vllm.v1.request import Request

from nexus.planner.table import Mode, Row, Table, read_plan
from nexus.runtime.policy import Policy, State
from nexus.runtime.vllm.context import ServeContext
from nexus.runtime.vllm.queue import ShortestPrefillFirstQueue, remaining_prefill


@dataclass(frozen=True)
class Decision:
    """One step's state, the mode chosen for it, and the row that predicted it."""

    state: State
    mode: Mode
    row: Row


class _Planned(Scheduler):
    """What both schedulers below share."""

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        context = ServeContext.of(self.vllm_config)
        self.nexus_policy = Policy(Table(read_plan(context.table)))
        self.nexus_decision: Decision | None = None
        self._most_tokens = self.max_num_scheduled_tokens
        self._most_backlog = self.nexus_policy.table.axes.prefill_backlog[-1]
        self._spf = context.prefill_order == "spf"
        if self._spf:
            self.waiting = ShortestPrefillFirstQueue(context.aging_tokens_per_s)

    def schedule(self, *args: Any, **kwargs: Any) -> SchedulerOutput:
        """One step, as vLLM schedules it, within the plan's chunk."""
        prefills, kv_tokens = self._prefills_and_kv_tokens()
        decode_batch = len(self.running) - len(prefills)
        state = State(decode_batch, kv_tokens, self._backlog(prefills))
        mode, row = self.nexus_policy.decide(state)
        self.nexus_decision = Decision(state, mode, row)
        self.max_num_scheduled_tokens = min(self._most_tokens, decode_batch + mode.chunk)
        if not prefills:
            return super().schedule(*args, **kwargs)
        # Decodes first: the budget holds all of them, and the chunk is what is left.
        self.running = [r for r in self.running if not r.is_prefill_chunk] + prefills
        if not self._spf or not self.waiting:
            return super().schedule(*args, **kwargs)
        with self._shorter_prompts_pass(prefills, mode.chunk):
            return super().schedule(*args, **kwargs)

    def _prefills_and_kv_tokens(self) -> tuple[list[Request], int]:
        """The running requests whose prompt is half done, by rank; all running's KV tokens."""
        prefills: list[Request] = []
        kv_tokens = 0
        for request in self.running:
            kv_tokens += request.num_computed_tokens
            if request.is_prefill_chunk:
                prefills.append(request)
        if self._spf and len(prefills) > 1:
            prefills.sort(key=self.waiting.rank)
        return prefills, kv_tokens

    def _backlog(self, prefills: list[Request]) -> int:
        backlog = sum(map(remaining_prefill, prefills))
        for request in self.waiting:
            if backlog >= self._most_backlog:  # the table tells no larger ones apart
                break
            backlog += remaining_prefill(request)
        return backlog

    @contextmanager
    def _shorter_prompts_pass(self, prefills: list[Request], chunk: int) -> Iterator[None]:
        """Let waiting prompts that rank before the half-done ones have tokens first.

        vLLM serves running requests before waiting ones. A cap on every prompt's tokens
        leaves the shorter ones their share; where no cap can, as it would cut them too,
        the half-done prompts sit this step out. Their KV blocks and slots stay theirs.
        """
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
