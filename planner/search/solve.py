"""From a profile, bounds and a workload to a plan."""

from collections.abc import Callable
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
from nexus.planner.search.feasible import require_feasible
from nexus.planner.search.goodput import Evaluator
from nexus.planner.search.paper import paper_modes, paper_rows
from nexus.planner.search.plan_search import ANY_BETTER, WORTH_A_LANE, Evaluation, PlanSearch
from nexus.planner.search.predict import predict
from nexus.planner.search.problem import Draft, PlanPolicy, Problem, axes_of
from nexus.planner.simulator.simulate import System, usual_hits
from nexus.planner.workload.requests import Lengths, Requests, lengths_of, longest_request, poisson
from nexus.profiles.schema import Profile

ASSUMED = Workload(source="assumed", input_tokens=512.0, output_tokens=128.0)

Tell = Callable[[str, float], None]
"""Told what is compared next, and which share of the work is done."""

_BETTER = 1.01  # a single mode must sustain this much more than the table to replace it
# Most are eliminated on few requests; those that are close to the best meet again on more.
_FINAL = 2  # times as many requests
_FINAL_TOLERANCE = 0.01
_MOST_REQUESTS, _FEWEST_REQUESTS = 500, 200
_MOST_OUTPUT_TOKENS, _MOST_PROMPT_TOKENS = 100_000, 2_000_000
_MOST_FINALISTS = 3


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
    effort: float = 1.0,
    tell: Tell = lambda _what, _done: None,
) -> Plan:
    """The best plan for ``workload`` under ``bounds`` on the profiled machine.

    ``workload`` gives prompt and output lengths; plans are judged with a trace's own arrivals,
    brought to each rate, and else with random ones.
    ``policy``: ``nexus`` optimises, and becomes one fixed mode where that is better;
    ``nexus-paper`` is the paper's greedy rule; ``fixed`` is the best single mode.
    ``rate`` (requests per second) is where TTFT and TBT are predicted; ``max_partitions`` is
    how many SM partitions the plan may use. ``effort``: as many times as many requests are
    simulated. Raises InfeasibleError when no mode can meet the
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
    plan_search = make_plan_search(profile, bounds, workload, provenance, effort)
    tell("what can be on time", 0.05)
    few = plan_search.under(replace(plan_search.evaluator, goal=plan_search.goal()))
    evaluator = replace(
        few.evaluator,
        requests=_requests(workload, few.problem.lengths, _FINAL * effort),
        tolerance=_FINAL_TOLERANCE,
    )
    many = few.under(evaluator)
    tell("single modes", 0.1)
    fixed = few.close_fixed()
    tell("stock vLLM", 0.35)
    stock = many.best_stock(few.close_stock(fixed[0].per_s)[:_MOST_FINALISTS])
    best, single = _best(few, many, policy, max_partitions, fixed, stock, tell)
    tell("predictions", 0.95)
    assert best.system.plan is not None
    return replace(best.system.plan, prediction=predict(many, best, stock, single, rate))


def _best(
    few: PlanSearch,
    many: PlanSearch,
    policy: PlanPolicy,
    max_partitions: int,
    fixed: list[Evaluation],
    stock: Evaluation,
    tell: Tell,
) -> tuple[Evaluation, Evaluation]:
    """The plan by ``policy``, and the best single mode (stock vLLM under the paper's policy).

    ``few`` and ``many`` requests tell candidates and finalists apart; ``fixed`` are the close
    single modes, the best of stock vLLM's budgets is one of them in any case.
    """
    if policy == "nexus-paper":
        return many.evaluate(System("nexus-paper", plan=_paper(few))), stock
    tables: list[System] = []
    if policy == "nexus":
        tell("tables", 0.5)
        tables = few.best_tables(max_partitions, fixed[0])
    tell("finalists", 0.8)
    modes = [one.system.mode for one in (*fixed[:_MOST_FINALISTS], stock) if one.system.mode]
    singles = [many.fixed(mode) for mode in dict.fromkeys(modes)]
    single = many.race(singles, fixed[0].per_s, ANY_BETTER)[0]
    if not tables:
        return single, single
    table = many.race(tables[:1], single.per_s)[0]
    for shared in many.race(tables[1:], table.per_s, beat=WORTH_A_LANE * table.per_s):
        table = shared
    return (single if single.better_than(table, _BETTER) else table), single


def make_plan_search(
    profile: Profile,
    bounds: Bounds,
    workload: Workload | Lengths | Requests,
    provenance: Provenance,
    effort: float = 1.0,
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
    requests = _requests(workload, lengths, effort)
    evaluator = Evaluator(StepTimes(model), profile.engine, bounds, requests)
    return PlanSearch(draft, evaluator, fused, shared)


def _require_room(engine: Engine, lengths: Lengths) -> None:
    """Raise InfeasibleError where the KV cache does not hold a mean request."""
    if engine.kv_tokens - engine.block_size < lengths.input_mean + lengths.output_mean:
        raise InfeasibleError(
            f"a KV cache of {engine.kv_tokens} tokens cannot hold one request of"
            f" {lengths.input_mean:.0f} + {lengths.output_mean:.0f} tokens"
        )


def _requests(
    workload: Workload | Lengths | Requests, lengths: Lengths, times: float = 1.0
) -> Requests:
    """What plans are judged with: ``times`` as many requests as are enough for a first look.

    A trace of enough requests has its own arrivals: they come in longer bursts than random ones,
    which decide what is sustained. ``lengths`` are the workload's, cut to what can be served.
    """
    enough = min(
        _MOST_OUTPUT_TOKENS / lengths.output_mean, _MOST_PROMPT_TOKENS / lengths.prefill_mean
    )
    count = int(times * np.clip(enough, _FEWEST_REQUESTS, _MOST_REQUESTS))
    if isinstance(workload, Requests):
        whole = replace(workload, lengths=lengths)
        part = whole.window(_typical_start(lengths, count), count)
        if len(part.arrivals_s) >= _FEWEST_REQUESTS and part.per_s:
            return part
    return poisson(lengths, count)


def _typical_start(lengths: Lengths, count: int) -> int:
    """Where ``count`` requests in a row begin whose mean lengths are most like all of theirs."""
    starts = np.arange(0, max(len(lengths.inputs) - count, 0) + 1, max(count // 2, 1))
    off = np.zeros(len(starts))
    for tokens in (lengths.inputs - lengths.cached, lengths.outputs):
        below = np.concatenate([[0], np.cumsum(tokens)])
        ends = np.minimum(starts + count, len(tokens))
        means = (below[ends] - below[starts]) / (ends - starts)
        off += np.abs(means / tokens.mean() - 1.0)
    return int(starts[np.argmin(off)])


def _paper(plan_search: PlanSearch) -> Plan:
    splits = paper_modes(plan_search.shared)
    if not splits:
        raise UserError("the nexus-paper policy needs a profile with split samples")
    rows = paper_rows(plan_search.problem, splits, plan_search.draft.axes)
    return plan_search.draft.plan(splits, rows, "nexus-paper")
