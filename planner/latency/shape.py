"""The shape of a step, and the ranges of shapes that were measured."""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np

from nexus.core.arrays import Bools, Floats
from nexus.profiles.schema import Sample


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
    def only_prefill(self) -> "Shape":
        """The same steps without their decodes."""
        nothing = np.zeros_like(self.chunk)
        return replace(self, decode_batch=nothing, decode_context=nothing)

    @property
    def only_decode(self) -> "Shape":
        """The same steps without their prefill."""
        nothing = np.zeros_like(self.chunk)
        return replace(self, chunk=nothing, prefill_context=nothing)

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

    def clamp(self, shape: Shape) -> tuple[Shape, "Excess"]:
        """``shape`` brought into the ranges, and by how much it was too large.

        Below the smallest measured chunk or batch a step is timed as that one: small steps
        cost what the smallest does. Contexts beyond the longest are timed as that one.
        """
        prefill, decode = shape.chunk > 0, shape.decode_batch > 0
        chunk = np.where(prefill, np.clip(shape.chunk, *self.chunk), 0.0)
        context = np.where(prefill, np.minimum(shape.prefill_context, self.prefill_context[1]), 0.0)
        batch = np.where(decode, np.clip(shape.decode_batch, *self.decode_batch), 0.0)
        kv = np.minimum(shape.kv_tokens, self.kv_tokens[1])
        longer = shape.chunk / np.maximum(chunk, 1.0)
        wider = shape.decode_batch / np.maximum(batch, 1.0)
        fuller = shape.kv_tokens / np.maximum(kv, 1.0)
        excess = Excess(
            np.maximum(longer - 1.0, 0.0), np.maximum(np.maximum(wider, fuller) - 1.0, 0.0)
        )
        return Shape(chunk, context, batch, kv / np.maximum(batch, 1.0)), excess

    def outside(self, shape: Shape) -> Bools:
        """Where ``shape`` is larger than anything measured."""
        _, excess = self.clamp(shape)
        further = (shape.chunk > 0) & (shape.prefill_context > self.prefill_context[1])
        return (excess.prefill > 0) | (excess.decode > 0) | further


@dataclass(frozen=True)
class Excess:
    """How much more of each phase there is than was ever measured: 0.5 is half as much again."""

    prefill: Floats
    decode: Floats


def _span(values: Floats) -> tuple[float, float]:
    return (float(values.min()), float(values.max())) if values.size else (0.0, 0.0)
