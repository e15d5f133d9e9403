"""What the two phases cost each other when they share the device, fitted to co-run samples.

For each partition that was measured, each phase's time is its time alone on the whole
device times a slowdown. The slowdown's logarithm is a Gaussian process over the step's shape:
partitions of one kind share its form, each adds its own level and its own deviations as
far as its samples speak for them. SM counts are no part of the shape, so nothing is
interpolated between them: a partition without samples does not exist.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np

from nexus.core.arrays import Bools, Floats
from nexus.planner.latency.shape import Ranges, Shape
from nexus.profiles.schema import Sample

Kind = Literal["split", "overlap"]
Partition = tuple[Kind, int, int]  # kind, prefill_sms, decode_sms

# How far apart steps may be and still be alike: doublings of the batch, of KV tokens and of the
# chunk, and e-foldings of the prefill context. Chosen by cross-validation on H200 profiles.
PREFILL_REACH = (4.0, 4.0, 3.0, 2.0)
DECODE_REACH = (2.0, 2.0, 2.0, 2.0)

_SHARED, _TREND, _LEVEL, _OWN = 0.3, 0.006, 1.0, 0.005  # variances of the process's parts
_NOISE = 4e-4  # a sample's variance: 2 %
FEW_KV = 3e4  # tokens: below it decode's KV reads do not show


@dataclass(frozen=True)
class Slowdown:
    """One phase's time in one partition, relative to alone on the whole device.

    ``anchors`` (n, 4) are the samples' coordinates with their ``weights`` (n,); far from all of
    them the ``trend`` (4,) and the ``level`` remain. ``ranges`` are what was measured.
    """

    reach: tuple[float, float, float, float]
    anchors: Floats
    weights: Floats
    trend: Floats
    level: float
    ranges: Ranges

    def predict(self, shape: Shape) -> tuple[Floats, Bools]:
        """The factor, and where ``shape`` is outside of what was measured: as at the edge."""
        inside, _ = self.ranges.clamp(shape)
        at = coordinates(inside, self.reach)
        likeness = _likeness(at, self.anchors)
        factor = np.exp(self.level + at @ self.trend + likeness @ self.weights)
        return np.asarray(factor), self.ranges.outside(shape)


def coordinates(shape: Shape, reach: tuple[float, float, float, float]) -> Floats:
    """Where a step stands among all steps, in units of ``reach``; of shape (..., 4)."""
    columns = [
        np.log2(np.maximum(shape.decode_batch, 1.0)),
        np.log2(shape.kv_tokens + FEW_KV),
        np.log2(np.maximum(shape.chunk, 16.0)),
        np.log1p(np.maximum(shape.prefill_context, 0.0) / 1024.0),
    ]
    return np.asarray(np.stack(columns, axis=-1) / np.array(reach))


def _likeness(some: Floats, others: Floats) -> Floats:
    """From 1, the same, to 0; shapes (..., 4) and (n, 4) give (..., n)."""
    squares = (some**2).sum(-1)[..., None] + (others**2).sum(-1) - 2.0 * some @ others.T
    return np.asarray(np.exp(-np.maximum(squares, 0.0) / 2.0))


def fit_slowdowns(
    samples: Sequence[Sample],
    ms: Floats,
    alone: Floats,
    reach: tuple[float, float, float, float],
) -> dict[Partition, Slowdown]:
    """One slowdown for each partition in ``samples``, of one kind and one phase.

    ``ms`` (n,) are that phase's times, ``alone`` (n,) its times alone on the whole device.
    """
    partitions = [partition_of(sample) for sample in samples]
    order = sorted(set(partitions))
    owner = np.array([order.index(partition) for partition in partitions])
    shape = Shape.of_samples(samples)
    at = coordinates(shape, reach)
    likeness = _likeness(at, at)
    same = owner[:, None] == owner[None, :]
    covariance = (
        _SHARED * likeness
        + _TREND * at @ at.T
        + same * (_LEVEL + _OWN * likeness)
        + _NOISE * np.eye(len(ms))
    )
    target = np.log(ms / alone)
    mean = float(target.mean())
    pull = np.linalg.solve(covariance, target - mean)
    ranges = Ranges.of(shape)
    return {
        partition: Slowdown(
            reach=reach,
            anchors=at,
            weights=pull * (_SHARED + _OWN * (owner == index)),
            trend=_TREND * at.T @ pull,
            level=mean + _LEVEL * float(pull[owner == index].sum()),
            ranges=ranges,
        )
        for index, partition in enumerate(order)
    }


def partition_of(sample: Sample) -> Partition:
    """The partition that a co-run sample ran on."""
    assert sample.mode in ("split", "overlap")
    return (sample.mode, sample.prefill_sms, sample.decode_sms)
