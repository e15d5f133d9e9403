"""What planning takes, and what it says: ``python -m nexus.evidence.planning [TRACE...]``.

One row for each profile, trace and pair of bounds: seconds, CPU seconds and peak memory of a
process that does nothing else (as ``nexus plan``, its imports included), and the plan's rates.
"""

import argparse
import resource
import time
from collections.abc import Iterator
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass
from functools import partial
from multiprocessing import get_context
from pathlib import Path

import numpy as np

from nexus.core.slo import Bounds
from nexus.planner.workload.requests import Lengths, Requests

ROOT = Path(__file__).parents[1]
BOUNDS = ("500/15", "1000/25", "2000/25", "2000/50", "2000/200")
HEAD = ("profile", "trace", "bounds", "s", "CPU s", "MB", "requests/s", "stock", "single", "plan")

_TICK_S, _TICK_REQUESTS = 3.0, 10
_LONG = {"median": 6_900.0, "ninth": 27_000.0, "output": 314.0}


@dataclass(frozen=True)
class Case:
    """One plan to make."""

    profile: Path
    trace: str
    bounds: str


@dataclass(frozen=True)
class Outcome:
    """What it took, and what came of it; ``said`` is an error's text, or the plan in words."""

    wall_s: float
    cpu_s: float
    peak_mb: float
    per_s: float = 0.0
    stock_per_s: float = 0.0
    single_per_s: float = 0.0
    said: str = ""


def synthetic(name: str) -> Requests | None:
    """Requests by a formula: ``long``, ``long-ticks``, ``short``, ``mixed``, or None.

    ``long`` has prompts of 6.9k tokens in the median and 27k at the ninth decile; with ticks ten
    come at one instant. ``mixed`` is half of those and half short ones.
    """
    rng, count = np.random.default_rng(0), 4000
    long = rng.lognormal(np.log(_LONG["median"]), np.log(27_000 / 6_900) / 1.2816, count)
    short, output = rng.lognormal(np.log(300.0), 0.8, count), rng.geometric(1 / 314, count)
    arrivals_s = np.cumsum(rng.exponential(_TICK_S / _TICK_REQUESTS, count))
    inputs = {
        "long": long,
        "long-ticks": long,
        "short": short,
        "mixed": np.where(rng.random(count) < 0.5, long, short),
    }.get(name)
    if inputs is None:
        return None
    if name == "long-ticks":
        arrivals_s = np.repeat(np.arange(count / _TICK_REQUESTS) * _TICK_S, _TICK_REQUESTS)
    return Requests(arrivals_s, Lengths(name, np.ceil(inputs).astype(np.int64), output))


def requests_of(trace: str) -> Requests:
    """A synthetic workload by its name, or the trace at that path."""
    from nexus.planner.workload.traces import read_trace

    return synthetic(trace) or read_trace(Path(trace))


def measure(case: Case) -> Outcome:
    """Make the plan in this process."""
    began = time.perf_counter()
    from nexus.core.errors import UserError
    from nexus.planner.search.solve import make_plan
    from nexus.profiles.schema import read_profile

    ttft, tbt = map(float, case.bounds.split("/"))
    try:
        made = make_plan(read_profile(case.profile), Bounds(ttft, tbt), requests_of(case.trace))
    except UserError as error:
        return _outcome(began, said=str(error)[:60])
    said = made.prediction
    return _outcome(
        began,
        per_s=said.capacity_per_s,
        stock_per_s=said.baseline_capacity_per_s,
        single_per_s=said.best_fixed_capacity_per_s,
        said=f"{made.policy}: {' '.join(list(made.modes)[:8])} ({said.baseline})",
    )


def _outcome(
    began: float,
    *,
    per_s: float = 0.0,
    stock_per_s: float = 0.0,
    single_per_s: float = 0.0,
    said: str = "",
) -> Outcome:
    used = resource.getrusage(resource.RUSAGE_SELF)
    cpu_s, peak_mb = used.ru_utime + used.ru_stime, used.ru_maxrss / 1024
    wall_s = time.perf_counter() - began
    return Outcome(wall_s, cpu_s, peak_mb, per_s, stock_per_s, single_per_s, said)


def outcomes(cases: list[Case], at_once: int) -> Iterator[tuple[Case, Outcome]]:
    """Each case in a process of its own, so that its memory is its own."""
    context = get_context("spawn")
    with ProcessPoolExecutor(at_once, mp_context=context, max_tasks_per_child=1) as pool:
        yield from zip(cases, pool.map(measure, cases), strict=True)


def row_of(case: Case, seen: Outcome) -> tuple[str, ...]:
    """As ``HEAD`` names them."""
    return (
        "/".join(case.profile.with_suffix("").parts[-2:]),
        Path(case.trace).stem,
        case.bounds,
        f"{seen.wall_s:.1f}",
        f"{seen.cpu_s:.1f}",
        f"{seen.peak_mb:.0f}",
        f"{seen.per_s:.4g}",
        f"{seen.stock_per_s:.4g}",
        f"{seen.single_per_s:.4g}",
        seen.said,
    )


def main() -> None:
    """Print the table, row by row."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("traces", nargs="*", help="more traces")
    parser.add_argument("--profile", type=Path, action="append", help="else all that are here")
    parser.add_argument("--trace", action="append", help="only these, synthetic ones by name")
    parser.add_argument("--bounds", action="append", help="only these, as TTFT/TBT in ms")
    parser.add_argument("--at-once", type=int, default=1, help="plans at a time")
    args = parser.parse_args()
    here = (ROOT / "profiles/h200", ROOT / "evidence/results/h200/vllm-0.26")
    profiles = args.profile or sorted(path for folder in here for path in folder.glob("*.yaml"))
    known = sorted(str(path) for path in (ROOT / "benchmarks/traces").glob("*.csv.gz"))
    traces = args.trace or [*known, "short", "mixed", "long", "long-ticks", *args.traces]
    bounds = args.bounds or BOUNDS
    cases = [Case(p, t, b) for p in profiles for t in traces for b in bounds]
    say = partial(print, flush=True)
    say(f"| {' | '.join(HEAD)} |\n|{'---|' * len(HEAD)}")
    for case, seen in outcomes(cases, args.at_once):
        say(f"| {' | '.join(row_of(case, seen))} |")


if __name__ == "__main__":
    main()
