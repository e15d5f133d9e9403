"""The highest rate at which a server meets its bounds, found by simulation."""

from dataclasses import dataclass
from math import inf

from nexus.core.machine import Engine
from nexus.core.slo import GOOD_REQUESTS, Bounds
from nexus.planner.latency.steptimes import StepTimes
from nexus.planner.simulator.sequence import EarlyStop
from nexus.planner.simulator.simulate import Run, System, simulate, simulate_while
from nexus.planner.workload.requests import Requests

USUAL_LOAD = 0.8  # of what is sustained: where times are predicted unless a rate is given
_WARM_UP = 0.2
_FIRST_STEP = 0.02  # from a guess that is good, as it is another system's answer
_LEAST = 0.02  # of a guess: a system that does not sustain that sustains nothing


@dataclass(frozen=True)
class Evaluator:
    """The conditions under which systems are compared: the same requests, the same machine.

    A rate is sustained where the share ``goal`` of the requests meets the bounds. Rates are
    found to within ``tolerance``, a share of them.
    """

    times: StepTimes
    limits: Engine
    bounds: Bounds
    requests: Requests
    goal: float = GOOD_REQUESTS
    tolerance: float = 0.02

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
        early_stop = EarlyStop(self.bounds, self._warm_up, int((1.0 - self.goal) * judged))
        run = simulate_while(self.times, self.limits, requests, system, early_stop)
        return run is not None and run.good(self.bounds)[self._warm_up :].mean() >= self.goal

    def goodput(
        self, system: System, guess: float, at_least: float = 0.0, at_most: float = inf
    ) -> float:
        """The highest sustained rate, found from ``guess`` on in growing steps and then halves.

        ``at_least`` is taken as sustained; it is the answer when no rate tried above it is. Rates
        above ``at_most`` are not tried: few requests at once can all be on time.
        """
        guess = max(min(guess, at_most), at_least)
        if guess == at_least or self.sustains(system, guess):
            low, high = self._upwards(system, guess, at_most)
        else:
            low, high = self._downwards(system, guess, at_least)
        while low and high > (1.0 + self.tolerance) * low:
            middle = (low + high) / 2.0
            low, high = (middle, high) if self.sustains(system, middle) else (low, middle)
        return low

    def _upwards(self, system: System, low: float, at_most: float) -> tuple[float, float]:
        """The last of growing rates that is sustained, as ``low`` is, and the first that is not."""
        step = _FIRST_STEP
        while low < at_most:
            high = min(low * (1.0 + step), at_most)
            if not self.sustains(system, high):
                return low, high
            low, step = high, 2.0 * step
        return low, low

    def _downwards(self, system: System, high: float, at_least: float) -> tuple[float, float]:
        """The first of falling rates that is sustained, or 0, and the last that is not."""
        step, least = _FIRST_STEP, max(at_least, _LEAST * high)
        while high > least:
            low = max(high * (1.0 - step), at_least)
            if low == at_least or self.sustains(system, low):
                return low, high
            high, step = low, min(2.0 * step, 0.5)
        return 0.0, high
