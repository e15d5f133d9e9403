"""Which single mode is best at which bound, workload and load: fluid estimates for a map."""

from dataclasses import dataclass, replace

import numpy as np

from nexus.core.arrays import Floats
from nexus.core.plan import Mode, Workload
from nexus.planner.search.plan_search import PlanSearch
from nexus.planner.search.problem import Problem
from nexus.planner.workload.requests import lengths_of, longest_request

TBT_FACTORS = (0.5, 0.7, 1.0, 1.5, 2.5, 4.0)
RATIOS = (0.5, 1.0, 2.0, 5.0, 10.0, 40.0)
LOADS = (0.5, 0.8, 0.95)


@dataclass(frozen=True)
class Regime:
    """The best mode of one cell; ``gain`` is how much sooner a prompt is done than by chunks.

    ``mode`` is None where nothing holds the bounds, ``gain`` infinite where no chunk does.
    """

    mode: Mode | None
    gain: float


def regimes(plan_search: PlanSearch, load: float) -> list[list[Regime]]:
    """For each TBT factor (rows) and input:output ratio (columns), the best mode at ``load``.

    ``load`` is a share of what all modes together sustain there; requests have as many
    tokens in all as the plan's workload.
    """
    lengths, bounds = plan_search.problem.lengths, plan_search.problem.bounds
    total = lengths.input_mean + lengths.output_mean
    cached = lengths.cached_mean / lengths.input_mean
    grid = []
    for factor in TBT_FACTORS:
        row = []
        for ratio in RATIOS:
            output = total / (1.0 + ratio)
            prompt = total - output
            workload = Workload("means", prompt, max(output, 2.0), cached * prompt)
            cell = replace(bounds, tbt_ms=bounds.tbt_ms * factor)
            problem = Problem(
                plan_search.problem.model,
                plan_search.problem.engine,
                cell,
                lengths_of(workload).cut_to(longest_request(plan_search.draft.profile)),
            )
            row.append(_best(problem, plan_search.modes, load))
        grid.append(row)
    return grid


def _best(problem: Problem, modes: list[Mode], load: float) -> Regime:
    rate = load * problem.capacity(modes).per_s
    if rate <= 0:
        return Regime(None, 1.0)
    wait = _prompt_seconds(problem, modes, rate)
    best = int(np.argmin(wait))
    if not np.isfinite(wait[best]):
        return Regime(None, 1.0)
    chunks = [wait[i] for i, mode in enumerate(modes) if mode.mode == "fused"]
    return Regime(modes[best], float(min(chunks) / wait[best]))


def _prompt_seconds(problem: Problem, modes: list[Mode], rate: float) -> Floats:
    """Mean time from arrival to the end of a prompt's prefill, by mode; inf where TBT breaks.

    At ``rate`` a mode prefills for a share of the time and decodes alone for the rest; the
    number of sequences settles where as many finish as come. Queueing stretches the
    prompt's own time by the share of time that is left.
    """
    traffic = problem.traffic(modes)
    up, down = traffic.up[:-1], traffic.down[:-1]
    busy = np.divide(rate, up, out=np.full_like(up, np.inf), where=up > 0)
    flow = busy * down + np.maximum(1.0 - busy, 0.0) * traffic.down[-1]
    settles = (flow >= rate) & (busy < 1.0) & (traffic.levels > 0)
    seconds = np.full(len(modes), np.inf)
    for index in range(len(modes)):
        if settles[index].any():
            level = int(np.argmax(settles[index]))
            if traffic.allowed[index, level]:
                seconds[index] = 1.0 / up[index, level] / (1.0 - busy[index, level])
    return seconds
