"""A plan for MPS: one share for all loads, held by two stock engines.

The percentage of a running MPS client cannot be changed, so what the planner can choose is one
pair of percentages for the stated workload. It plays every share that was measured with two
imagined engines, and says what the best of them sustains beside the dynamic plan.
"""

from dataclasses import dataclass, replace
from datetime import UTC, datetime

from nexus.core.errors import InfeasibleError, UserError
from nexus.core.io.documents import Provenance
from nexus.core.machine import Model
from nexus.core.plan import Axes, Mode, Plan, Row, Shares, Workload, percent_for
from nexus.core.slo import Bounds
from nexus.planner.latency.steptimes import StepTimes
from nexus.planner.search.goodput import USUAL_LOAD
from nexus.planner.search.plan_search import Evaluation, PlanSearch
from nexus.planner.search.predict import predict
from nexus.planner.search.problem import Problem
from nexus.planner.search.solve import make_plan, make_plan_search
from nexus.planner.simulator.simulate import System
from nexus.planner.workload.requests import Lengths, Requests
from nexus.profiles.schema import Profile

_LONGEST_PROMPTS = 2  # that the prefill engine's KV cache holds: one computed, one being read
_LEAST_DECODE = 0.5  # of all KV tokens that both engines hold
_SAME = 0.99  # shares that sustain this much of the best are alike


@dataclass(frozen=True)
class StaticPlan:
    """The plan, and the dynamic one on the same profile or one of the same machine, if any."""

    plan: Plan
    dynamic: Plan | None

    def comparison(self) -> str:
        """Both at the same rate, in one line."""
        if self.dynamic is None:
            return "No profile under green contexts is here, so there is no dynamic plan beside it."
        ours, theirs = self.plan.prediction, self.dynamic.prediction
        return (
            f"At {ours.rate_per_s:.3g} requests/s, in simulation: TTFT {ours.ttft_ms:.0f} ms "
            f"(p95 {ours.ttft_p95_ms:.0f}) with the static share, {theirs.ttft_ms:.0f} "
            f"(p95 {theirs.ttft_p95_ms:.0f}) with the dynamic plan; TBT {ours.tbt_ms:.3g} ms (p95 "
            f"{ours.tbt_p95_ms:.3g}) and {theirs.tbt_ms:.3g} (p95 {theirs.tbt_p95_ms:.3g})."
        )


def make_static_plan(
    profile: Profile,
    bounds: Bounds,
    workload: Workload | Lengths | Requests,
    *,
    green: Profile | None,
    rate: float | None = None,
    command: str = "",
    created: str | None = None,
) -> StaticPlan:
    """The best static share for ``workload`` under ``bounds``, measured under MPS or not.

    ``green`` is a profile under green contexts, from which the dynamic plan is made; without
    one there is nothing to compare with. Raises as ``make_plan``, and UserError when
    ``profile`` holds no shares.
    """
    provenance = Provenance(
        created=created or datetime.now(UTC).isoformat(timespec="seconds"),
        command=command,
        software=dict(profile.provenance.software),
    )
    plan_search = make_plan_search(profile, bounds, workload, provenance)
    if not plan_search.shared:
        raise UserError("the profile has no samples of both phases at once: MPS needs some")
    plan = _plan(plan_search, _best(plan_search, profile), rate)
    if green is None:
        return StaticPlan(plan, None)
    at = plan.prediction.rate_per_s
    dynamic = make_plan(green, bounds, workload, rate=at, created=created)
    said = replace(plan.prediction, dynamic_capacity_per_s=dynamic.prediction.capacity_per_s)
    return StaticPlan(replace(plan, prediction=said), dynamic)


def shares_of(mode: Mode, profile: Profile) -> Shares:
    """The percentages that give ``mode`` its SMs, and each engine's KV cache.

    The prefill engine holds two of the longest prompts, the decode engine the rest. What one
    engine's profile held as KV tokens has to hold a second copy of the weights too.
    """
    total = profile.machine.sms
    room = profile.engine.kv_tokens
    if profile.partitioner == "green":
        room -= _weights_in_kv_tokens(profile.model)
    prefill = min(_LONGEST_PROMPTS * profile.model.max_model_len, int((1 - _LEAST_DECODE) * room))
    if min(prefill, room - prefill) < profile.engine.block_size:
        raise InfeasibleError("the device's memory does not hold the model twice and a KV cache")
    return Shares(
        prefill_percent=percent_for(mode.prefill_sms, total),
        decode_percent=percent_for(mode.decode_sms or total, total),
        prefill_kv_tokens=prefill,
        decode_kv_tokens=room - prefill,
    )


def static_system(mode: Mode, shares: Shares) -> System:
    """The two engines, named by their percentages."""
    name = f"mps-{shares.prefill_percent}-{shares.decode_percent}"
    return System(name, mode=mode, order="fcfs", shares=shares)


def _weights_in_kv_tokens(model: Model) -> int:
    """About as many as the weights take the place of.

    A profile does not hold the number of weights; a dense transformer layer has 10 to 18
    times the hidden size squared.
    """
    weights = 16 * model.num_layers * model.hidden_size**2
    kv_values = 2 * model.num_layers * model.num_kv_heads * model.head_size
    return weights // kv_values


def _best(plan_search: PlanSearch, profile: Profile) -> Evaluation:
    """The share that sustains the highest rate, or meets the bounds most often.

    Of those that are nearly alike the one with the shortest TTFT. Caps that do not overlap come
    first where they were not measured under MPS: an overlap of green contexts has stream
    priorities, which two processes lack.
    """
    systems = [static_system(mode, shares_of(mode, profile)) for mode in plan_search.shared]
    close = plan_search.race(systems, close=_SAME)
    rate = max(USUAL_LOAD * close[0].per_s, 1e-6)

    def cost(each: Evaluation) -> tuple[bool, float]:
        mode = each.system.mode
        overlaps = mode is not None and mode.mode == "overlap" and profile.partitioner == "green"
        return overlaps, float(plan_search.evaluator.evaluate(each.system, rate).ttft_ms.mean())

    return min(close, key=cost)


def _plan(plan_search: PlanSearch, best: Evaluation, rate: float | None) -> Plan:
    mode, shares = best.system.mode, best.system.shares
    assert mode is not None
    alone = PlanSearch(plan_search.draft, plan_search.evaluator, [], [mode])
    axes, rows = _static_table(
        plan_search.problem, plan_search.evaluator.times, mode, alone.limit.typical_level
    )
    plan = replace(plan_search.draft, axes=axes).plan([mode], rows, "fixed", shares)
    said = predict(alone, best, plan_search.best_stock(), best, rate)
    return replace(plan, prediction=replace(said, best_fixed="", best_fixed_capacity_per_s=0.0))


def _static_table(
    problem: Problem, times: StepTimes, mode: Mode, level: float
) -> tuple[Axes, tuple[Row, ...]]:
    """One mode with what it gives at the usual load, in four states: each phase idle or not, decode with ``level`` sequences of usual length.

    A phase whose neighbour is idle still has its own SMs only.
    """
    lengths, lane = problem.lengths, times.lane(mode)
    batch = min(max(1, round(level)), problem.engine.max_num_seqs)
    kv = max(1, round(batch * lengths.decode_context))
    before = lengths.prompt_position - mode.chunk / 2
    alone_ms = lane.decode_alone(0, 0.0, batch, kv)
    beside_ms = max(alone_ms, lane.decode(mode.chunk, before, batch, kv))
    prompt_ms = lane.prefill(mode.chunk, before, batch, kv)
    prompt_alone_ms = min(prompt_ms, lane.prefill_alone(mode.chunk, before, 0, 0.0))
    axes = Axes(decode_batch=(0, batch), kv_tokens=(kv,), prefill_backlog=(0, mode.chunk))
    shown = {
        (0, 0): (0.0, 0.0),
        (0, mode.chunk): (0.0, prompt_alone_ms),
        (batch, 0): (alone_ms, 0.0),
        (batch, mode.chunk): (beside_ms, prompt_ms),
    }
    rows = tuple(
        Row(
            decode_batch=decodes,
            kv_tokens=kv,
            prefill_backlog=backlog,
            mode=mode.name,
            tbt_ms=round(tbt_ms, 3),
            prefill_tokens_per_s=round(1e3 * mode.chunk / pass_ms, 1) if pass_ms else 0.0,
        )
        for (decodes, backlog), (tbt_ms, pass_ms) in shown.items()
    )
    return axes, rows
