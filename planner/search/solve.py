"""From a profile, bounds and a workload to a plan."""

from dataclasses import replace
from datetime import UTC, datetime

import numpy as np

from nexus.core.errors import DocumentError, InfeasibleError, UserError
from nexus.core.io.documents import Provenance
from nexus.core.machine import Engine
from nexus.core.plan import Plan, Workload
from nexus.core.slo import Bounds
from nexus.planner.latency.frontier import fused_modes, shared_modes
from nexus.planner.latency.model import fit_model
from nexus.planner.latency.steptimes import StepTimes
from nexus.planner.search.choice import rows_of_one
from nexus.planner.search.draft import Draft, PlanPolicy, axes_of
from nexus.planner.search.feasible import require_feasible
from nexus.planner.search.goodput import Evaluator
from nexus.planner.search.paper import paper_modes, paper_rows
from nexus.planner.search.plan_search import Evaluation, PlanSearch
from nexus.planner.search.predict import predict
from nexus.planner.search.problem import Problem
from nexus.planner.simulator.simulate import System, usual_hits
from nexus.planner.workload.requests import Lengths, Requests, lengths_of, longest_request, poisson
from nexus.profiles.schema import Profile

ASSUMED = Workload(source="assumed", input_tokens=512.0, output_tokens=128.0)

_RETRIAL = 2  # times as many requests
_TRACED = 2  # times as many with a trace's arrivals
_BETTER = 1.01  # a single mode must sustain this much more than the table to replace it
_MOST_REQUESTS, _FEWEST_REQUESTS, _MOST_TOKENS = 500, 200, 100_000


def make_plan(
    profile: Profile,
    bounds: Bounds,
    workload: Workload | Lengths | Requests = ASSUMED,
    *,
    policy: PlanPolicy = "nexus",
    max_partitions: int = 4,
    rate: float | None = None,
    command: str = "",
    created: str | None = None,
) -> Plan:
    """The best plan for ``workload`` under ``bounds`` on the profiled machine.

    ``workload`` gives prompt and output lengths; plans are judged with a trace's own arrivals,
    brought to each rate, and else with random ones.
    ``policy``: ``nexus`` optimises, and becomes one fixed mode where that is better;
    ``nexus-paper`` is the paper's greedy rule; ``fixed`` is the best single mode.
    ``rate`` (requests per second) is where TTFT and TBT are predicted; ``max_partitions`` is
    how many SM partitions the plan may use. Raises InfeasibleError when no mode can meet the
    bounds, DocumentError when the profile has too few samples, UserError when it was measured
    under MPS, where no plan can change the shares.
    """
    if profile.partitioner == "mps":
        raise UserError("the profile was measured under MPS: --partitioner mps plans from it")
    provenance = Provenance(
        created=created or datetime.now(UTC).isoformat(timespec="seconds"),
        command=command,
        software=dict(profile.provenance.software),
    )
    plan_search = make_plan_search(profile, bounds, workload, provenance)
    stock = plan_search.best_stock()
    if policy == "nexus-paper":
        best, plan = _paper(plan_search)
        return replace(plan, prediction=predict(plan_search, best, stock, stock, rate))
    fixed = plan_search.best_fixed(stock)
    best, plan = plan_search.best_table(max_partitions, fixed)
    if policy == "fixed" or _beats(plan_search, fixed, best, workload):
        best, plan = _fixed(plan_search, fixed)
    return replace(plan, prediction=predict(plan_search, best, stock, fixed, rate))


def make_plan_search(
    profile: Profile,
    bounds: Bounds,
    workload: Workload | Lengths | Requests,
    provenance: Provenance,
) -> PlanSearch:
    """The model, the modes and the requests that plans are judged with; raises as make_plan."""
    asked = lengths_of(workload)
    _require_room(profile.engine, asked)
    lengths = asked.cut_to(longest_request(profile))
    if isinstance(workload, Requests) and workload.prefixes is not None:
        workload = replace(workload, lengths=lengths)
        lengths = replace(lengths, hits=usual_hits(workload, profile.engine))
    model = fit_model(profile)
    problem = Problem(model, profile.engine, bounds, lengths)
    fused = fused_modes(profile)
    if not fused:
        most = profile.engine.max_num_batched_tokens
        raise DocumentError(f"the profile has no fused step within the engine's {most} tokens")
    require_feasible(problem, fused)
    shared = shared_modes(profile, model, problem.capacity(fused).typical_level)
    draft = Draft(problem, profile, axes_of(profile, fused), provenance)
    evaluator = Evaluator(StepTimes(model), profile.engine, bounds, _requests(workload, lengths))
    return PlanSearch(draft, evaluator, fused, shared)


def _require_room(engine: Engine, lengths: Lengths) -> None:
    """Raise InfeasibleError where the KV cache does not hold a mean request."""
    if engine.kv_tokens - engine.block_size < lengths.input_mean + lengths.output_mean:
        raise InfeasibleError(
            f"a KV cache of {engine.kv_tokens} tokens cannot hold one request of"
            f" {lengths.input_mean:.0f} + {lengths.output_mean:.0f} tokens"
        )


def _requests(
    workload: Workload | Lengths | Requests, lengths: Lengths, *, again: bool = False
) -> Requests:
    """What plans are judged with; ``again``: other requests of ``workload``, and more of them.

    A trace of enough requests has its own arrivals: they come in longer bursts than random ones,
    which decide what is sustained. ``lengths`` are the workload's, cut to what can be served.
    """
    count = int(np.clip(_MOST_TOKENS / lengths.output_mean, _FEWEST_REQUESTS, _MOST_REQUESTS))
    if isinstance(workload, Requests):
        own = _TRACED * count
        start, size = (own, _RETRIAL * own) if again else (0, own)
        part = replace(workload, lengths=lengths).window(start, size)
        if len(part.arrivals_s) >= _FEWEST_REQUESTS and part.per_s:
            return part
    return poisson(lengths, _RETRIAL * count, seed=1) if again else poisson(lengths, count)


def _beats(
    plan_search: PlanSearch,
    fixed: Evaluation,
    table: Evaluation,
    workload: Workload | Lengths | Requests,
) -> bool:
    """Whether one mode is better than the table, on other requests too.

    The best of many modes on the same few requests is partly the luckiest.
    """
    if not plan_search.better(fixed, table, _BETTER):
        return False
    retrial = plan_search.with_requests(
        _requests(workload, plan_search.problem.lengths, again=True)
    )
    return retrial.better(retrial.evaluate(fixed.system), retrial.evaluate(table.system), _BETTER)


def _fixed(plan_search: PlanSearch, fixed: Evaluation) -> tuple[Evaluation, Plan]:
    """The plan that is one mode everywhere, and what it sustains."""
    mode = fixed.system.mode
    assert mode is not None
    rows = rows_of_one(plan_search.problem, mode, plan_search.draft.axes.states())
    plan = plan_search.draft.plan([mode], rows, "fixed")
    return plan_search.evaluate(System("plan", plan=plan)), plan


def _paper(plan_search: PlanSearch) -> tuple[Evaluation, Plan]:
    splits = paper_modes(plan_search.shared)
    if not splits:
        raise UserError("the nexus-paper policy needs a profile with split samples")
    rows = paper_rows(plan_search.problem, splits, plan_search.draft.axes)
    plan = plan_search.draft.plan(splits, rows, "nexus-paper")
    return plan_search.evaluate(System("nexus-paper", plan=plan)), plan
