"""Non-negative fits in relative error, and the ramps that they are made of."""

from dataclasses import dataclass

import numpy as np
from scipy.optimize import nnls

from nexus.core.arrays import Floats

_HUBER = 0.05  # relative errors beyond this count linearly, so that one bad sample cannot pull
_ROUNDS = 4
_SMOOTH = 0.02  # weight of "slopes of neighbouring ramps are alike" against one sample
_CLOSE = 1.02  # knots nearer than this ratio are one


@dataclass(frozen=True)
class Ramp:
    """A rising piecewise-linear function, flat outside its knots.

    ``knots`` increase; ``values`` (as many, never falling) are in ms.
    """

    knots: Floats
    values: Floats

    def __call__(self, x: Floats | float) -> Floats:
        """The value at ``x``, of any shape."""
        return np.asarray(np.interp(x, self.knots, self.values))


def knots_of(values: Floats, most: int = 64) -> Floats:
    """Where a ramp may bend: at the measured values, at most ``most`` of them."""
    distinct: list[float] = []
    for value in np.unique(values):
        if not distinct or value > distinct[-1] * _CLOSE:
            distinct.append(float(value))
    if len(distinct) > most:
        keep = np.unique(np.linspace(0, len(distinct) - 1, most).round().astype(int))
        distinct = [distinct[index] for index in keep]
    return np.array(distinct)


def ramp_columns(x: Floats, knots: Floats) -> Floats:
    """One column a segment: how far ``x`` has come in it, in units of ``x``.

    ``x`` has shape (n,), the result (n, len(knots) - 1). With non-negative slopes as
    coefficients their sum is a rising piecewise-linear function that is 0 at the first knot.
    """
    low, high = knots[:-1], knots[1:]
    return np.clip(x[:, None], low, high) - low


def ramp_from(knots: Floats, slopes: Floats) -> Ramp:
    """The ramp that ``slopes`` of ``ramp_columns`` describe."""
    return Ramp(knots, np.concatenate([[0.0], np.cumsum(slopes * np.diff(knots))]))


def smooth_rows(knots: Floats) -> Floats:
    """Rows that ask the slopes of neighbouring segments to be alike, as ``fit`` takes them."""
    widths = np.diff(knots)
    rows = np.zeros((max(len(widths) - 1, 0), len(widths)))
    for index in range(len(rows)):
        # In ms: what the difference of the two slopes makes over the shorter segment.
        reach = _SMOOTH * min(widths[index], widths[index + 1])
        rows[index, index], rows[index, index + 1] = -reach, reach
    return rows


def fit(columns: Floats, ms: Floats, weights: Floats, regular: Floats) -> Floats:
    """Non-negative coefficients of ``columns`` (n, k) that give ``ms`` (n,).

    Least squares of relative errors, each sample counting ``weights``, with large errors
    damped (Huber, by reweighting). ``regular`` (m, k) are rows that should come to 0,
    in ms.
    """
    scale = np.maximum(np.abs(columns / ms[:, None]).max(axis=0), 1e-300)
    typical = float(np.median(ms))
    penalty = regular / typical / scale
    damping = np.ones_like(ms)
    solution = np.zeros(columns.shape[1])
    for _ in range(_ROUNDS):
        row_weights = (weights * damping)[:, None]
        system = np.vstack([columns / ms[:, None] / scale * row_weights, penalty])
        target = np.concatenate([row_weights[:, 0], np.zeros(len(penalty))])
        solution, _ = nnls(system, target, maxiter=50 * system.shape[1])
        error = np.abs(columns @ (solution / scale) / ms - 1.0)
        damping = np.sqrt(np.minimum(1.0, _HUBER / np.maximum(error, 1e-12)))
    return np.asarray(solution / scale)
