"""Which point next: one of the curve that the planner's model knows least.

Each new sample is predicted from those before it. How far off the prediction was says
how well the model knows that curve (a mode on its SMs); the next point is taken from
the curve that was last predicted worst, and none where every curve is predicted well.
"""

from collections.abc import Sequence

from nexus.core.errors import DocumentError
from nexus.planner.latency.model import fit_model, prediction_errors
from nexus.profiler.points import Point
from nexus.profiles.schema import Profile, Sample

GOOD_ENOUGH = 0.02
PREDICTED_TWICE = 2

Curve = tuple[str, int, int]


class WorstFirst:
    """Keeps, for each curve, how well its latest samples were foretold."""

    def __init__(self) -> None:
        """No curve was predicted yet, so each is as unknown as the others."""
        self._errors: dict[Curve, list[float]] = {}

    def saw(self, profile: Profile, sample: Sample) -> None:
        """Judge the model of ``profile``, which lacks ``sample``, by it."""
        if sample.error is not None:
            return
        try:
            errors = prediction_errors(fit_model(profile), sample)
        except DocumentError:  # too few samples for any model
            return
        if errors:
            self._errors.setdefault(_curve(sample), []).append(max(errors))

    def pick(self, candidates: Sequence[Point]) -> Point | None:
        """The next of ``candidates``, which are in order of need; None when all is known.

        Curves without a prediction come first.
        """
        return max(
            (point for point in candidates if self._unknown(point) > GOOD_ENOUGH),
            key=self._unknown,
            default=None,
        )

    def _unknown(self, point: Point) -> float:
        errors = self._errors.get(_curve(point), [])
        if len(errors) < PREDICTED_TWICE:
            return 1.0
        return sum(errors[-PREDICTED_TWICE:]) / PREDICTED_TWICE


def _curve(of: Point | Sample) -> Curve:
    return of.mode, of.prefill_sms, of.decode_sms
