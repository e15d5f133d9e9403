"""What to measure: a coarse grid first, then the points between.

The order matters: whatever the time budget cuts off is the least needed. A GPU's coarse grid
holds some points of each kind out, and so does every ``HOLD_OUT``-th refining point, so that a
model's error can be judged on points that it has never seen.
"""

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from typing import Any

from nexus.core.machine import Engine
from nexus.profiles.schema import Sample, SampleMode

HOLD_OUT = 5
HEADROOM = 512  # tokens that a sequence may grow by while it is measured, and rounding

_LEAST_SHARE = 0.45  # of the SMs for prefill: with fewer it is slower than decode needs
_LEAST_DECODE_SMS = 16  # clusters of thread blocks do not run on fewer
_SM_COUNTS = 17  # of each phase's curve against SMs

# Tokens of a fused step, decodes included.
_TOTALS = [256, 384, 512, 768, 1024, 2048]
_FEW_TOTALS = [128, 256, 512, 1024, 2048]
# Matrix products take leaps of up to a quarter from one multiple of 32 tokens to the next.
_EVERY_TOTAL = [*range(64, 640, 32), *range(640, 1024, 64), 1024, 1536, 2048, 4096, 8192]
_MORE_TOTALS = [192, 320, 640, 1536]
_MOST_BESIDE = 2048  # prompt tokens that are left room for beside the fullest decodes

CHUNKS = (16, 32, 64, 128, 256, 512, 1024, 2048, 4096, 8192)
BATCHES = (1, 2, 4, 8, 16, 32, 64, 128, 256, 512)
_LOADS = ((32, 1024), (128, 1024), (64, 4096), (256, 1024))  # decodes, and their context


@dataclass(frozen=True)
class Point:
    """One step, or pair of steps, to be timed; fields as in ``Sample``."""

    mode: SampleMode
    prefill_sms: int
    decode_sms: int
    chunk: int = 0
    prefill_context: int = 0
    decode_batch: int = 0
    decode_context: int = 0
    held_out: bool = False

    @property
    def key(self) -> tuple[str, int, int, int, int, int, int]:
        """As ``Sample.key``."""
        return (
            self.mode,
            self.prefill_sms,
            self.decode_sms,
            self.chunk,
            self.prefill_context,
            self.decode_batch,
            self.decode_context,
        )

    def sample(self, **measured: Any) -> Sample:
        """The sample of this point with what was measured there."""
        return Sample(**vars(self), **measured)


@dataclass(frozen=True)
class Grid:
    """What to measure: ``coarse`` in any case and in this order, ``finer`` as time allows."""

    coarse: tuple[Point, ...]
    finer: tuple[Point, ...]

    @property
    def points(self) -> tuple[Point, ...]:
        """All of them, most needed first."""
        return self.coarse + self.finer

    def on_whole(self, sms: int) -> "Grid":
        """Those of its points that are one step on all ``sms`` of the device."""

        def kept(points: tuple[Point, ...]) -> tuple[Point, ...]:
            solo = [point for point in points if point.mode not in ("split", "overlap")]
            return tuple(p for p in solo if max(p.prefill_sms, p.decode_sms) == sms)

        return Grid(kept(self.coarse), kept(self.finer))


@dataclass(frozen=True)
class Sides:
    """Partitions to measure: prefill's SMs of overlaps, both phases' SMs of splits."""

    overlaps: tuple[int, ...]
    splits: tuple[tuple[int, int], ...]


@dataclass(frozen=True)
class Limits:
    """What a step may have at most: tokens, sequences, KV tokens, context in tokens."""

    tokens: int
    sequences: int
    kv_tokens: int
    context: int

    @classmethod
    def of(cls, engine: Engine, max_model_len: int) -> "Limits":
        """The limits of a running engine."""
        return cls(
            tokens=engine.max_num_batched_tokens,
            sequences=engine.max_num_seqs,
            kv_tokens=engine.kv_tokens,
            context=max_model_len,
        )

    def contexts(self, chunk: int = HEADROOM) -> tuple[int, ...]:
        """Long contexts, each four times the one before, and the longest with ``chunk`` more.

        At least one, which is 1024 where none is longer.
        """
        longest = (min(self.context, self.kv_tokens - HEADROOM) - chunk - 1) // 1024 * 1024
        found = [4096]
        while 4 * found[-1] < longest:
            found.append(4 * found[-1])
        return (*(each for each in found if each < longest), max(longest, 1024))

    def fullest(self, batch: int, beside: int = 0) -> int:
        """The longest context that ``batch`` decodes can all have, or 0.

        A multiple of 128; there is room for ``beside`` prompt tokens in the KV cache.
        """
        room = (self.kv_tokens - HEADROOM - beside) // batch
        return max(0, min(room, self.context - 1) - HEADROOM) // 128 * 128

    def decodes(self, most: int, context: int) -> int:
        """The largest of ``BATCHES`` up to ``most`` of which all can have ``context``, or 1."""
        beside = context + _MOST_BESIDE
        fit = [each for each in BATCHES if each <= most and self.fullest(each, beside) >= context]
        return max(fit, default=1)

    def allow(self, point: Point) -> bool:
        """Whether the engine can run ``point`` at all."""
        rows = point.decode_batch + (1 if point.chunk else 0)
        held = point.prefill_context + point.chunk + HEADROOM
        held += point.decode_batch * (point.decode_context + HEADROOM)
        return (
            point.chunk + point.decode_batch <= self.tokens
            and rows <= self.sequences
            and held <= self.kv_tokens
            and point.prefill_context + point.chunk < self.context
            and (point.decode_batch == 0 or point.decode_context + HEADROOM < self.context)
        )


def core_points(cores: int, limits: Limits, max_chunk: int, max_batch: int) -> Grid:
    """The points of a CPU profile, most needed first.

    All cores get the full grid of prefill, decode and fused steps; smaller core counts
    (quarters of all) a coarse one, since a CPU plan has only fused modes.
    """
    chunks = [chunk for chunk in CHUNKS if chunk <= max_chunk]
    batches = [batch for batch in BATCHES if batch <= max_batch]
    coarse_chunks, coarse_batches = chunks[::2], batches[::2]
    few = slice(1, 3)  # the least that a plan can be made from
    plan = [
        *_solo(cores, coarse_chunks[few], (0,), coarse_batches[few], (128,)),
        *_fused(cores, coarse_chunks[few], coarse_batches[few][:1], (128,), (0,)),
        *_solo(cores, coarse_chunks, (0,), coarse_batches, (128,)),
        *_fused(cores, coarse_chunks, coarse_batches[1:], (128,), (0,)),
        *(
            point
            for count in core_counts(cores)[:-1]
            for point in _solo(count, coarse_chunks[1:3], (0,), coarse_batches[:2], (128,))
        ),
        *_solo(cores, coarse_chunks, (512,), coarse_batches, (512,)),
    ]
    refine = [
        *_solo(cores, chunks, (0,), batches, (128,)),
        *_fused(cores, chunks[1::2], batches[1::2], (128,), (0,)),
        *_fused(cores, coarse_chunks, batches[1::2], (512,), (512,)),
        *_solo(cores, chunks[1::2], (512, 2048), batches[1::2], (512, 2048)),
    ]
    return _first_of_each(plan, refine, limits)


def gpu_points(sizes: Sequence[int], pairs: Sequence[tuple[int, int]], limits: Limits) -> Grid:
    """The points of a GPU profile, most needed first.

    ``sizes`` are the SM counts that one phase can be confined to, all SMs last; ``pairs`` the
    splits, SMs of prefill and of decode. The coarse grid, which takes some five minutes, is
    whole: both phases alone up to the engine's longest context and its fullest KV cache, fused
    steps, shared pairs, points of each kind to judge a model by, and both phases against SM
    count. What is finer follows.
    """
    total = sizes[-1]
    sides = _sides(sizes, pairs)
    fewer = Sides(sides.overlaps[::2], sides.splits[::2])
    counts = _spread(sizes, 8, total, _SM_COUNTS)[:-1]
    long = limits.contexts()
    near, far = long[0], long[len(long) // 2]
    most = max((batch for batch in (*BATCHES, 384) if batch < limits.sequences), default=0)
    fullest = (most, limits.fullest(most, beside=_MOST_BESIDE)) if most else _LOADS[0]
    some_far, some_near = (limits.decodes(32, far), far), (limits.decodes(32, near), near)
    long_loads = (some_far, (limits.decodes(128, near), near), (8, long[-1]), fullest)
    chunks = list(CHUNKS[1:])
    coarse = [
        *_solo(total, chunks, (0,), list(BATCHES), (1024,)),
        *_fused(total, _EVERY_TOTAL, *_load(_LOADS[0]), (0,)),
        *_full_decodes(total, limits),
        *_long_solo(total, limits, [256, 512, 2048, 8192], [1, 8, 32, 64, 128]),
        *(point for load in _LOADS[1:] for point in _fused(total, _TOTALS, *_load(load), (0,))),
        *(p for load in long_loads for p in _fused(total, _FEW_TOTALS, *_load(load), (0,))),
        *_fused(total, [256, 512, 2048], *_load(_LOADS[0]), limits.contexts(2048)),
        *_fused(total, [256, 512, 2048], *_load((8, far)), (far,)),
        *_fused(total, _FEW_TOTALS, *_load(some_near), (far,)),
        *(point for load in _LOADS for point in _shared(total, sides, load, 1024, 0)),
        *_shared(total, fewer, some_far, 1024, 0),
        *_shared(total, fewer, _LOADS[2], 512, 0),
        *_shared(total, fewer, some_near, 512, far),
        *_held_out(total, fewer),
        *(
            point
            for count in counts
            for point in _solo(count, [512, 2048], (0,), [32, 128], (1024,))
        ),
        *_solo(total, [], (), [8, 64, 256, 512], (128,)),
        *_shared(total, fewer, _LOADS[2], 2048, 0),
    ]
    refine = [
        *(point for load in _LOADS for point in _shared(total, sides, load, 2048, 0)),
        *_solo(total, chunks[3:], tuple(long), [1, 8, 16, 32, 64, 128, 256], (128, *long)),
        *(p for load in ((8, 1024), some_near) for p in _shared(total, sides, load, 1024, 0)),
        *_fused(total, [512, 2048], [32, 128], (1024,), tuple(long)),
        *(p for load in _LOADS[1:3] for p in _fused(total, _MORE_TOTALS, *_load(load), (0,))),
        *_fused(total, _TOTALS, [8], (1024,), (0,)),
        *(point for load in _LOADS for point in _shared(total, sides, load, 512, 0)),
        *(point for load in _LOADS for point in _shared(total, sides, load, 1024, 8192)),
        *(point for load in _LOADS for point in _fused(total, [4096, 8192], *_load(load), (0,))),
        *(
            point
            for count in counts
            for point in _solo(count, [256, 1024, 8192], (0,), [8, 256], (1024, 8192))
        ),
    ]
    return _first_of_each(coarse, refine, limits)


def kernel_points(sizes: Sequence[int], limits: Limits) -> list[Point]:
    """One prefill and one decode step per SM count, for their kernels' times."""
    points = [
        point
        for count in _spread(sizes, 8, sizes[-1], _SM_COUNTS)
        for point in _solo(count, [2048], (0,), [128], (1024,))
    ]
    return [point for point in points if limits.allow(point)]


def stock_points(sms: int, shared: Iterable[Sample], limits: Limits) -> list[Point]:
    """Steps of stock vLLM on all ``sms``, beside the decodes and contexts of ``shared`` samples.

    Those of held-out samples are left out.
    """
    fitted = [sample for sample in shared if not sample.held_out]
    loads = sorted({(s.decode_batch, s.decode_context, s.prefill_context) for s in fitted})
    points = [
        point
        for batch, context, before in loads
        for point in _fused(sms, _FEW_TOTALS, [batch], (context,), (before,))
    ]
    return [point for point in points if limits.allow(point)]


def _sides(sizes: Sequence[int], pairs: Sequence[tuple[int, int]]) -> Sides:
    """Nine overlaps, and every split, that leave each phase enough SMs."""
    total = sizes[-1]
    overlaps = _spread(sizes, round(_LEAST_SHARE * total), total - 1, 9)
    least = overlaps[0] if overlaps else total
    splits = [pair for pair in pairs if pair[0] >= least and pair[1] >= _LEAST_DECODE_SMS]
    return Sides(tuple(overlaps), tuple(splits))


def _full_decodes(total: int, limits: Limits) -> Iterator[Point]:
    """Decodes that together fill the KV cache, or are all as long as can be."""
    for batch in BATCHES:
        context = limits.fullest(batch)
        if context:
            yield Point("decode", 0, total, decode_batch=batch, decode_context=context)


def _long_solo(
    total: int, limits: Limits, chunks: Sequence[int], batches: Sequence[int]
) -> Iterator[Point]:
    """Each phase alone with each longer context; decode has its longest in ``_full_decodes``."""
    for chunk in chunks:
        for context in limits.contexts(chunk):
            yield Point("prefill", total, 0, chunk, context)
    for context in limits.contexts()[:-1]:
        for batch in batches:
            yield Point("decode", 0, total, decode_batch=batch, decode_context=context)


def _held_out(total: int, sides: Sides) -> Iterator[Point]:
    """Points of each kind, between those that a model is fitted to; all of them held out."""
    shapes = [
        *_solo(total, [96, 384, 768, 1536, 3072], (0,), [24, 48, 96, 192], (768, 1536)),
        *_solo(total, [768, 1536], (2048, 8192), [6, 12, 24], (8192, 12288)),
        *_fused(total, [160, 288, 416, 672, 1280], [24, 96], (768, 2048), (0,)),
        *_fused(total, [352, 896], [12], (8192,), (0, 2048)),
        *(p for load in ((64, 768), (128, 2048)) for p in _shared(total, sides, load, 768, 0)),
    ]
    return (replace(point, held_out=True) for point in shapes)


def _load(load: tuple[int, int]) -> tuple[list[int], tuple[int]]:
    batch, context = load
    return [batch], (context,)


def _shared(
    total: int, sides: Sides, load: tuple[int, int], chunk: int, context: int
) -> Iterator[Point]:
    """Each overlap, and each split, of a decode load with chunks at a context."""
    batch, decode_context = load
    for prefill in sides.overlaps:
        yield Point("overlap", prefill, total, chunk, context, batch, decode_context)
    for prefill, decode in sides.splits:
        yield Point("split", prefill, decode, chunk, context, batch, decode_context)


def _spread(sizes: Sequence[int], least: int, most: int, count: int) -> list[int]:
    """At most ``count`` of ``sizes`` from ``least`` to ``most``, evenly, the ends included."""
    inside = [size for size in sizes if least <= size <= most]
    if len(inside) <= count:
        return inside
    step = (len(inside) - 1) / (count - 1)
    return [inside[round(step * index)] for index in range(count)]


def core_counts(cores: int) -> list[int]:
    """Quarters of ``cores``, without repeats, ending with all of them."""
    return sorted({max(1, cores * quarter // 4) for quarter in (1, 2, 3, 4)})


def _solo(
    sms: int,
    chunks: list[int],
    contexts: tuple[int, ...],
    batches: list[int],
    decode_contexts: tuple[int, ...],
) -> Iterator[Point]:
    for context in contexts:
        for chunk in chunks:
            yield Point("prefill", sms, 0, chunk=chunk, prefill_context=context)
    for context in decode_contexts:
        for batch in batches:
            yield Point("decode", 0, sms, decode_batch=batch, decode_context=context)


def _fused(
    sms: int,
    totals: list[int],
    batches: list[int],
    decode_contexts: tuple[int, ...],
    prefill_contexts: tuple[int, ...],
) -> Iterator[Point]:
    """Steps of ``totals`` tokens, decodes included, where those leave prompts any."""
    for decode_context in decode_contexts:
        for prefill_context in prefill_contexts:
            for batch in batches:
                for chunk in (total - batch for total in totals if total > batch):
                    yield Point("fused", sms, sms, chunk, prefill_context, batch, decode_context)


def _first_of_each(coarse: list[Point], refine: list[Point], limits: Limits) -> Grid:
    """What ``limits`` allow, once each; of finer points every ``HOLD_OUT``-th is held out.

    Coarse points are held out only beside others of their mode and SMs, which a model is fitted to.
    """
    seen = set()
    points = []
    fitted = {point.key[:3] for point in coarse if not point.held_out and limits.allow(point)}
    for point in coarse:
        useful = not point.held_out or point.key[:3] in fitted
        if point.key not in seen and limits.allow(point) and useful:
            seen.add(point.key)
            points.append(point)
    finer: list[Point] = []
    for point in refine:
        if point.key not in seen and limits.allow(point):
            seen.add(point.key)
            held_out = len(finer) % HOLD_OUT == HOLD_OUT - 1
            finer.append(replace(point, held_out=held_out))
    return Grid(tuple(points), tuple(finer))
