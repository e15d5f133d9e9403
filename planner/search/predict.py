"""What a finished plan is expected to do, and what limits it."""

from dataclasses import replace

import numpy as np

from nexus.core.arrays import Bools
from nexus.core.plan import Prediction
from nexus.core.slo import GOOD_REQUESTS, Bounds
from nexus.planner.search.capacity import most_sequences
from nexus.planner.search.goodput import USUAL_LOAD
from nexus.planner.search.plan_search import Evaluation, PlanSearch
from nexus.planner.simulator.simulate import Run

_OVER = 1.1  # times what is sustained: where the misses show what limits it
_RELAXED = 1.25
_MATTERS = 0.02
_FULL = 0.9


def predict(
    plan_search: PlanSearch,
    best: Evaluation,
    stock: Evaluation,
    fixed: Evaluation,
    rate: float | None,
) -> Prediction:
    """The prediction of ``best``, beside the best stock vLLM and the best fixed mode."""
    sustained = best.per_s or plan_search.limit.per_s
    at = max(USUAL_LOAD * sustained if rate is None else rate, 1e-6)
    run = plan_search.evaluator.evaluate(best.system, at)
    too_long = _late_alone(plan_search)
    on_time = plan_search.evaluator.requests.lengths.inputs[~too_long]
    gaps = 1e3 * run.gaps_s if run.gaps_s.size else np.zeros(1)
    return Prediction(
        capacity_per_s=round(best.per_s, 4),
        baseline=stock.system.name,
        baseline_capacity_per_s=round(stock.per_s, 4),
        ttft_ms=round(float(run.ttft_ms.mean()), 2),
        tbt_ms=round(float(gaps.mean()), 3),
        binding=binding_limit(plan_search, best),
        best_fixed=fixed.system.name,
        best_fixed_capacity_per_s=round(fixed.per_s, 4),
        limit_per_s=round(plan_search.limit.per_s, 4),
        rate_per_s=round(at, 4),
        ttft_p95_ms=round(float(np.quantile(run.ttft_ms, 0.95)), 2),
        tbt_p95_ms=round(float(np.quantile(gaps, 0.95)), 3),
        tbt_p99_ms=round(float(np.quantile(gaps, 0.99)), 3),
        attainable_share=round(min(plan_search.evaluator.goal / GOOD_REQUESTS, 1.0), 4),
        too_long_share=round(float(too_long.mean()), 4),
        longest_prompt_tokens=int(on_time.max(initial=0)) if too_long.any() else 0,
    )


def _late_alone(plan_search: PlanSearch) -> Bools:
    """Which requests, of shape (n,), have their first token too late on an idle server."""
    evaluator, most = plan_search.evaluator, plan_search.problem.engine.max_num_batched_tokens
    lengths, times = evaluator.requests.lengths, evaluator.times
    serving, step_ms = times.serving, times.step_ms
    around_ms = serving.intake_ms + serving.reply_ms

    def alone_ms(prompt: int, cached: int) -> float:
        starts = range(cached, prompt, most)
        return sum(step_ms(min(most, prompt - start), start, 0, 0.0) for start in starts)

    rows = zip(lengths.inputs.tolist(), lengths.cached.tolist(), strict=True)
    ms = np.array([alone_ms(*row) for row in rows]) * serving.sustained + around_ms
    uncached = (lengths.inputs - lengths.cached).astype(float)
    return np.asarray(ms > evaluator.bounds.ttft_ms_of(uncached))


def binding_limit(plan_search: PlanSearch, best: Evaluation) -> str:
    """Which looser limit would help most just above the sustained rate.

    ``TBT``, ``TTFT``, ``KV cache``, ``max_num_seqs``, or else ``compute``.
    """
    bounds = plan_search.evaluator.bounds
    sustained = best.per_s or plan_search.limit.per_s
    run = plan_search.evaluator.evaluate(best.system, max(_OVER * sustained, 1e-6))
    met = run.attainment(bounds)
    gains = {
        "TBT": run.attainment(replace(bounds, tbt_ms=bounds.tbt_ms * _RELAXED)) - met,
        "TTFT": run.attainment(replace(bounds, ttft_ms=bounds.ttft_ms * _RELAXED)) - met,
    }
    helps = max(gains, key=lambda name: gains[name])
    if gains[helps] > _MATTERS and not _overloaded(run, bounds):
        return helps
    problem = plan_search.problem
    looser = replace(bounds, tbt_ms=bounds.tbt_ms * _RELAXED)
    if problem.capacity(plan_search.modes, looser).per_s > (1 + _MATTERS) * plan_search.limit.per_s:
        return "TBT"
    if run.preemptions:
        return "KV cache"
    if plan_search.limit.typical_level > _FULL * most_sequences(problem.engine, problem.lengths):
        return "max_num_seqs"
    return "compute"


def _overloaded(run: Run, bounds: Bounds) -> bool:
    """Whether the queue grew all along, so that a looser TTFT only puts misses off."""
    half = len(run.ttft_ms) // 2
    early, late = run.ttft_ms[:half].mean(), run.ttft_ms[half:].mean()
    return bool(late > 2 * early and late > bounds.ttft_ms)
