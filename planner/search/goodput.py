"""The highest rate at which a server meets its bounds, found by simulation."""

from dataclasses import dataclass

from nexus.core.machine import Engine
from nexus.core.slo import GOOD_REQUESTS, Bounds
from nexus.planner.latency.steptimes import StepTimes
from nexus.planner.simulator.sequence import EarlyStop
from nexus.planner.simulator.simulate import Run, System, simulate, simulate_while
from nexus.planner.workload.requests import Requests

USUAL_LOAD = 0.8  # of what is sustained: where times are predicted unless a rate is given
_HALVINGS = 5
_FIRST_GUESS = 0.8
_WARM_UP = 0.2


@dataclass(frozen=True)
class Evaluator:
    """The conditions under which systems are compared: the same requests, the same machine."""

    times: StepTimes
    limits: Engine
    bounds: Bounds
    requests: Requests

    def evaluate(self, system: System, per_s: float, record: bool = False) -> Run:
        """Serve the requests at ``per_s``."""
        return simulate(self.times, self.limits, self.requests.at_rate(per_s), system, record)

    def attainment(self, system: System, per_s: float) -> float:
        """The share of requests that meet both bounds at ``per_s``, once it is under way.

        The first ones meet an empty server and are left out.
        """
        good = self.evaluate(system, per_s).good(self.bounds)
        return float(good[self._warm_up :].mean())

    @property
    def _warm_up(self) -> int:
        return int(_WARM_UP * len(self.requests.arrivals_s))

    def sustains(self, system: System, per_s: float) -> bool:
        """Whether enough requests meet both bounds at ``per_s``."""
        requests = self.requests.at_rate(per_s)
        judged = len(requests.arrivals_s) - self._warm_up
        most = int((1.0 - GOOD_REQUESTS) * judged)
        early_stop = EarlyStop(self.bounds, self._warm_up, most)
        run = simulate_while(self.times, self.limits, requests, system, early_stop)
        return run is not None and run.good(self.bounds)[self._warm_up :].mean() >= GOOD_REQUESTS

    def goodput(self, system: System, at_least: float, at_most: float) -> float:
        """The highest sustained rate between the two, by bisection.

        ``at_least`` is taken as sustained; it is the answer when no rate tried above it is.
        """
        low, high = at_least, at_most
        for step in range(_HALVINGS):
            # Most systems sustain most of what they can, and slow rates take longest to try.
            middle = low + (high - low) * (_FIRST_GUESS if step == 0 else 0.5)
            low, high = (middle, high) if self.sustains(system, middle) else (low, middle)
        return low
