"""What to measure under MPS: which engines run together, and which steps they run.

An engine keeps its share of the SMs until it ends, so that every share is a start of an
engine. Rounds are chosen so that few starts give many pairs, and pairs are those whose
SM counts a profile under green contexts has too.
"""

from collections.abc import Iterable, Iterator
from dataclasses import dataclass, replace
from typing import Literal

from nexus.profiler.points import Limits, Point

Role = Literal["prefill", "decode"]

_GROUP = 8  # SMs: of green contexts
_DECODE_SHARES = (0.25, 0.36, 0.48)  # of the SMs, prefill has the rest


@dataclass(frozen=True, order=True)
class EngineSpec:
    """One engine: its phase and the SMs that it is confined to (cores on a CPU)."""

    role: Role
    sms: int


@dataclass(frozen=True)
class Round:
    """Engines that run at the same time; each prefill one is paired with each decode one.

    SM counts that are given twice, as a small GPU has them, count once.
    """

    prefill: tuple[int, ...]
    decode: tuple[int, ...]

    @property
    def specs(self) -> tuple[EngineSpec, ...]:
        """Its engines."""
        decode = (EngineSpec("decode", sms) for sms in self.decode)
        prefill = (EngineSpec("prefill", sms) for sms in self.prefill)
        return tuple(dict.fromkeys((*decode, *prefill)))


@dataclass(frozen=True)
class Loads:
    """Steps worth measuring, as in a profile under green contexts.

    ``chunks`` of prefill on the whole device, ``few_chunks`` on part of it, ``paired`` beside
    decode (most needed first); (batch, context) ``loads`` of decode; prefill ``contexts``.
    """

    chunks: tuple[int, ...]
    few_chunks: tuple[int, ...]
    paired: tuple[int, ...]
    loads: tuple[tuple[int, int], ...]
    contexts: tuple[int, ...]


GPU_LOADS = Loads(
    chunks=(128, 256, 512, 1024, 2048, 4096, 8192),
    few_chunks=(512, 1024, 2048),
    paired=(1024, 2048, 512),
    loads=((32, 1024), (128, 1024), (64, 4096), (256, 1024), (8, 1024)),
    contexts=(8192,),
)
CORE_LOADS = Loads(
    chunks=(16, 32, 64, 128),
    few_chunks=(32, 128),
    paired=(128, 32),
    loads=((8, 128), (2, 128)),
    contexts=(),
)


def gpu_rounds(total: int) -> tuple[Round, ...]:
    """Four rounds, of at most three engines each, that start eight in all.

    The first has no caps that do not overlap: all SMs, and most of them, beside decode on all.
    Then come three splits, and what lies between them.
    """
    decodes = [_GROUP * max(1, round(share * total / _GROUP)) for share in _DECODE_SHARES]
    small, middle, large = (total - sms for sms in decodes)
    return (
        Round((total, small), (total,)),
        Round((small, middle), (total - small,)),
        Round((middle, large), (total - middle,)),
        Round((middle, large), (total - large,)),
    )


def core_rounds(total: int) -> tuple[Round, ...]:
    """Two engines on all cores, then each on its half."""
    if total < 2:
        return (Round((total,), (total,)),)
    return (Round((total,), (total,)), Round((total - total // 2,), (total // 2,)))


def solo_points(spec: EngineSpec, total: int, loads: Loads) -> Iterator[Point]:
    """What ``spec`` does alone; more of it on the whole device."""
    sms = spec.sms
    if spec.role == "prefill":
        for chunk in loads.chunks if sms == total else loads.few_chunks:
            yield Point("prefill", sms, 0, chunk)
        for context in loads.contexts:
            yield Point("prefill", sms, 0, loads.paired[0], context)
        return
    for batch, context in loads.loads:
        yield Point("decode", 0, sms, decode_batch=batch, decode_context=context)


def fused_points(total: int, loads: Loads) -> Iterator[Point]:
    """Steps of both phases on the whole device: what one stock engine would do instead."""
    for batch, context in loads.loads[:4]:
        for chunk in loads.few_chunks:
            yield Point("fused", total, total, chunk, 0, batch, context)


def pair_points(prefill_sms: int, decode_sms: int, total: int, loads: Loads) -> list[Point]:
    """Both phases at once, most needed first.

    Decode on all SMs is an overlap; else both have caps, which may add up to more than there are.
    """
    mode: Literal["split", "overlap"] = "overlap" if decode_sms == total else "split"
    shapes = [
        *((chunk, 0, load) for chunk in loads.paired for load in loads.loads[:4]),
        *(
            (loads.paired[0], context, load)
            for context in loads.contexts
            for load in loads.loads[:3]
        ),
    ]
    return [
        Point(mode, prefill_sms, decode_sms, chunk, before, *load) for chunk, before, load in shapes
    ]


def allowed(points: Iterable[Point], prefill: Limits, decode: Limits) -> list[Point]:
    """Those of which each engine can run its part."""
    return [
        point
        for point in points
        if prefill.allow(replace(point, decode_batch=0, decode_context=0))
        and decode.allow(replace(point, chunk=0, prefill_context=0))
    ]
