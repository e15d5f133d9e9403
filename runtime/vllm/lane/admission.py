"""The scheduler's half of the prefill lane: which prompts go there, and what is still there."""

from collections.abc import Sequence
from typing import Any

from nexus.core.lane import MIN_LANE_TOKENS, PASSES_AHEAD
from nexus.core.plan import Mode
from nexus.core.prefill.ranking import Rank
from nexus.runtime.vllm.compat import Request
from nexus.runtime.vllm.lane.queue import LanePrompt
from nexus.runtime.vllm.lane.step import LaneReport, LaneStep
from nexus.runtime.vllm.scheduling.queue import RankedQueue


class LaneAdmission:
    """One decision a step, set by the scheduler and asked for by the connector."""

    queue: RankedQueue
    """Where requests wait, and have their ranks; set by the scheduler."""

    def __init__(self) -> None:
        """Nothing on the lane."""
        self._mode = self._lane_mode = Mode("fused", 1)
        self._prompts: dict[str, LanePrompt] = {}
        self._requests: dict[str, Request] = {}
        self._launched: dict[str, int] = {}
        self._new: list[LanePrompt] = []
        self._cancelled: list[str] = []
        self._fused_only: set[str] = set()
        self.disabled = False
        self.failures = 0
        self.launched_tokens = 0
        self.sms: tuple[int, int] | None = None

    @property
    def open(self) -> bool:
        """Whether prompts go to the lane in the present step."""
        return self._mode.mode != "fused" and not self.disabled

    @property
    def queued(self) -> int:
        """Prompts on the lane."""
        return len(self._prompts)

    @property
    def backlog(self) -> int:
        """Tokens on the lane that are not launched yet, as last reported."""
        return sum(map(self._left, self._prompts.values()))

    @property
    def in_force(self) -> Mode:
        """The mode that the step runs in: a lane's last one until its passes are over."""
        return self._mode if self.open or not self._prompts else self._lane_mode

    def set_mode(self, mode: Mode) -> None:
        """The step's mode, from the policy."""
        self._mode = mode
        if mode.mode != "fused":
            self._lane_mode = mode

    def suits(self, request: Request, tokens: int) -> bool:
        """Whether the lane may compute ``tokens`` of ``request``."""
        params: Any = request.sampling_params
        return (
            tokens >= MIN_LANE_TOKENS
            and params is not None
            and params.prompt_logprobs is None
            and not request.skip_reading_prefix_cache
            and request.lora_request is None
            and not request.mm_features
            and request.prompt_embeds is None
            and not request.resumable
            and request.request_id not in self._fused_only
        )

    def has_room(self, rank: Rank, besides: int = 0) -> bool:
        """Whether few enough tokens go before ``rank``, those of ``besides`` included."""
        ahead = sum(self._left(p) for p in self._prompts.values() if p.rank <= rank)
        return ahead + besides < PASSES_AHEAD * self._mode.chunk

    def match(self, request: Request, cached: int) -> tuple[int | None, bool]:
        """As ``get_num_new_matched_tokens``: how many tokens the lane will compute."""
        tokens = request.num_tokens - 1 - cached
        if not self.open or not self.suits(request, tokens):
            return 0, False
        if not self.has_room(self.queue.rank(request)):
            return None, False
        return tokens, True

    def allocated(
        self, request: Request, blocks: tuple[Sequence[int], ...], num_tokens: int
    ) -> None:
        """The request has KV ``blocks``; the lane is to compute ``num_tokens`` if any."""
        if num_tokens == 0:
            return
        end = request.num_tokens - 1
        tokens = list(request.all_token_ids[end - num_tokens : end])
        rank = self.queue.handed_over(request, num_tokens)
        prompt = LanePrompt(request.request_id, rank, tokens, end - num_tokens, blocks)
        self._prompts[prompt.req_id] = prompt
        self._requests[prompt.req_id] = request
        self._new.append(prompt)

    def finished(self, req_id: str) -> None:
        """The request ended for its client, on the lane or not."""
        self._fused_only.discard(req_id)
        if req_id in self._prompts:
            self._cancelled.append(req_id)

    def step(self) -> LaneStep:
        """What the worker has to know, once."""
        mode = self._mode if not self.disabled else Mode("fused", self._mode.chunk)
        step = LaneStep(mode, self._new, self._cancelled)
        self._new, self._cancelled = [], []
        return step

    def take_counts(self) -> tuple[int, int]:
        """Prompts whose launch failed, and tokens launched, since the last call."""
        counts = (self.failures, self.launched_tokens)
        self.failures = self.launched_tokens = 0
        return counts

    def __str__(self) -> str:
        """For the log: what is on the lane now."""
        if self.disabled:
            return "; prefill lane off"
        sms = "" if self.sms is None else f", {self.sms[0]} + {self.sms[1]} SMs"
        return f"; prefill lane: {self.queued} prompts, {self.backlog} tokens to launch{sms}"

    def reported(self, report: LaneReport | None, left: set[str]) -> set[str]:
        """Take the worker's report in; ``left`` are the requests that left the lane.

        Returns those that the lane gave up, their ``num_computed_tokens`` set to what is in
        the KV cache.
        """
        returned = set()
        self.sms = None if report is None else report.sms
        if report is not None:
            self.launched_tokens += report.tokens
            here = report.launched.keys() & self._prompts.keys()  # others left meanwhile
            self._launched.update({req_id: report.launched[req_id] for req_id in here})
            self._fused_only |= report.failed
            self.failures += len(report.failed)
            self.disabled = self.disabled or bool(report.lost)
            for req_id, computed in report.returned.items():
                self._requests[req_id].num_computed_tokens = computed
                returned.add(req_id)
        for req_id in left:
            self._prompts.pop(req_id, None)
            self._requests.pop(req_id, None)
            self._launched.pop(req_id, None)
        return returned

    def _left(self, prompt: LanePrompt) -> int:
        return len(prompt.tokens) - self._launched.get(prompt.req_id, 0)
