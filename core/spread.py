"""Mean and percentiles of one quantity."""

from collections.abc import Sequence

import numpy as np
from pydantic.dataclasses import dataclass

from nexus.core.arrays import Floats
from nexus.core.io.documents import STRICT


def percentile(values: Sequence[float] | Floats, percent: float) -> float:
    """The ``percent``-th percentile of ``values``, interpolated between the two nearest.

    There must be at least one value.
    """
    return float(np.percentile(values, percent))


@dataclass(frozen=True, config=STRICT)
class Spread:
    """In the quantity's own unit, to three digits after the point."""

    mean: float
    p50: float
    p95: float
    p99: float

    @classmethod
    def of(cls, values: Floats) -> "Spread | None":
        """Of values of shape (n,); None when there are none."""
        if len(values) == 0:
            return None
        parts = (float(values.mean()), *(percentile(values, percent) for percent in (50, 95, 99)))
        return cls(*(round(part, 3) for part in parts))

    def __str__(self) -> str:
        """One line."""
        return (
            f"mean {self.mean:9.2f}  p50 {self.p50:9.2f}  p95 {self.p95:9.2f}  p99 {self.p99:9.2f}"
        )
