"""What the lane's work costs the requests, from a trace of ``nexus serve --trace``.

Hand-over: from the device's end of a prompt's last pass to its first token. Time between
tokens: the steps beside passes, against the plan's prediction for their states and against
the profile's co-run times. Chart and figures come from the same file.
"""

from bisect import bisect_left, bisect_right
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from statistics import fmean
from typing import Any

from nexus.core.plan import Plan
from nexus.core.spread import percentile
from nexus.evidence.lane.tracefile import Pass, Step, Trace

ALLOWED_MS = 2.0
"""What a hand-over may take beyond one decode step: with the step that gives the token counted
in (``in_one_step_and_2_ms``), or only the wait for it (``waits_one_step_and_2_ms``)."""

StepTime = Callable[[Step], float | None]


@dataclass(frozen=True)
class HandOver:
    """One prompt's: from its last pass to its first token, in milliseconds.

    ``noticed``: until the scheduler knew, negative where it knew before; ``steps``: how many
    ended meanwhile, the one that gave the first token included; ``last_step``: how long that
    one took.
    """

    ms: float
    noticed: float | None
    steps: int
    last_step: float


@dataclass(frozen=True)
class Quantiles:
    """Of ``count`` values."""

    count: int
    mean: float
    p50: float
    p95: float
    p99: float
    max: float


def quantiles(values: Sequence[float]) -> dict[str, Any] | None:
    """None where there are no values."""
    if not values:
        return None
    p50, p95, p99 = (percentile(values, share) for share in (50, 95, 99))
    found = Quantiles(len(values), fmean(values), p50, p95, p99, max(values))
    return {name: round(value, 3) for name, value in asdict(found).items()}


def hand_overs(trace: Trace) -> list[HandOver]:
    """Of every prompt that left the lane and spoke."""
    ends = [step.end for step in trace.steps]
    found = []
    for request, over in _last_passes(trace).items():
        first = trace.first.get(request)
        if first is None or first < over.end:
            continue
        # The step that gave the token ended just before it was noted.
        last = bisect_right(ends, first) - 1
        begun = bisect_left(ends, over.end)
        if last < begun:
            continue
        noticed = trace.left.get(request)
        found.append(
            HandOver(
                first - over.end,
                None if noticed is None else noticed - over.end,
                last - begun + 1,
                trace.steps[last].ms,
            )
        )
    return found


def _last_passes(trace: Trace) -> dict[str, Pass]:
    """The pass that ended each prompt: as told, else the one that ended nearest to its leaving.

    A prompt leaves the lane when its last pass is over, or about to be.
    """
    told = {name: each for each in trace.passes for name in each.ends or ()}
    ends = [each.end for each in trace.passes]
    for name, left in trace.left.items():
        place = bisect_left(ends, left)
        near = [trace.passes[n] for n in (place - 1, place) if 0 <= n < len(ends)]
        if name not in told and near and near[0].ends is None:
            told[name] = min(near, key=lambda each: abs(each.end - left))
    return told


def beside_passes(trace: Trace, share: float = 0.5) -> list[Step]:
    """Steps that only decode, with passes under way for at least ``share`` of their time."""
    starts = [each.start for each in trace.passes]
    longest = max((each.end - each.start for each in trace.passes), default=0.0)
    found = []
    for step in trace.steps:
        if step.decodes < 1 or step.ms <= 0 or not step.mode.startswith(("overlap", "split")):
            continue
        near = range(bisect_left(starts, step.start - longest), bisect_right(starts, step.end))
        shared = sum(
            max(0.0, min(step.end, each.end) - max(step.start, each.start))
            for each in (trace.passes[place] for place in near)
        )
        if shared >= share * step.ms:
            found.append(step)
    return found


def summary(trace: Trace, co_run: StepTime | None = None) -> dict[str, Any]:
    """All figures of a trace. ``co_run`` gives a step's time by the profile, if it can."""
    overs = hand_overs(trace)
    waits = [each.ms - each.last_step for each in overs]
    busy = beside_passes(trace)
    modes = sorted({step.mode for step in busy})
    return {
        "passes": len(trace.passes),
        "pass_ms": quantiles([each.end - each.start for each in trace.passes]),
        "prompt_tokens": sum(each.tokens for each in trace.passes),
        "hand_over": {
            "prompts": len(overs),
            "passes_known": all(each.ends is not None for each in trace.passes),
            "ms": quantiles([each.ms for each in overs]),
            "until_noticed_ms": quantiles([e.noticed for e in overs if e.noticed is not None]),
            "steps": quantiles([float(each.steps) for each in overs]),
            "ms_until_its_step": quantiles(waits),
            "in_one_step_and_2_ms": _share([wait <= ALLOWED_MS for wait in waits]),
            "waits_one_step_and_2_ms": _share(
                [
                    wait <= each.last_step + ALLOWED_MS
                    for wait, each in zip(waits, overs, strict=True)
                ]
            ),
        },
        "steps_beside_passes": {
            mode: _steps([step for step in busy if step.mode == mode], co_run) for mode in modes
        },
        "all_modes": _steps(busy, co_run),
    }


def _steps(steps: Sequence[Step], co_run: StepTime | None) -> dict[str, Any]:
    told = [step for step in steps if step.predicted > 0]
    ratios = [step.ms / step.predicted for step in told]
    known = [(step.ms, ms) for step in steps if co_run and (ms := co_run(step))]
    measured, expected = (sum(column) for column in zip(*known, strict=True)) if known else (0, 0)
    return {
        "tbt_ms": quantiles([step.ms for step in steps]),
        "decodes": quantiles([float(step.decodes) for step in steps]),
        "predicted_ms": quantiles([step.predicted for step in told]),
        "over_predicted": quantiles(ratios),
        "within_1.25_of_predicted": _share([ratio <= 1.25 for ratio in ratios]),
        "mean_over_profile": round(measured / expected, 4) if expected else None,
    }


def _share(held: Sequence[bool]) -> float | None:
    return round(sum(held) / len(held), 4) if held else None


def co_run_times(profile: Path, plan: Plan) -> StepTime:
    """A decode step's time beside passes of the mode's chunk, by the planner's fit of a profile."""
    from nexus.planner.latency.model import fit_model
    from nexus.planner.latency.steptimes import StepTimes
    from nexus.profiles.schema import read_profile

    times = StepTimes(fit_model(read_profile(profile)))

    def ms(step: Step) -> float | None:
        mode = plan.modes.get(step.mode)
        if mode is None or mode.mode == "fused":
            return None
        return times.lane(mode).decode(mode.chunk, 0.0, step.decodes, float(step.kv_tokens))

    return ms
