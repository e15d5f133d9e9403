"""A model of every step's time, fitted to a profile's samples.

Each phase at each measured SM count has its own curve, fused steps have one, and each
measured partition has a slowdown for both phases. Nothing is interpolated between SM counts.
A shape outside what was measured is timed from its edge, and said to be outside.
"""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import get_args

import numpy as np

from nexus.core.arrays import Bools, Floats
from nexus.core.errors import DocumentError
from nexus.planner.latency.curve import GPU_TILE, StepCurve, fit_curve
from nexus.planner.latency.serving import Serving, serving_of
from nexus.planner.latency.shape import Ranges, Shape
from nexus.planner.latency.sharing import (
    DECODE_REACH,
    PREFILL_REACH,
    Kind,
    Partition,
    Slowdown,
    fit_slowdowns,
    partition_of,
)
from nexus.profiles.schema import Profile, Sample, training_samples

_ONE_TIME = 0.1  # logarithms this close tell no slope
_BEYOND = (0.8, 1.2)  # how far a ratio is followed outside of what was measured
_LENT_WEIGHT = 0.05  # of the whole device's samples in the fit of a part of it
_SOLO_WEIGHT = 0.2  # of a solo sample in the fit of fused steps, which are too few to fit alone


@dataclass(frozen=True)
class LatencyModel:
    """All curves of a profile: solo by SM count, fused on all SMs, slowdowns by partition."""

    sms: int
    prefill: dict[int, StepCurve]
    decode: dict[int, StepCurve]
    fused: StepCurve
    prefill_slowdown: dict[Partition, Slowdown]
    decode_slowdown: dict[Partition, Slowdown]
    serving: Serving

    def solo_prefill(self, sms: int, shape: Shape) -> tuple[Floats, Bools]:
        """Time of a prefill step alone on ``sms`` SMs, which must be measured."""
        return self.prefill[sms].predict(shape)

    def solo_decode(self, sms: int, shape: Shape) -> tuple[Floats, Bools]:
        """Time of a decode step alone on ``sms`` SMs, which must be measured."""
        return self.decode[sms].predict(shape)

    def prefill_curve(self, partition: Partition) -> StepCurve:
        """Prefill alone, on the measured SM count nearest to its side of the partition."""
        return self.prefill[_nearest(self.prefill, partition[1])]

    def decode_curve(self, partition: Partition) -> StepCurve:
        """Decode alone, on the measured SM count nearest to its side of the partition."""
        return self.decode[_nearest(self.decode, partition[2])]

    def recompute_curve(self, partition: Partition) -> StepCurve:
        """Prefill alone on decode's side of the partition, or the nearest measured to it."""
        return self.prefill[_nearest(self.prefill, partition[2])]

    def together(self, partition: Partition, shape: Shape) -> tuple[Floats, Floats, Bools]:
        """Times of a prefill step and of a decode step while both phases run.

        Returns prefill ms, decode ms, and where ``shape`` is outside of what was
        measured. The
        partition must be measured.
        """
        prefill = self.solo_prefill(self.sms, shape.only_prefill)
        decode = self.solo_decode(self.sms, shape.only_decode)
        prefill_factor = self.prefill_slowdown[partition].predict(shape)
        decode_factor = self.decode_slowdown[partition].predict(shape)
        outside = prefill[1] | decode[1] | prefill_factor[1] | decode_factor[1]
        return prefill[0] * prefill_factor[0], decode[0] * decode_factor[0], outside

    @property
    def partitions(self) -> list[Partition]:
        """Every partition that was measured with both phases running."""
        return sorted(self.prefill_slowdown)

    def fused_step(self, shape: Shape) -> tuple[Floats, Bools]:
        """Time of one batch on all SMs, whether it has both phases or only one."""
        fused = self.fused.predict(shape)
        prefill = self.solo_prefill(self.sms, shape)
        decode = self.solo_decode(self.sms, shape)
        no_decode, no_prefill = shape.decode_batch <= 0, shape.chunk <= 0
        return (
            np.where(no_prefill, decode[0], np.where(no_decode, prefill[0], fused[0])),
            np.where(no_prefill, decode[1], np.where(no_decode, prefill[1], fused[1])),
        )


def _nearest(counts: Iterable[int], sms: int) -> int:
    return min(counts, key=lambda count: (abs(count - sms), count))


def fit_model(profile: Profile) -> LatencyModel:
    """Fit every curve; raises DocumentError when the profile lacks what a plan needs."""
    samples = training_samples(profile.samples)
    sms = profile.machine.sms
    prefill = _by_sms(samples, "prefill")
    decode = _by_sms(samples, "decode")
    fused = [s for s in samples if s.mode == "fused" and s.prefill_sms == s.decode_sms == sms]
    for name, found in (
        ("prefill", prefill.get(sms, [])),
        ("decode", decode.get(sms, [])),
        ("fused", fused),
    ):
        if len(found) < 2:
            raise DocumentError(
                f"the profile has {len(found)} {name} samples on all {sms} SMs, "
                "and a plan needs at least 2: measure more of it"
            )
    tile = 1 if profile.machine.device == "cpu" else GPU_TILE
    whole_prefill = _solo_curve(prefill[sms], tile)
    fused_curve = _fused_curve(fused, [*prefill[sms], *decode[sms]], whole_prefill)
    # Reading the KV cache takes as long beside a prompt: whichever saw the longer contexts tells.
    longer = _longest_context(fused) > _longest_context(decode[sms])
    whole_decode = _solo_curve(decode[sms], tile, fused_curve.kv_terms if longer else None)
    solo = LatencyModel(
        sms=sms,
        prefill={n: _part_curve(group, whole_prefill, prefill[sms]) for n, group in prefill.items()}
        | {sms: whole_prefill},
        decode={n: _part_curve(group, whole_decode, decode[sms]) for n, group in decode.items()}
        | {sms: whole_decode},
        fused=fused_curve,
        prefill_slowdown={},
        decode_slowdown={},
        serving=serving_of(profile, whole_prefill, fused_curve),
    )
    return _with_sharing(solo, samples)


def _with_sharing(solo: LatencyModel, samples: Sequence[Sample]) -> LatencyModel:
    prefill: dict[Partition, Slowdown] = {}
    decode: dict[Partition, Slowdown] = {}
    for kind in get_args(Kind):
        group = [sample for sample in samples if sample.mode == kind]
        if group:
            shape = Shape.of_samples(group)
            prefill_ms = np.array([sample.prefill_ms for sample in group], dtype=np.float64)
            decode_ms = np.array([sample.decode_ms for sample in group], dtype=np.float64)
            prefill_alone, _ = solo.solo_prefill(solo.sms, shape.only_prefill)
            decode_alone, _ = solo.solo_decode(solo.sms, shape.only_decode)
            prefill |= fit_slowdowns(group, prefill_ms, prefill_alone, PREFILL_REACH)
            decode |= fit_slowdowns(group, decode_ms, decode_alone, DECODE_REACH)
    return replace(solo, prefill_slowdown=prefill, decode_slowdown=decode)


def sample_ms(sample: Sample) -> float:
    """The time of a solo or fused sample's step."""
    ms = sample.prefill_ms if sample.prefill_ms is not None else sample.decode_ms
    assert ms is not None
    return ms


def _by_sms(samples: Sequence[Sample], mode: str) -> dict[int, list[Sample]]:
    groups: dict[int, list[Sample]] = {}
    for sample in samples:
        if sample.mode == mode:
            groups.setdefault(max(sample.prefill_sms, sample.decode_sms), []).append(sample)
    return groups


def _longest_context(samples: Sequence[Sample]) -> int:
    return max(sample.decode_context for sample in samples)


def _solo_curve(
    samples: list[Sample], tile: int, known: Mapping[str, float] | None = None
) -> StepCurve:
    ms = np.array([sample_ms(sample) for sample in samples])
    ranges = Ranges.of(Shape.of_samples(samples))
    return fit_curve(samples, ms, np.ones_like(ms), ranges, tile, known)


def _part_curve(samples: list[Sample], whole: StepCurve, others: list[Sample]) -> StepCurve:
    """The curve on part of the SMs; ``whole`` and its samples stand in for missing ones.

    What few samples cannot tell, such as how attention grows, is taken from the whole device,
    scaled to the samples there are: the longer a step, the more it loses with its SMs.
    """
    own = np.array([sample_ms(sample) for sample in samples])
    others_ms = np.array([sample_ms(sample) for sample in others])
    lent = others_ms * _ratio(whole.predict(Shape.of_samples(samples))[0], own, others_ms)
    weights = np.concatenate([np.ones_like(own), np.full_like(lent, _LENT_WEIGHT)])
    both = [*samples, *others]
    ranges = Ranges.of(Shape.of_samples(both))
    return fit_curve(both, np.concatenate([own, lent]), weights, ranges, whole.tile)


def _ratio(whole_ms: Floats, part_ms: Floats, at_ms: Floats) -> Floats:
    """Times on a part of the SMs over those on all, where the latter are ``at_ms``.

    A line over the logarithm of the time on all SMs, through the samples of both.
    """
    ratio = part_ms / whole_ms
    if np.ptp(np.log(whole_ms)) < _ONE_TIME:
        return np.full_like(at_ms, float(np.median(ratio)))
    slope, offset = np.polyfit(np.log(whole_ms), ratio, 1)
    least, most = _BEYOND[0] * ratio.min(), _BEYOND[1] * ratio.max()
    return np.asarray(np.clip(slope * np.log(at_ms) + offset, least, most))


def _fused_curve(fused: list[Sample], solo: list[Sample], prefill: StepCurve) -> StepCurve:
    # Prompts alone that are shorter than fused ones were timed without CUDA graphs.
    longest = max(sample.chunk for sample in fused)
    samples = [*fused, *(sample for sample in solo if not 0 < sample.chunk < longest)]
    ms = np.array([sample_ms(sample) for sample in samples])
    weights = np.where(np.arange(len(ms)) < len(fused), 1.0, _SOLO_WEIGHT)
    # The terms of both phases add up, so a fused step is known wherever either phase is.
    ranges = Ranges.of(Shape.of_samples(samples))
    return fit_curve(samples, ms, weights, ranges, prefill.tile, prefill.prompt_terms)


@dataclass(frozen=True)
class CheckRow:
    """How well one curve predicts its samples; errors are relative, 0.05 is 5 %."""

    group: str
    held_out: bool
    points: int
    median_error: float
    p95_error: float
    max_error: float

    def __str__(self) -> str:
        """One line of a table."""
        kind = "held out" if self.held_out else "fitted"
        return (
            f"{self.group:24} {kind:8} {self.points:4} points  median {self.median_error:6.1%}"
            f"  p95 {self.p95_error:6.1%}  max {self.max_error:6.1%}"
        )


def check(profile: Profile) -> list[CheckRow]:
    """The model's errors for each curve, on the samples it was fitted to and on the others."""
    model = fit_model(profile)
    groups: dict[tuple[str, bool], list[float]] = {}
    for sample in profile.measured:
        for name, measured, predicted in _predictions(model, sample):
            error = abs(predicted / measured - 1.0)
            groups.setdefault((name, sample.held_out), []).append(error)
    return [
        CheckRow(
            group=name,
            held_out=held_out,
            points=len(errors),
            median_error=float(np.median(errors)),
            p95_error=float(np.quantile(errors, 0.95)),
            max_error=float(max(errors)),
        )
        for (name, held_out), errors in sorted(groups.items())
    ]


def prediction_errors(model: LatencyModel, sample: Sample) -> list[float]:
    """The relative error of each phase's prediction; none where the model lacks the curve."""
    return [abs(told / measured - 1.0) for _, measured, told in _predictions(model, sample)]


def _predictions(model: LatencyModel, sample: Sample) -> list[tuple[str, float, float]]:
    """Of each phase that the model knows: the curve's name, measured and predicted ms."""
    shape = Shape.of_samples([sample])
    if sample.mode == "fused":
        return [("fused", sample_ms(sample), float(model.fused.predict(shape)[0][0]))]
    if sample.mode == "prefill" or sample.mode == "decode":
        curves = model.prefill if sample.mode == "prefill" else model.decode
        sms = max(sample.prefill_sms, sample.decode_sms)
        if sms not in curves:
            return []
        name = f"{sample.mode} on {sms}"
        return [(name, sample_ms(sample), float(curves[sms].predict(shape)[0][0]))]
    partition = partition_of(sample)
    if partition not in model.prefill_slowdown:
        return []
    assert sample.prefill_ms is not None
    assert sample.decode_ms is not None
    prefill, decode, _ = model.together(partition, shape)
    name = f"{sample.mode} {sample.prefill_sms}/{sample.decode_sms}"
    return [
        (f"{name} prefill", sample.prefill_ms, float(prefill[0])),
        (f"{name} decode", sample.decode_ms, float(decode[0])),
    ]
