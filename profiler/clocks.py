"""Which samples were taken under another clock than their neighbours.

A GPU at its power limit lowers its clock within milliseconds, and raises it as late; a
point that follows a very different one can so be measured under that one's clock.
"""

import statistics
from collections import defaultdict
from collections.abc import Iterable

from nexus.profiles.schema import Sample

TOLERANCE = 0.08
NEIGHBOURS = 4


def other_clock(samples: Iterable[Sample]) -> list[Sample]:
    """The samples whose clock is off their neighbours' median by more than 8 %.

    Neighbours are the nearest in load among those of the same mode and SMs.
    """
    series: dict[tuple[str, int, int], list[Sample]] = defaultdict(list)
    for sample in samples:
        if sample.sm_mhz is not None:
            series[(sample.mode, sample.prefill_sms, sample.decode_sms)].append(sample)
    return [
        sample
        for same in series.values()
        for sample in same
        if len(same) > NEIGHBOURS and _is_off(sample, same)
    ]


def _is_off(sample: Sample, same: list[Sample]) -> bool:
    others = sorted(
        (other for other in same if other is not sample),
        key=lambda other: _distance(sample, other),
    )
    usual = statistics.median(other.sm_mhz or 0.0 for other in others[:NEIGHBOURS])
    return abs((sample.sm_mhz or 0.0) / usual - 1.0) > TOLERANCE


def _distance(one: Sample, other: Sample) -> float:
    pairs = (
        (one.chunk, other.chunk),
        (one.prefill_context, other.prefill_context),
        (one.decode_batch, other.decode_batch),
        (one.decode_context, other.decode_context),
    )
    return sum(abs(a - b) / (a + b + 1) for a, b in pairs)
