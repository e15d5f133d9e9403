"""A plan served in virtual time: ``nexus simulate``."""

from dataclasses import dataclass, replace

import numpy as np

from nexus.core.errors import MismatchError
from nexus.core.plan import Plan
from nexus.core.prefill.late_share import DEFAULT_LATE_SHARE
from nexus.core.prefill.ranking import DEFAULT_ORDER, PrefillOrder
from nexus.planner.latency.model import fit_model
from nexus.planner.latency.steptimes import StepTimes
from nexus.planner.search.goodput import USUAL_LOAD, Evaluator
from nexus.planner.simulator.idle import IdleServer
from nexus.planner.simulator.metrics import Metrics, Waits
from nexus.planner.simulator.simulate import Run, System
from nexus.planner.workload.requests import Lengths, Requests, longest_request, poisson
from nexus.profiles.schema import Profile

_CURVE_LOADS = (0.25, 0.5, 0.7, 0.8, 0.9, 1.0, 1.1, 1.25)
_CURVE_REQUESTS = 2000


@dataclass(frozen=True)
class Replay:
    """One system's run, its metrics, and its attainment at rates around its capacity.

    ``curve`` holds (requests per second, share of requests within both bounds).
    """

    system: str
    run: Run
    metrics: Metrics
    waits: Waits
    curve: tuple[tuple[float, float], ...]

    def lines(self) -> list[str]:
        """What a terminal shows."""
        seen, waits, cached = self.metrics, self.waits, self.run.cached_share
        one_token = not self.run.gaps_s.size
        return [
            f"{self.system} at {seen.rate_per_s:.3g} requests/s: {len(self.run.arrivals_s)} "
            f"requests in {self.run.end_s:.1f} s of virtual time",
            f"  TTFT ms        {waits.ttft_ms}",
            f"    longest 10%  {waits.ttft_longest_ms}",
            f"  slowdown       {waits.slowdown}",
            f"    longest 10%  {waits.slowdown_longest}",
            *([] if one_token else [f"  TBT ms         {seen.tbt_ms}"]),
            *([] if one_token else [f"  TPOT ms        {seen.tpot_ms}"]),
            f"  normalized ms  {seen.normalized_ms}",
            f"  throughput     {seen.requests_per_s:.3g} requests/s, "
            f"{seen.output_tokens_per_s:.4g} output tokens/s, {seen.preemptions} preemptions",
            *([f"  prefix cache   {cached:.1%} of the prompt tokens"] if cached else []),
            f"  within bounds  {seen.attainment:.1%}",
            *(
                f"  at {rate:8.3g} requests/s  {share:6.1%} within bounds"
                for rate, share in self.curve
            ),
        ]


def plan_system(
    plan: Plan,
    order: PrefillOrder = DEFAULT_ORDER,
    late_share: float = DEFAULT_LATE_SHARE,
) -> System:
    """A server that follows ``plan``; stock engines under MPS know no order but first come."""
    if plan.shares is not None:
        (mode,) = plan.modes.values()
        return System("plan", mode, order="fcfs", shares=plan.shares)
    return System("plan", plan=plan, order=order, late_share=late_share)


def replay(
    profile: Profile,
    plan: Plan,
    requests: Requests | Lengths,
    rate_per_s: float | None = None,
    *,
    systems: tuple[System, ...] = (),
    num_requests: int = 10_000,
    curve: bool = True,
    record: bool = False,
    force: bool = False,
) -> list[Replay]:
    """Serve ``requests`` (or Poisson arrivals of ``Lengths``) with ``plan`` and ``systems``.

    ``rate_per_s`` scales the arrivals; None keeps a trace's own, and takes 80 % of the plan's
    capacity for lengths alone. ``systems`` are evaluated beside the plan; without any, the plan is
    alone. ``record`` keeps each step for a Chrome trace. Raises MismatchError when the plan was
    made from another profile, unless ``force``.
    """
    if plan.profile_hash != profile.hash and not force:
        raise MismatchError(
            f"the plan was made from profile {plan.profile_hash}, not from this one "
            f"({profile.hash}); --force to go on"
        )
    served = _arrivals(requests, num_requests, plan, rate_per_s, longest_request(profile))
    times = StepTimes(fit_model(profile))
    evaluator = Evaluator(times, plan.engine, plan.bounds, served)
    idle = IdleServer.of(times, plan.engine, int(served.lengths.inputs.max()))
    evaluated, rate = [], served.per_s or 1.0
    for system in systems or (plan_system(plan),):
        run = evaluator.evaluate(system, rate, record)
        metrics = Metrics.of(run, rate, plan.bounds)
        points = _curve(evaluator, system, plan) if curve else ()
        evaluated.append(Replay(system.name, run, metrics, Waits.of(run, idle), points))
    return evaluated


def _arrivals(
    requests: Requests | Lengths, count: int, plan: Plan, rate_per_s: float | None, most: int
) -> Requests:
    if isinstance(requests, Lengths):
        usual = USUAL_LOAD * (plan.prediction.capacity_per_s or plan.prediction.limit_per_s or 1.0)
        arriving = poisson(requests.cut_to(most), count)
        return arriving.at_rate(rate_per_s or usual)
    arriving = requests.window(0, count)
    arriving = replace(arriving, lengths=arriving.lengths.cut_to(most))
    if rate_per_s is None:
        return replace(arriving, arrivals_s=arriving.arrivals_s - arriving.arrivals_s[0])
    return arriving.at_rate(rate_per_s)


def _curve(evaluator: Evaluator, system: System, plan: Plan) -> tuple[tuple[float, float], ...]:
    """Attainment over all requests at rates around the plan's capacity."""
    said = plan.prediction
    around = said.capacity_per_s or said.limit_per_s or evaluator.requests.per_s or 1.0
    few = replace(evaluator, requests=evaluator.requests.window(0, _CURVE_REQUESTS))
    rates = np.array(_CURVE_LOADS) * around
    return tuple(
        (float(rate), few.evaluate(system, float(rate)).attainment(evaluator.bounds))
        for rate in rates
    )
