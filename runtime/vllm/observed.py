"""A scheduler that is watched: counts, times, statistics, the log's line and the trace."""

import time
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

from nexus.core.plan import Mode, Row, read_plan
from nexus.core.policy import Policy, State
from nexus.runtime.vllm.compat import KVConnectorOutput, Scheduler, SchedulerOutput, log
from nexus.runtime.vllm.context import ServeContext
from nexus.runtime.vllm.lane import LaneConnector
from nexus.runtime.vllm.metrics import SchedulerMetrics
from nexus.runtime.vllm.support.unsupported import refuse_whole_prompts
from nexus.runtime.vllm.trace import FIRST_TOKENS, LEFT_LANE, STEPS, ServeTrace
from nexus.runtime.vllm.watch import Scheduled, StepWatch

_FEW = 64  # requests that have ended may be remembered


@dataclass(frozen=True)
class Decision:
    """One step's state, the mode chosen for it, and the row that predicted it."""

    state: State
    mode: Mode
    row: Row


class ObservedScheduler(Scheduler):
    """vLLM's, with the plan at hand and every step's decision and end noted."""

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        """As vLLM calls it."""
        super().__init__(*args, **kwargs)
        refuse_whole_prompts(self.vllm_config)  # some layers' caches let the engine decide so
        context = ServeContext.of(self.vllm_config)
        self.nexus_plan = read_plan(context.table)
        self.nexus_decision: Decision | None = None
        self._lane = self.connector if isinstance(self.connector, LaneConnector) else None
        self.nexus_policy = Policy.of(self.nexus_plan, self.max_num_scheduled_tokens)
        self._late_gaps: dict[str, int] = {}
        self._all_sms = (self.nexus_plan.machine.sms,) * 2
        self._watch = StepWatch()
        # As vLLM's own metrics: the data parallel rank of a dense model's engine is always 0.
        self._engine = int(self.vllm_config.parallel_config.data_parallel_index)
        self._trace = ServeTrace(context.trace, engine=self._engine) if context.trace else None
        self._metrics = self._new_metrics(context)

    def update_from_output(
        self, scheduler_output: SchedulerOutput, *args: Any, **kwargs: Any
    ) -> Any:
        """As vLLM's, timed."""
        now_s = time.monotonic()
        self._trace_step(now_s)
        step, before_s = self._watch.next_to_end
        if step is not None and before_s is not None:
            self._note_gap(step, 1e3 * (now_s - before_s), scheduler_output)
        warning, line = self._watch.ended(now_s), self._watch.line(now_s)
        if warning is not None:
            log.warning("nexus: %s", warning)
        if line is not None:
            log.info("nexus: %s%s", line, "" if self._lane is None else self._lane.admission)
        silent = self._silent(scheduler_output.num_scheduled_tokens)
        outputs = super().update_from_output(scheduler_output, *args, **kwargs)
        self._trace_requests(FIRST_TOKENS, silent & _spoke(outputs) if silent else silent)
        if self._metrics is not None:
            self._count(self._metrics)
        return outputs

    def shutdown(self) -> None:
        """As vLLM's."""
        super().shutdown()
        if self._metrics is not None:
            self._metrics.close()
            self._metrics = None

    def note_scheduled(
        self, output: SchedulerOutput, decode_batch: int, decode_tokens: int
    ) -> None:
        """A step goes to the worker, in which ``decode_batch`` requests generate.

        ``decode_tokens`` are theirs and their drafts'.
        """
        tokens = output.total_num_scheduled_tokens
        if tokens == 0 or self.nexus_decision is None:
            self._watch.scheduled(None)
            return
        decision = self.nexus_decision
        mode = decision.mode if self._lane is None else self._lane.admission.in_force
        prompt_tokens = max(0, tokens - decode_tokens)  # a decode that is about to end sits out
        now_s = time.monotonic()
        kv_tokens = decision.state.kv_tokens
        self._watch.scheduled(
            Scheduled(mode, decision.row, decode_batch, prompt_tokens, now_s, kv_tokens)
        )

    def _note_gap(self, step: Scheduled, gap_ms: float, output: SchedulerOutput) -> None:
        """A step ended; count a late gap for those who waited for it, before it is theirs."""
        controller = self.nexus_policy.controller
        if controller.is_late(gap_ms):
            for req_id, tokens in output.num_scheduled_tokens.items():
                request = self.requests.get(req_id)
                drafts = len(output.scheduled_spec_decode_tokens.get(req_id, ()))
                if tokens - drafts == 1 and request is not None and request.num_output_tokens:
                    self._late_gaps[req_id] = self._late_gaps.get(req_id, 0) + 1
            if len(self._late_gaps) > 2 * len(self.requests) + _FEW:
                here = self.requests.keys() & self._late_gaps.keys()
                self._late_gaps = {req_id: self._late_gaps[req_id] for req_id in here}
        if step.decodes and step.prompt_tokens:
            controller.ended(step.mode, gap_ms)

    def _update_from_kv_xfer_finished(self, kv_connector_output: KVConnectorOutput) -> None:
        """As vLLM's: requests have left the lane, most of them done there."""
        super()._update_from_kv_xfer_finished(kv_connector_output)
        if self._lane is not None:
            left = set(kv_connector_output.finished_recving or ())
            self._trace_requests(LEFT_LANE, left - self._lane.returned - self._lane.lost)

    def _silent(self, req_ids: Iterable[str]) -> set[str]:
        """Those without an output token so far, if the trace is to tell when they speak."""
        if self._trace is None:
            return set()
        found = ((req_id, self.requests.get(req_id)) for req_id in req_ids)
        return {req_id for req_id, request in found if request and not request.num_output_tokens}

    def _trace_requests(self, name: str, req_ids: set[str]) -> None:
        if self._trace is not None and req_ids:
            self._trace.mark(STEPS, name, time.monotonic(), requests=sorted(req_ids))

    def _trace_step(self, now_s: float) -> None:
        step, before_s = self._watch.next_to_end
        if self._trace is None or step is None:
            return
        start_s = step.scheduled_s if before_s is None else max(before_s, step.scheduled_s)
        self._trace.span(
            STEPS,
            step.mode.name,
            start_s,
            now_s,
            decodes=step.decodes,
            prompt_tokens=step.prompt_tokens,
            kv_tokens=step.kv_tokens,
            predicted_ms=step.predicted_ms,
        )
        if self._lane is not None:
            lane = self._lane.admission
            self._trace.level("prefill lane", now_s, prompts=lane.queued, tokens=lane.backlog)

    def _new_metrics(self, context: ServeContext) -> SchedulerMetrics | None:
        if context.metrics is None:
            return None
        labels = {
            "model_name": str(self.vllm_config.model_config.served_model_name),
            "engine": str(self._engine),
        }
        return SchedulerMetrics(context.metrics, labels, self.nexus_plan.modes)

    def _count(self, metrics: SchedulerMetrics) -> None:
        metrics.steps(self._watch.take())
        metrics.level("nexus_batch_scale_ratio", self.nexus_policy.controller.scale)
        if self._lane is None:
            return
        lane = self._lane.admission
        failures, tokens = lane.take_counts()
        metrics.count("nexus_lane_failures", failures)
        metrics.count("nexus_lane_prompt_tokens", tokens)
        metrics.level("nexus_lane_prompts", lane.queued)
        metrics.level("nexus_lane_waiting_tokens", lane.backlog)
        metrics.level("nexus_lane_up", int(not lane.disabled))
        for phase, sms in zip(("prefill", "decode"), lane.sms or self._all_sms, strict=True):
            metrics.level("nexus_realized_sms", sms, phase=phase)


def _spoke(outputs: dict[int, Any]) -> set[str]:
    """The requests with new tokens."""
    return {
        output.request_id
        for of_client in outputs.values()
        for output in of_client.outputs
        if output.new_token_ids
    }
