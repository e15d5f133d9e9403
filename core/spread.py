"""Mean and percentiles of one quantity."""

import numpy as np
from pydantic.dataclasses import dataclass

from nexus.core.arrays import Floats
from nexus.core.io.documents import STRICT

QUANTILES = (50.0, 95.0, 99.0)


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
        quantiles = np.percentile(values, QUANTILES)
        return cls(*(round(float(v), 3) for v in (values.mean(), *quantiles)))

    def __str__(self) -> str:
        """One line."""
        return (
            f"mean {self.mean:9.2f}  p50 {self.p50:9.2f}  p95 {self.p95:9.2f}  p99 {self.p99:9.2f}"
        )
