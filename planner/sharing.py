"""What the two phases cost each other when they share the device, fitted to co-run samples.

For each partition that was measured, each phase's time is its solo time at those SM counts
times a slowdown. The slowdown's logarithm is linear in the logarithms of the step's
shape: each partition has its own level and, as far as its samples speak for it, its own slopes;
what they do not say is taken from all partitions of the same kind. SM counts themselves
are never interpolated: a partition without samples does not exist.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np

from nexus.planner.fit import Floats
from nexus.planner.shape import Ranges, Shape
from nexus.profiles.schema import Sample

Kind = Literal["split", "overlap"]
Partition = tuple[Kind, int, int]  # kind, prefill_sms, decode_sms
Solo = Callable[[Partition, Shape], Floats]

_LEVEL_RIDGE = 1e-3
_SHARED_RIDGE = 0.3
_OWN_RIDGE = 3.0
_HUBER = 0.06
_ROUNDS = 5


@dataclass(frozen=True)
class Slowdown:
    """One phase's time in one partition, relative to alone on as many SMs.

    ``coefficients`` (k,) belong to ``features`` (n, k); ``ranges`` are what was measured.
    """

    coefficients: Floats
    ranges: Ranges

    def predict(self, shape: Shape) -> tuple[Floats, Floats]:
        """The factor, and 1.0 where ``shape`` had to be clamped; of the shape's shape."""
        inside, clamped = self.ranges.clamp(shape)
        return np.exp(features(inside) @ self.coefficients), clamped


def features(shape: Shape) -> Floats:
    """Logarithms of a step's shape, near 0 for a usual one; (..., k), the first is 1."""
    batch = np.log(np.maximum(shape.decode_batch, 1.0) / 64.0)
    context = np.log(np.maximum(shape.decode_context, 16.0) / 1024.0)
    chunk = np.log(np.maximum(shape.chunk, 16.0) / 1024.0)
    before = np.log1p(np.maximum(shape.prefill_context, 0.0) / 1024.0)
    columns = [np.ones_like(batch), batch, context, chunk, before, batch**2 / 4.0, batch * context]
    return np.stack(columns, axis=-1)


def fit_slowdowns(samples: Sequence[Sample], ms: Floats, alone: Solo) -> dict[Partition, Slowdown]:
    """One slowdown for each partition in ``samples``, of one kind and one phase.

    ``ms`` (n,) are that phase's times, ``alone`` its solo time.
    """
    partitions = [partition_of(sample) for sample in samples]
    order = sorted(set(partitions))
    shape = Shape.of_samples(samples)
    solo = np.array(
        [
            float(alone(p, Shape.of_samples([s]))[0])
            for p, s in zip(partitions, samples, strict=True)
        ]
    )
    rows = features(shape)
    width = rows.shape[1]
    design = np.zeros((len(samples), width * (len(order) + 1)))
    design[:, 1:width] = rows[:, 1:]
    for index, partition in enumerate(partitions):
        start = width * (1 + order.index(partition))
        design[index, start : start + width] = rows[index]
    own = np.concatenate([[_LEVEL_RIDGE], np.full(width - 1, _OWN_RIDGE)])
    ridge = np.concatenate([np.full(width, _SHARED_RIDGE), np.tile(own, len(order))])
    found = _robust_ridge(design, np.log(ms / solo), ridge)
    slowdowns = {}
    for position, partition in enumerate(order):
        mine = found[width * (position + 1) : width * (position + 2)]
        members = [s for s, p in zip(samples, partitions, strict=True) if p == partition]
        ranges = Ranges.of(Shape.of_samples(members))
        shared = np.concatenate([[0.0], found[1:width]])
        slowdowns[partition] = Slowdown(mine + shared, ranges)
    return slowdowns


def partition_of(sample: Sample) -> Partition:
    """The partition that a co-run sample ran on."""
    assert sample.mode in ("split", "overlap")
    return (sample.mode, sample.prefill_sms, sample.decode_sms)


def _robust_ridge(design: Floats, target: Floats, ridge: Floats) -> Floats:
    """Ridge regression in which large residuals count linearly."""
    weights = np.ones_like(target)
    penalty = np.diag(np.sqrt(ridge) * 0.1)
    found = np.zeros(design.shape[1])
    for _ in range(_ROUNDS):
        system = np.vstack([design * weights[:, None], penalty])
        goal = np.concatenate([target * weights, np.zeros(len(ridge))])
        found = np.linalg.lstsq(system, goal, rcond=None)[0]
        residual = np.abs(design @ found - target)
        weights = np.sqrt(np.minimum(1.0, _HUBER / np.maximum(residual, 1e-12)))
    return np.asarray(found)
