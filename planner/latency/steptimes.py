"""Step times for one step at a time, fast enough to simulate millions of tokens.

The same numbers as ``LatencyModel`` gives for arrays, with each curve's ramps unrolled
into lists.
"""

from collections.abc import Callable
from dataclasses import dataclass
from math import exp, log1p, log2

import numpy as np

from nexus.core.arrays import Floats
from nexus.core.plan import Mode
from nexus.planner.latency.curve import StepCurve, tiled
from nexus.planner.latency.frontier import partition_in
from nexus.planner.latency.model import LatencyModel
from nexus.planner.latency.serving import Serving
from nexus.planner.latency.sharing import FEW_KV, Partition, Slowdown

Timer = Callable[[int, float, int, float], float]
"""(chunk, prefill context, decode batch, KV tokens of decode) to ms."""


def timer(curve: StepCurve) -> Timer:
    """``curve.predict`` for one step."""
    ranges = curve.ranges
    chunk_low, chunk_high = ranges.chunk
    batch_low, batch_high = ranges.decode_batch
    kv_high = ranges.kv_tokens[1]
    most = int(chunk_high + batch_high)
    tokens = _unrolled(curve.tokens, most)
    mixed = _unrolled(lambda total: curve.tokens(tiled(total, curve.tile)), most)
    batches = _unrolled(curve.batch, batch_high)
    base = curve.base_ms

    def ms(chunk: int, context: float, batch: int, kv_tokens: float) -> float:
        prefill = decode = beyond = 0.0
        inside = running = 0
        if chunk:
            inside = int(min(max(chunk, chunk_low), chunk_high))
            prefill = curve.prefill_ms + curve.attention * inside * (context + inside / 2)
            prefill += curve.prefill_context * max(context, 0.0)
            if chunk > inside:
                beyond += (chunk / inside - 1.0) * (base + prefill + mixed[inside])
        if batch:
            running = int(min(max(batch, batch_low), batch_high))
            kv = min(kv_tokens, kv_high)
            decode = curve.kv_tokens * kv + curve.decode_context * kv / running + batches[running]
            if batch > running or kv_tokens > kv:
                excess = max(batch / running, kv_tokens / max(kv, 1.0)) - 1.0
                beyond += excess * (base + decode + tokens[running])
        computed = (mixed if inside else tokens)[inside + running]
        return base + prefill + decode + computed + beyond

    return ms


def _unrolled(ramp: Callable[[Floats], Floats], most: float) -> list[float]:
    at = np.linspace(0.0, most, int(most) + 1)
    return [float(value) for value in ramp(at)]


@dataclass(frozen=True)
class LaneTimes:
    """Times in one partition: each phase alone on its SMs, and beside the other.

    ``recompute`` is a prefill alone on decode's SMs. None has a server's overhead in it.
    """

    prefill_alone: Timer
    decode_alone: Timer
    recompute: Timer
    prefill: Timer
    decode: Timer


class StepTimes:
    """All timers of a model; those of a partition are made when first asked for."""

    def __init__(self, model: LatencyModel) -> None:
        """Unroll the curves of the whole device."""
        self._model = model
        self._fused = timer(model.fused)
        self._prefill = timer(model.prefill[model.sms])
        self._decode = timer(model.decode[model.sms])
        self._lanes: dict[Partition, LaneTimes] = {}

    @property
    def max_chunk(self) -> int:
        """The longest prefill step that was measured."""
        return int(self._model.prefill[self._model.sms].ranges.chunk[1])

    @property
    def serving(self) -> Serving:
        """What a server adds to a profile's steps."""
        return self._model.serving

    def step_ms(self, chunk: int, context: float, batch: int, kv_tokens: float) -> float:
        """One batch on the whole device, of either phase or both, as a profile times it."""
        if not chunk:
            return self._decode(0, 0.0, batch, kv_tokens)
        if not batch:
            return self._prefill(chunk, context, 0, 0.0)
        return self._fused(chunk, context, batch, kv_tokens)

    def lane(self, mode: Mode) -> LaneTimes:
        """The timers of a split or overlap."""
        partition = partition_in(mode, self._model.sms)
        assert partition is not None
        if partition not in self._lanes:
            self._lanes[partition] = self._make_lane(partition)
        return self._lanes[partition]

    def _make_lane(self, partition: Partition) -> LaneTimes:
        model = self._model
        prefill_alone = timer(model.prefill_curve(partition))
        whole_prefill, whole_decode = self._prefill, self._decode
        slow_prefill = _factor(model.prefill_slowdown[partition])
        slow_decode = _factor(model.decode_slowdown[partition])

        def prefill_ms(chunk: int, context: float, batch: int, kv: float) -> float:
            return whole_prefill(chunk, context, 0, 0.0) * slow_prefill(chunk, context, batch, kv)

        def decode_ms(chunk: int, context: float, batch: int, kv: float) -> float:
            return whole_decode(0, 0.0, batch, kv) * slow_decode(chunk, context, batch, kv)

        return LaneTimes(
            prefill_alone=prefill_alone,
            decode_alone=timer(model.decode_curve(partition)),
            recompute=timer(model.recompute_curve(partition)),
            prefill=prefill_ms,
            decode=decode_ms,
        )


def _factor(slowdown: Slowdown) -> Timer:
    """``slowdown.predict`` for one step: its coordinates and its clamping, spelled out."""
    ranges = slowdown.ranges
    chunk_low, chunk_high = ranges.chunk
    batch_low, batch_high = ranges.decode_batch
    context_high, kv_high = ranges.prefill_context[1], ranges.kv_tokens[1]
    reach_batch, reach_kv, reach_chunk, reach_before = slowdown.reach
    anchors, trend, level = slowdown.anchors, slowdown.trend, slowdown.level
    # exp(-|a - b|^2 / 2) = exp(a b) exp(-a^2 / 2) exp(-b^2 / 2)
    norms = (anchors**2).sum(-1) / 2.0
    weights = slowdown.weights

    known: dict[tuple[int, int, int, int], float] = {}

    def factor(chunk: int, context: float, batch: int, kv_tokens: float) -> float:
        running = min(max(batch, batch_low), batch_high)
        tokens = min(max(chunk, chunk_low), chunk_high)
        before = max(min(context, context_high), 0.0)
        kv = min(kv_tokens, kv_high)
        # Steps that differ by less than this share one evaluation.
        key = (int(tokens) >> 4, int(before) >> 7, int(running), int(kv) >> 10)
        if key not in known:
            at = np.array(
                [
                    log2(running) / reach_batch,
                    log2(kv + FEW_KV) / reach_kv,
                    log2(max(tokens, 16.0)) / reach_chunk,
                    log1p(before / 1024.0) / reach_before,
                ]
            )
            likeness = np.exp(anchors @ at - norms - at @ at / 2.0)
            known[key] = exp(level + float(at @ trend + likeness @ weights))
        return known[key]

    return factor
