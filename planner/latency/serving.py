"""What a server adds to the steps that a profile holds: its host, its front end, its mixed batches.

A profile times steps in steady state: queued ahead, and with contexts that are all alike. A
server schedules each step while the one before it runs, takes requests in and sends tokens
out, and decodes contexts of all lengths in one batch.
"""

from dataclasses import dataclass, replace
from typing import Any

from nexus.core.attention import SPLIT_ATTENTION_MAX_CONTEXT
from nexus.planner.latency.curve import StepCurve
from nexus.planner.latency.shape import Shape
from nexus.profiles.schema import Profile


@dataclass(frozen=True)
class Serving:
    """All of it in milliseconds.

    ``steps_in_flight``: steps that are scheduled before the result of the running one is known.
    ``schedule_ms``: the host's work on a step before its first kernel; ``launch_ms``: after
    that, where CUDA graphs hold the step (up to ``graph_tokens``), else ``eager_ms``;
    ``result_ms``: from a step's end until the next one is scheduled. ``pass_ms``: the host's
    work on a pass of the prefill lane, which ``pads`` says is padded to a CUDA graph's size.
    ``begin_ms``: what the pass takes on the device beyond a profile's, where one follows
    another: its inputs are copied, and it begins in the midst of decode's kernels.
    ``prelaunches``: whether a prompt goes into the step that follows its last pass before that
    pass is over.

    ``intake_ms``: from a client's sending to the scheduler; ``reply_ms``: from a step's end
    to the client, and ``reply_token_ms`` more for each token that goes out with it.

    ``context_skew_fused_ms``, ``context_skew_decode_ms``: what each 1,000 tokens by which the longest
    decode's context exceeds the mean add to a step with prompt tokens in it or beside it, and
    to one without: attention gives a sequence's head to one SM, and the last to end decides.
    In a step with prompts of up to ``split_attention_max`` Nexus gives decodes the attention kernel
    that they have without, so that the second applies.

    ``sustained``: how many times as long as in a profile a step with prompts takes on average;
    ``step_cv``: the standard deviation around that, as a share, fitted to the p95 of TBT in
    runs. A GPU at its limit of power has a clock that falls the longer it is busy.
    """

    steps_in_flight: int = 0
    schedule_ms: float = 0.0
    launch_ms: float = 0.0
    eager_ms: float = 0.0
    graph_tokens: int = 0
    result_ms: float = 0.0
    pass_ms: float = 0.0
    begin_ms: float = 0.0
    pads: bool = False
    prelaunches: bool = False
    intake_ms: float = 0.0
    reply_ms: float = 0.0
    reply_token_ms: float = 0.0
    context_skew_fused_ms: float = 0.0
    context_skew_decode_ms: float = 0.0
    sustained: float = 1.0
    step_cv: float = 0.0
    split_attention_max: int = 0

    @property
    def as_stock(self) -> "Serving":
        """The same machine and model under stock vLLM.

        Its steps with prompts take as long under load as a profile's, whose attention runs in
        two calls, do in a profile.
        """
        graph_tokens = min(self.graph_tokens, _STOCK_GRAPH_TOKENS)
        return replace(self, graph_tokens=graph_tokens, sustained=1.0, split_attention_max=0)

    def apart(self, tokens: Any, context: Any) -> Any:
        """Whether each phase has its own attention kernel in steps with prompts of ``tokens``.

        ``context`` is before the prompt tokens. Numbers, or arrays of one shape.
        """
        return (tokens <= self.split_attention_max) & (context <= SPLIT_ATTENTION_MAX_CONTEXT)

    def context_skew_ms(self, chunk: int, context: float, batch: int) -> float:
        """What 1,000 tokens by which a decode is longer than others add to a step.

        It has ``batch`` decodes and ``chunk`` prompt tokens with ``context`` before them.
        """
        joint = chunk > 0 and not self.apart(chunk + batch, context)
        return self.context_skew_fused_ms if joint else self.context_skew_decode_ms


# On a CPU a step takes so long that nothing else shows.
_CPU = Serving()
_STOCK_GRAPH_TOKENS = 512
_GPU = Serving(
    steps_in_flight=1,
    schedule_ms=0.6,
    launch_ms=0.6,
    eager_ms=8.0,
    graph_tokens=1024,
    result_ms=0.3,
    pass_ms=1.0,
    begin_ms=4.0,
    pads=True,
    prelaunches=True,
    intake_ms=1.5,
    reply_ms=1.0,
    reply_token_ms=0.03,
    context_skew_fused_ms=0.4,
    context_skew_decode_ms=0.14,
    sustained=1.03,
    step_cv=0.06,
    split_attention_max=1024,
)
_FITTED_SHAPE = 32 * 128  # layers times head size of the model that the last two were fitted to


def serving_of(profile: Profile, prefill: StepCurve, fused: StepCurve) -> Serving:
    """For the profile's machine and model; ``prefill`` and ``fused`` are its curves."""
    if profile.machine.device == "cpu":
        return _CPU
    model = profile.model
    scale = model.num_layers * model.head_size / _FITTED_SHAPE
    return replace(
        _GPU,
        pass_ms=_pass_ms(prefill, fused),
        context_skew_fused_ms=scale * _GPU.context_skew_fused_ms,
        context_skew_decode_ms=scale * _GPU.context_skew_decode_ms,
    )


def _pass_ms(prefill: StepCurve, fused: StepCurve) -> float:
    """The host's work on a pass: where short passes take longer than fused steps, it is that.

    A fused step of as many prompt tokens does more, but from a CUDA graph.
    """
    chunk, batch = prefill.ranges.chunk[0], max(fused.ranges.decode_batch[0], 1.0)
    alone = float(prefill.predict(Shape.of(chunk))[0])
    together = float(fused.predict(Shape.of(chunk, 0, batch, 1024))[0])
    return alone if alone > 1.2 * together else _GPU.pass_ms
