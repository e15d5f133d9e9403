"""Which rate to measure next, so that goodput becomes a measured crossing.

Rates lie on one geometric grid for all systems, so that their cells share the same
requests: half octaves apart while the crossing is being bracketed, then bisected down to
neighbours.
"""

import math
from collections.abc import Mapping

from pydantic.dataclasses import dataclass

from nexus.benchmarks.metrics import GOOD_SHARE
from nexus.profiles.schema import STRICT

STEPS_PER_OCTAVE = 16  # neighbours are 4.4 % apart
_STRIDE = 8
_OCTAVES = 5  # how far below its start the search gives up


@dataclass(frozen=True, config=STRICT)
class Crossing:
    """Goodput as measured; rates in requests per second.

    ``goodput`` is the highest measured rate that is sustained (0: none was), ``above``
    the lowest measured rate over it that is not (null: none was found), ``estimate``
    where attainment falls through the required share between the two, by a straight line.
    """

    goodput: float
    above: float | None
    estimate: float

    @property
    def found(self) -> bool:
        """Whether the two are neighbours on the grid, or nothing at all is sustained."""
        if self.above is None:
            return False
        return self.goodput == 0.0 or index_of(self.above) - index_of(self.goodput) <= 1


def index_of(rate: float) -> int:
    """The grid point nearest to ``rate``."""
    return round(STEPS_PER_OCTAVE * math.log2(rate))


def rate_at(index: int) -> float:
    """The rate of a grid point, to four digits."""
    return float(f"{2 ** (index / STEPS_PER_OCTAVE):.4g}")


def on_grid(rate: float) -> float:
    """The grid's rate nearest to ``rate``."""
    return rate_at(index_of(rate))


def crossing(attained: Mapping[float, float]) -> Crossing:
    """Where attainment, a share for each measured rate, falls below what goodput needs."""
    good = max((rate for rate, share in attained.items() if share >= GOOD_SHARE), default=0.0)
    above = min((rate for rate in attained if rate > good), default=None)
    if good == 0.0 or above is None:
        return Crossing(good, above, good)
    fall = attained[good] - attained[above]
    part = (attained[good] - GOOD_SHARE) / fall
    return Crossing(good, above, round(good + part * (above - good), 4))


def next_rate(attained: Mapping[float, float], start: float) -> float | None:
    """The rate to measure next; None when the crossing is found, or given up.

    ``start`` is a guess at it, for a system of which nothing was measured.
    """
    seen = {index_of(rate): share for rate, share in attained.items()}
    if not seen:
        return on_grid(start)
    good = max((index for index, share in seen.items() if share >= GOOD_SHARE), default=None)
    if good is None:
        lowest = min(seen)
        if lowest <= index_of(start) - _OCTAVES * STEPS_PER_OCTAVE:
            return None
        return rate_at(lowest - _STRIDE)
    above = min((index for index in seen if index > good), default=None)
    if above is None:
        return rate_at(good + _STRIDE)
    if above - good <= 1:
        return None
    return rate_at((good + above) // 2)
