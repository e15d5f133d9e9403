"""From a profile, bounds and a workload to a plan."""

from collections.abc import Sequence
from datetime import UTC, datetime
from typing import Literal

import numpy as np

from nexus.errors import UserError
from nexus.planner.capacity import Capacity
from nexus.planner.feasible import binding_limit, require_feasible
from nexus.planner.fit import Floats, Ints
from nexus.planner.frontier import Outcomes, States, fused_modes
from nexus.planner.latency import fit_model
from nexus.planner.problem import Problem
from nexus.planner.table import Axes, Bounds, Mode, Plan, Prediction, Row, Workload
from nexus.planner.workload import Lengths, lengths_of
from nexus.profiles.schema import Engine, Profile, Provenance, held_in

STOCK_CHUNKS = (512, 2048, 8192)  # what a tuned vLLM without Nexus is run with

ASSUMED = Workload(source="assumed", input_tokens=512.0, output_tokens=128.0)

_NEARLY = 0.98  # choices this close in worth are decided by prefill speed
_KV_SHARES = (1 / 64, 1 / 32, 1 / 16, 1 / 8, 1 / 4, 3 / 8, 1 / 2, 3 / 4, 1)
_USUAL_LOAD = 0.8  # of the capacity, where predictions are made unless a rate is given
_ENDLESS = 4  # largest backlog of the table, in largest chunks


def make_plan(
    profile: Profile,
    bounds: Bounds,
    workload: Workload | Lengths = ASSUMED,
    *,
    policy: Literal["nexus", "nexus-paper", "fixed"] = "nexus",
    max_partitions: int = 4,  # noqa: ARG001
    rate: float | None = None,
    command: str = "",
    created: str | None = None,
) -> Plan:
    """The best table for ``workload`` under ``bounds`` on the profiled machine.

    ``rate`` (requests per second) is where TTFT and TBT are predicted; ``max_partitions`` is
    how many SM partitions the plan may use. Raises InfeasibleError when no mode can meet the
    bounds, DocumentError when the profile has too few samples.
    """
    if policy != "nexus":
        raise UserError(f"policy {policy!r} is not available for this profile")
    lengths = lengths_of(workload).cut_to(profile.model.max_model_len)
    problem = Problem(fit_model(profile), profile.engine, bounds, lengths)
    modes = fused_modes(profile)
    require_feasible(problem, modes)
    capacity = problem.capacity(modes)
    axes = axes_of(profile, modes)
    rows = choose_rows(problem, modes, axes, capacity)
    used = {row.mode for row in rows}
    return Plan(
        provenance=Provenance(
            created=created or datetime.now(UTC).isoformat(timespec="seconds"),
            command=command,
            software=dict(profile.provenance.software),
        ),
        profile_hash=profile.hash,
        machine=profile.machine,
        model=profile.model,
        engine=profile.engine,
        bounds=bounds,
        workload=lengths.summary(),
        policy=policy,
        prediction=predict(problem, modes, capacity, rate),
        axes=axes,
        modes={mode.name: mode for mode in modes if mode.name in used},
        rows=rows,
    )


def axes_of(profile: Profile, modes: Sequence[Mode]) -> Axes:
    """A grid over what was measured, up to the engine's limits."""
    engine = profile.engine
    batches = {
        sample.decode_batch
        for sample in held_in(profile.samples)
        if 0 < sample.decode_batch < engine.max_num_seqs
    }
    chunks = sorted({mode.chunk for mode in modes})
    return Axes(
        decode_batch=tuple(sorted({0, 1, *batches, engine.max_num_seqs})),
        kv_tokens=tuple(sorted({max(1, round(engine.kv_tokens * s)) for s in _KV_SHARES})),
        prefill_backlog=(0, *chunks, _ENDLESS * chunks[-1]),
    )


def choose_rows(
    problem: Problem, modes: list[Mode], axes: Axes, capacity: Capacity
) -> tuple[Row, ...]:
    """For each state the mode that is worth most among those that hold TBT."""
    states = axes.states()
    outcomes = problem.outcomes(modes, states)
    backlog_if_any = [(b, kv, backlog or axes.prefill_backlog[1]) for b, kv, backlog in states]
    judged = problem.outcomes(modes, backlog_if_any)
    chosen = choose(problem, judged, States.of(backlog_if_any), capacity)
    return tuple(
        Row(
            decode_batch=state[0],
            kv_tokens=state[1],
            prefill_backlog=state[2],
            mode=modes[mode].name,
            tbt_ms=round(float(outcomes.tbt_ms[mode, index]), 3),
            prefill_tokens_per_s=round(float(outcomes.prefill_per_s[mode, index]), 1),
        )
        for index, (state, mode) in enumerate(zip(states, chosen, strict=True))
    )


def choose(problem: Problem, outcomes: Outcomes, states: States, capacity: Capacity) -> Ints:
    """The index of each state's mode, of shape (states,).

    A full KV cache counts as many sequences do: decode is then worth more. Where no mode
    holds TBT, the one with the smallest gap is taken; without decodes, the fastest
    prefill whose steps fit in TTFT.
    """
    bounds, lengths = problem.bounds, problem.lengths
    kv = states.decode_batch * states.decode_context
    pressure = np.maximum(states.decode_batch, kv / lengths.decode_context)
    prefill_price, decode_price = capacity.prices_at(pressure)
    worth = prefill_price * outcomes.prefill_per_s + decode_price * outcomes.decode_per_s
    empty = states.decode_batch == 0
    worth = np.where(empty, outcomes.prefill_per_s, worth)
    holds = np.where(empty, outcomes.prefill_ms <= bounds.ttft_ms, outcomes.tbt_ms <= bounds.tbt_ms)
    best = np.where(holds, worth, -np.inf).max(axis=0)
    good = holds & (worth >= _NEARLY * best)
    fastest = _first_best(np.where(good, outcomes.prefill_per_s, -np.inf))
    gentlest = _first_best(-np.where(empty, outcomes.prefill_ms, outcomes.tbt_ms))
    return np.where(holds.any(axis=0), fastest, gentlest)


def _first_best(score: Floats) -> Ints:
    # Modes that only differ beyond the backlog do the same there: the first will do.
    best = score.max(axis=0)
    nearly = np.isclose(score, best, rtol=1e-9, atol=0.0)
    return np.asarray(np.argmax(nearly, axis=0))


def stock_modes(engine: Engine) -> list[Mode]:
    """Stock vLLM, at the usual chunk sizes that the engine's limit allows."""
    chunks = sorted({min(chunk, engine.max_num_batched_tokens) for chunk in STOCK_CHUNKS})
    return [Mode(mode="fused", chunk=chunk) for chunk in chunks]


def predict(
    problem: Problem, modes: list[Mode], capacity: Capacity, rate: float | None
) -> Prediction:
    """What the whole plan should reach, beside the best stock chunk."""
    stock = stock_modes(problem.engine)
    alone = [problem.capacity([mode]).per_s for mode in stock]
    best = int(np.argmax(alone))
    load = _USUAL_LOAD if rate is None else min(rate / max(capacity.per_s, 1e-9), 0.99)
    return Prediction(
        capacity_per_s=round(capacity.per_s, 4),
        baseline=f"vllm-{stock[best].chunk}",
        baseline_capacity_per_s=round(alone[best], 4),
        ttft_ms=round(_ttft_ms(problem, modes, capacity, load), 2),
        tbt_ms=round(capacity.tbt_ms, 3),
        binding=binding_limit(problem, modes, capacity),
    )


def _ttft_ms(problem: Problem, modes: list[Mode], capacity: Capacity, load: float) -> float:
    """Mean TTFT when prompts queue for one server (Pollaczek and Khinchine), at ``load``."""
    lengths = problem.lengths
    level = max(round(load * capacity.typical_level), 0)
    state = (level, max(1, round(level * lengths.decode_context)), 10**9)
    outcomes = problem.outcomes(modes, [state])
    holds = (outcomes.tbt_ms <= problem.bounds.tbt_ms)[:, 0]
    speeds = outcomes.prefill_per_s[:, 0]
    speed = float(speeds[holds].max() if holds.any() else speeds.max())
    service_ms = 1e3 * lengths.input_mean / speed
    spread = float(np.var(lengths.inputs)) / lengths.input_mean**2
    return service_ms * (1.0 + load / (1.0 - load) * (1.0 + spread) / 2.0)
