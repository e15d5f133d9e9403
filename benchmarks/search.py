"""Which rate to measure next, so that goodput becomes a measured crossing.

Rates lie on one geometric grid for all systems, so that their cells share the same
requests. A search begins where the crossing is expected, goes from there in strides that
double while the crossing is not bracketed, and bisects down to neighbours.
"""

import math
from collections.abc import Mapping

from pydantic.dataclasses import dataclass

from nexus.core.io.documents import STRICT
from nexus.core.slo import GOOD_REQUESTS

STEPS_PER_OCTAVE = 12  # neighbours are 5.9 % apart
_OCTAVES = 5  # how far below its start the search gives up
_WIDE = 4  # a bracket of more steps is tried where the crossing is expected, if that is inside
_LONGEST = 8  # stride


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

    @property
    def at_least(self) -> float:
        """What goodput is surely not below, as far as was measured."""
        return self.estimate if self.found else self.goodput

    @property
    def at_most(self) -> float | None:
        """What goodput is surely not above; None where nothing says."""
        return self.estimate if self.found and self.goodput else self.above

    def __str__(self) -> str:
        """Such as ``16.3``, ``8 to 16``, ``≥ 16`` and ``< 2``; in requests per second."""
        if self.above is None:
            return f"≥ {self.goodput:.3g}"
        if self.goodput == 0.0:
            return f"< {self.above:.3g}"
        return f"{self.estimate:.3g}" if self.found else f"{self.goodput:.3g} to {self.above:.3g}"


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
    good = max((rate for rate, share in attained.items() if share >= GOOD_REQUESTS), default=0.0)
    above = min((rate for rate in attained if rate > good), default=None)
    if good == 0.0 or above is None:
        return Crossing(good, above, good)
    fall = attained[good] - attained[above]
    part = (attained[good] - GOOD_REQUESTS) / fall
    return Crossing(good, above, round(good + part * (above - good), 4))


def next_rate(attained: Mapping[float, float], start: float) -> float | None:
    """The rate to measure next; None when the crossing is found, or given up.

    ``start`` is where it is expected.
    """
    seen = {index_of(rate): share for rate, share in attained.items()}
    expected = index_of(start)
    good = max((index for index, share in seen.items() if share >= GOOD_REQUESTS), default=None)
    above = min((index for index in seen if good is None or index > good), default=None)
    if good is not None and above is not None:
        if above - good <= 1:
            return None
        if above - good > _WIDE and good < expected < above:
            return rate_at(expected)
        return rate_at((good + above) // 2)
    if above is not None:  # nothing that was measured is sustained
        if above <= expected - _OCTAVES * STEPS_PER_OCTAVE:
            return None
        return rate_at(min(expected, above - _stride(expected - above)))
    if good is not None:
        return rate_at(max(expected, good + _stride(good - expected)))
    return rate_at(expected)


def _stride(gone: int) -> int:
    """The next stride after so many grid points away from where the search began."""
    return min(max(gone, 0) + 1, _LONGEST)
