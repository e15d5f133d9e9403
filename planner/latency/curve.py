"""The time of a step on a fixed number of SMs, as a sum of non-negative physical terms.

- tokens of the step, as a rising piecewise-linear curve that bends at measured values
  (weights and GEMMs: memory-bound first, compute-bound after, and then in whole tiles: on a
  GPU some tokens more than a multiple of the tile cost as much as the next multiple),
- attention of the prefill chunk, ``chunk * (context + chunk / 2)``, and reading its context,
- sequences that decode, their KV tokens and their mean context.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace

import numpy as np

from nexus.core.arrays import Bools, Floats
from nexus.planner.latency.fit import Ramp, fit, knots_of, ramp_columns, ramp_from, smooth_rows
from nexus.planner.latency.shape import Ranges, Shape
from nexus.profiles.schema import Sample

GPU_TILE = 32  # tokens; an H200's matrix products jump at every other multiple, and at some more
_UNTILED = 256  # up to so many tokens, reading the weights takes longest


@dataclass(frozen=True)
class StepCurve:
    """The time of one phase, or of fused steps, on a fixed number of SMs.

    Steps with prompt tokens are computed in multiples of ``tile`` tokens.
    """

    base_ms: float
    prefill_ms: float
    tokens: Ramp
    batch: Ramp
    attention: float
    prefill_context: float
    kv_tokens: float
    decode_context: float
    ranges: Ranges
    tile: int = 1

    @property
    def prompt_terms(self) -> dict[str, float]:
        """What a prompt's context costs, for ``fit_curve`` where all chunks begin prompts."""
        return {"attention": self.attention, "prefill_context": self.prefill_context}

    @property
    def kv_terms(self) -> dict[str, float]:
        """What reading the KV cache costs, for ``fit_curve`` where contexts are all as long."""
        return {"kv_tokens": self.kv_tokens, "decode_context": self.decode_context}

    def predict(self, shape: Shape) -> tuple[Floats, Bools]:
        """Milliseconds, and where ``shape`` is outside of what was measured.

        A phase that is larger than measured is timed as if the rest of it ran in further
        steps of the measured size: it is not assumed to use the device any better. Attention to
        a prompt's context goes on in proportion to it.
        """
        inside, excess = self.ranges.clamp(shape)
        inside = replace(inside, prefill_context=shape.prefill_context * (shape.chunk > 0))
        ms = self._inside(inside)
        if np.any(excess.prefill > 0):
            ms = ms + excess.prefill * self._inside(inside.only_prefill)
        if np.any(excess.decode > 0):
            ms = ms + excess.decode * self._inside(inside.only_decode)
        return ms, self.ranges.outside(shape)

    def _inside(self, shape: Shape) -> Floats:
        return np.asarray(
            self.base_ms
            + self.prefill_ms * (shape.chunk > 0)
            + self.tokens(_computed(shape, self.tile))
            + self.batch(shape.decode_batch)
            + self.attention * shape.chunk * (shape.prefill_context + shape.chunk / 2)
            + self.prefill_context * np.maximum(shape.prefill_context, 0.0)
            + self.kv_tokens * shape.kv_tokens
            + self.decode_context * shape.decode_context
        )


def tiled(tokens: Floats, tile: int) -> Floats:
    """The tokens that a step with ``tokens``, some of them of prompts, computes."""
    return np.where(tokens > _UNTILED, np.ceil(tokens / tile) * tile, tokens)


def _computed(shape: Shape, tile: int) -> Floats:
    total = shape.chunk + shape.decode_batch
    return np.where(shape.chunk > 0, tiled(total, tile), total)


def fit_curve(
    samples: Sequence[Sample],
    ms: Floats,
    weights: Floats,
    ranges: Ranges,
    tile: int = 1,
    known: Mapping[str, float] | None = None,
) -> StepCurve:
    """Fit one curve; ``samples``, ``ms`` and ``weights`` correspond.

    ``known`` are coefficients of other curves, for what these samples cannot tell: a
    ``StepCurve``'s own ``prompt_terms`` and ``kv_terms``.
    """
    shape = Shape.of_samples(samples)
    total = _computed(shape, tile)
    token_knots = knots_of(total)
    batches = shape.decode_batch[shape.chunk > 0] if np.any(shape.chunk > 0) else np.zeros(0)
    batch_knots = np.concatenate([[0.0], knots_of(batches[batches > 0])])
    has_prefill = (shape.chunk > 0).astype(np.float64)
    terms = {
        "attention": shape.chunk * (shape.prefill_context + shape.chunk / 2),
        "prefill_context": shape.prefill_context * has_prefill,
        "kv_tokens": shape.kv_tokens,
        "decode_context": shape.decode_context,
    }
    for name, coefficient in (known or {}).items():
        ms = ms - coefficient * terms[name]
        terms[name] = np.zeros_like(terms[name])
    fixed = np.column_stack([np.ones_like(total), has_prefill, *terms.values()])
    token_columns = ramp_columns(total, token_knots)
    batch_columns = ramp_columns(shape.decode_batch, batch_knots)
    columns = np.hstack([fixed, token_columns, batch_columns])
    regular = _regular(fixed.shape[1], token_knots, batch_knots)
    found = fit(columns, ms, weights, regular)
    split = fixed.shape[1] + token_columns.shape[1]
    base, prefill, *others = map(float, found[: fixed.shape[1]])
    coefficients = {**dict(zip(terms, others, strict=True)), **(known or {})}
    return StepCurve(
        base_ms=base,
        prefill_ms=prefill,
        tokens=ramp_from(token_knots, found[fixed.shape[1] : split]),
        batch=ramp_from(batch_knots, found[split:]),
        attention=coefficients["attention"],
        prefill_context=coefficients["prefill_context"],
        kv_tokens=coefficients["kv_tokens"],
        decode_context=coefficients["decode_context"],
        ranges=ranges,
        tile=tile,
    )


def _regular(fixed: int, token_knots: Floats, batch_knots: Floats) -> Floats:
    tokens, batch = smooth_rows(token_knots), smooth_rows(batch_knots)
    rows = np.zeros((len(tokens) + len(batch), fixed + tokens.shape[1] + batch.shape[1]))
    rows[: len(tokens), fixed : fixed + tokens.shape[1]] = tokens
    rows[len(tokens) :, fixed + tokens.shape[1] :] = batch
    return rows
