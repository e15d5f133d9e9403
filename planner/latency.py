"""A model of a step's time, fitted to a profile's samples.

Each phase at each measured SM count has its own fit; nothing is interpolated between
SM counts. A step's time is a sum of non-negative physical terms:

- tokens of the step, as a rising piecewise-linear curve that bends at measured values
  (weights and GEMMs: memory-bound first, compute-bound after, in steps),
- attention of the prefill chunk, ``chunk * (context + chunk / 2)``, and reading its context,
- sequences that decode, their KV tokens and their longest context.

A shape outside what was measured is clamped to it, and counted as clamped.
"""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np

from nexus.errors import DocumentError
from nexus.planner.fit import (
    Floats,
    Ramp,
    fit,
    knots_of,
    ramp_columns,
    ramp_from,
    smooth_rows,
)
from nexus.profiles.schema import Profile, Sample, held_in

_SOLO_WEIGHT = 0.2  # of a solo sample in the fit of fused steps, which are too few to fit alone


@dataclass(frozen=True)
class Shape:
    """Steps to be timed, as arrays of one shape; 0 tokens or sequences: no such phase.

    ``prefill_context + chunk / 2`` is what a chunk's token attends to on average; a chunk of
    several short prompts attends to less than half of itself, so that its context is negative.
    """

    chunk: Floats
    prefill_context: Floats
    decode_batch: Floats
    decode_context: Floats

    @classmethod
    def of(
        cls,
        chunk: Any = 0,
        prefill_context: Any = 0,
        decode_batch: Any = 0,
        decode_context: Any = 0,
    ) -> "Shape":
        """From numbers or arrays that broadcast together."""
        parts = np.broadcast_arrays(chunk, prefill_context, decode_batch, decode_context)
        return cls(*(np.asarray(part, dtype=np.float64) for part in parts))

    @classmethod
    def of_samples(cls, samples: Sequence[Sample]) -> "Shape":
        """The shapes of ``samples``, each of shape (n,)."""
        return cls.of(
            [s.chunk for s in samples],
            [s.prefill_context for s in samples],
            [s.decode_batch for s in samples],
            [s.decode_context for s in samples],
        )

    @property
    def kv_tokens(self) -> Floats:
        """KV tokens that decode reads."""
        return self.decode_batch * self.decode_context


@dataclass(frozen=True)
class Ranges:
    """The largest and smallest measured values of a group of samples."""

    chunk: tuple[float, float]
    prefill_context: tuple[float, float]
    decode_batch: tuple[float, float]
    kv_tokens: tuple[float, float]

    @classmethod
    def of(cls, shape: Shape) -> "Ranges":
        """Over the steps that have the phase at all."""
        prefill, decode = shape.chunk > 0, shape.decode_batch > 0
        return cls(
            _span(shape.chunk[prefill]),
            _span(shape.prefill_context[prefill]),
            _span(shape.decode_batch[decode]),
            _span(shape.kv_tokens[decode]),
        )

    def clamp(self, shape: Shape) -> tuple[Shape, Floats]:
        """``shape`` brought into the ranges, and where that changed it (1.0) or not (0.0).

        Below the smallest measured chunk or batch a step is timed as that one: small steps
        cost what the smallest does. That and a shorter context are not counted as clamped.
        """
        prefill, decode = shape.chunk > 0, shape.decode_batch > 0
        chunk = np.where(prefill, np.clip(shape.chunk, *self.chunk), 0.0)
        context = np.where(prefill, np.minimum(shape.prefill_context, self.prefill_context[1]), 0.0)
        batch = np.where(decode, np.clip(shape.decode_batch, *self.decode_batch), 0.0)
        kv = np.minimum(shape.kv_tokens, self.kv_tokens[1])
        beyond = (
            (shape.chunk > chunk)
            | (prefill & (shape.prefill_context > context))
            | (shape.decode_batch > batch)
            | (shape.kv_tokens > kv)
        )
        inside = Shape(chunk, context, batch, kv / np.maximum(batch, 1.0))
        return inside, beyond.astype(np.float64)


def _span(values: Floats) -> tuple[float, float]:
    return (float(values.min()), float(values.max())) if values.size else (0.0, 0.0)


@dataclass(frozen=True)
class StepCurve:
    """The time of one phase, or of fused steps, on a fixed number of SMs."""

    base_ms: float
    prefill_ms: float
    tokens: Ramp
    batch: Ramp
    attention: float
    prefill_context: float
    kv_tokens: float
    decode_context: float
    ranges: Ranges

    def predict(self, shape: Shape) -> tuple[Floats, Floats]:
        """Milliseconds, and 1.0 where ``shape`` had to be clamped; of the shape's shape."""
        inside, clamped = self.ranges.clamp(shape)
        has_prefill = inside.chunk > 0
        ms = (
            self.base_ms
            + self.prefill_ms * has_prefill
            + self.tokens(inside.chunk + inside.decode_batch)
            + self.batch(inside.decode_batch)
            + self.attention * inside.chunk * (inside.prefill_context + inside.chunk / 2)
            + self.prefill_context * np.maximum(inside.prefill_context, 0.0)
            + self.kv_tokens * inside.kv_tokens
            + self.decode_context * inside.decode_context
        )
        return ms, clamped


def fit_curve(samples: Sequence[Sample], ms: Floats, weights: Floats, ranges: Ranges) -> StepCurve:
    """Fit one curve; ``samples``, ``ms`` and ``weights`` correspond."""
    shape = Shape.of_samples(samples)
    total = shape.chunk + shape.decode_batch
    token_knots = knots_of(total)
    batches = shape.decode_batch[shape.chunk > 0] if np.any(shape.chunk > 0) else np.zeros(0)
    batch_knots = np.concatenate([[0.0], knots_of(batches[batches > 0])])
    has_prefill = (shape.chunk > 0).astype(np.float64)
    fixed = np.column_stack(
        [
            np.ones_like(total),
            has_prefill,
            shape.chunk * (shape.prefill_context + shape.chunk / 2),
            shape.prefill_context * has_prefill,
            shape.kv_tokens,
            shape.decode_context,
        ]
    )
    token_columns = ramp_columns(total, token_knots)
    batch_columns = ramp_columns(shape.decode_batch, batch_knots)
    columns = np.hstack([fixed, token_columns, batch_columns])
    regular = _regular(fixed.shape[1], token_knots, batch_knots)
    found = fit(columns, ms, weights, regular)
    split = fixed.shape[1] + token_columns.shape[1]
    base, prefill, attention, prefill_context, kv_tokens, decode_context = found[:6]
    return StepCurve(
        base_ms=float(base),
        prefill_ms=float(prefill),
        tokens=ramp_from(token_knots, found[6:split]),
        batch=ramp_from(batch_knots, found[split:]),
        attention=float(attention),
        prefill_context=float(prefill_context),
        kv_tokens=float(kv_tokens),
        decode_context=float(decode_context),
        ranges=ranges,
    )


def _regular(fixed: int, token_knots: Floats, batch_knots: Floats) -> Floats:
    tokens, batch = smooth_rows(token_knots), smooth_rows(batch_knots)
    rows = np.zeros((len(tokens) + len(batch), fixed + tokens.shape[1] + batch.shape[1]))
    rows[: len(tokens), fixed : fixed + tokens.shape[1]] = tokens
    rows[len(tokens) :, fixed + tokens.shape[1] :] = batch
    return rows


@dataclass(frozen=True)
class LatencyModel:
    """All curves of a profile: solo prefill and decode by SM count, and fused on all SMs."""

    sms: int
    prefill: dict[int, StepCurve]
    decode: dict[int, StepCurve]
    fused: StepCurve

    def solo_prefill(self, sms: int, shape: Shape) -> tuple[Floats, Floats]:
        """Time of a prefill step alone on ``sms`` SMs, which must be measured."""
        return self.prefill[sms].predict(shape)

    def solo_decode(self, sms: int, shape: Shape) -> tuple[Floats, Floats]:
        """Time of a decode step alone on ``sms`` SMs, which must be measured."""
        return self.decode[sms].predict(shape)

    def fused_step(self, shape: Shape) -> tuple[Floats, Floats]:
        """Time of one batch on all SMs, whether it has both phases or only one."""
        fused = self.fused.predict(shape)
        prefill = self.solo_prefill(self.sms, shape)
        decode = self.solo_decode(self.sms, shape)
        no_decode, no_prefill = shape.decode_batch <= 0, shape.chunk <= 0
        return (
            np.where(no_prefill, decode[0], np.where(no_decode, prefill[0], fused[0])),
            np.where(no_prefill, decode[1], np.where(no_decode, prefill[1], fused[1])),
        )


def fit_model(profile: Profile) -> LatencyModel:
    """Fit every curve; raises DocumentError when the profile lacks what a plan needs."""
    samples = held_in(profile.samples)
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
    return LatencyModel(
        sms=sms,
        prefill={count: _solo_curve(group) for count, group in prefill.items()},
        decode={count: _solo_curve(group) for count, group in decode.items()},
        fused=_fused_curve(fused, [*prefill[sms], *decode[sms]]),
    )


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


def _solo_curve(samples: list[Sample]) -> StepCurve:
    ms = np.array([sample_ms(sample) for sample in samples])
    return fit_curve(samples, ms, np.ones_like(ms), Ranges.of(Shape.of_samples(samples)))


def _fused_curve(fused: list[Sample], solo: list[Sample]) -> StepCurve:
    samples = [*fused, *solo]
    ms = np.array([sample_ms(sample) for sample in samples])
    weights = np.where(np.arange(len(ms)) < len(fused), 1.0, _SOLO_WEIGHT)
    both, either = Ranges.of(Shape.of_samples(fused)), Ranges.of(Shape.of_samples(samples))
    # Attention adds to the rest of a step, so contexts may be as long as either phase had them.
    ranges = replace(both, prefill_context=either.prefill_context, kv_tokens=either.kv_tokens)
    return fit_curve(samples, ms, weights, ranges)


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
        name, predicted = _predict_sample(model, sample)
        if predicted is not None:
            error = abs(predicted / sample_ms(sample) - 1.0)
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


def _predict_sample(model: LatencyModel, sample: Sample) -> tuple[str, float | None]:
    shape = Shape.of_samples([sample])
    sms = max(sample.prefill_sms, sample.decode_sms)
    if sample.mode == "fused":
        return "fused", float(model.fused.predict(shape)[0][0])
    curves = {"prefill": model.prefill, "decode": model.decode}.get(sample.mode, {})
    if sms not in curves:
        return sample.mode, None
    return f"{sample.mode} {sms} SMs", float(curves[sms].predict(shape)[0][0])
