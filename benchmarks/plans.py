"""What each deployment is started with: its plan, made by the planner from one profile, its words.

The planner's own libraries are imported only when something has to be planned: plans can
be made on one machine and used on another that lacks them.
"""

import multiprocessing
import os
import re
import shlex
from collections.abc import Callable, Iterable
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass, replace
from itertools import pairwise
from pathlib import Path
from typing import NamedTuple

from nexus.benchmarks.agenda import Deployment, Grid, Job, deployments
from nexus.benchmarks.metrics import Objective
from nexus.benchmarks.results import PlanUsed
from nexus.benchmarks.search import Candidate, Forecast, Forecasts
from nexus.benchmarks.systems import SYSTEMS, Sharing
from nexus.benchmarks.workloads import to_plan_for
from nexus.core.errors import UserError
from nexus.core.io.documents import Provenance
from nexus.core.io.outputs import make_folder
from nexus.core.io.terminal import now
from nexus.core.plan import Plan, read_plan, write_plan
from nexus.core.slo import Bounds
from nexus.planner.workload.requests import Lengths, Requests
from nexus.profiles.schema import Profile

FORECASTS = "forecast.json"  # in the folder of plans
_DECISIVE = ("--systems", "--bounds", "--workloads", "--max-model-len")


class Kind(NamedTuple):
    """What shares the GPU, for which bounds and for which workload a plan is made."""

    sharing: Sharing
    objective: Objective
    workload: str

    @property
    def file(self) -> str:
        """Its name in a folder of plans."""
        words = (self.sharing, self.objective.name, self.workload)
        return "_".join(re.sub(r"\W+", "-", word) for word in words) + ".yaml"

    def command(self, model: str, source: str, max_model_len: int) -> str:
        """What makes this very plan again, and no other."""
        system = next(s.name for s in SYSTEMS.values() if s.sharing == self.sharing)
        words = ["nexus", "bench", model, "--only-plans", "--profile", source, "--plans", "plans"]
        words += ["--systems", system, "--bounds", self.objective.name]
        words += ["--workloads", self.workload, "--max-model-len", str(max_model_len)]
        return shlex.join(words)


class Plans:
    """Every plan that a benchmark needs, made at once on half of the machine's cores.

    Nothing else runs meanwhile: a planner beside a server would show in its numbers.
    """

    def __init__(
        self,
        profile: Profile,
        max_model_len: int,
        kinds: Iterable[Kind],
        folder: Path | None,
        source: str = "profile.yaml",
    ) -> None:
        """Makes them; one that cannot be made is an error only when it is asked for.

        What ``folder`` holds of this profile, made by the same command, is taken from there,
        the rest is put there. ``source`` is where the profile is from.
        """
        self._made: dict[Kind, Plan | UserError] = {}
        commands = {kind: kind.command(profile.model.name, source, max_model_len) for kind in kinds}
        for kind, command in commands.items():
            if folder is not None and (folder / kind.file).exists():
                plan = read_plan(folder / kind.file)
                alike = _asked(plan.provenance.command) == _asked(command)
                if plan.profile_hash == profile.hash and alike:
                    self._made[kind] = plan
        missing = [kind for kind in commands if kind not in self._made]
        workers = max(1, min(len(missing), (os.cpu_count() or 2) // 2))
        with ProcessPoolExecutor(workers, multiprocessing.get_context("spawn")) as pool:
            tasks = {
                kind: pool.submit(_make, profile, max_model_len, kind, commands[kind])
                for kind in missing
            }
            self._made |= {kind: task.result() for kind, task in tasks.items()}
        for kind in missing:
            made = self._made[kind]
            if folder is not None and not isinstance(made, UserError):
                write_plan(folder / kind.file, made)

    def get(self, kind: Kind) -> Plan:
        """The plan of that kind; raises the UserError that it failed with."""
        made = self._made[kind]
        if isinstance(made, UserError):
            raise made
        return made


def kinds_of(grid: Grid) -> list[Kind]:
    """Every plan that the grid's systems serve with."""
    return list(dict.fromkeys(filter(None, map(kind_of, deployments(grid, None)))))


def kind_of(deployment: Deployment) -> Kind | None:
    """The plan that it serves with; None for stock vLLM."""
    sharing, bounds = deployment.system.sharing, deployment.planned_for
    if sharing is None or bounds is None or deployment.planned_on is None:
        return None
    return Kind(sharing, bounds, deployment.planned_on)


def _make(profile: Profile, max_model_len: int, kind: Kind, command: str) -> Plan | UserError:
    known = to_plan_for(kind.workload, max_model_len)
    by = Provenance(now(), command, dict(profile.provenance.software))
    try:
        return plan_for(kind.sharing, profile, kind.objective.bounds, known, by)
    except UserError as error:
        return error


def _asked(command: str) -> set[tuple[str, str]]:
    """The options that a plan depends on; which profile it is from, the profile's hash says."""
    return {pair for pair in pairwise(shlex.split(command)) if pair[0] in _DECISIVE}


def plan_for(
    sharing: Sharing, profile: Profile, bounds: Bounds, workload: Lengths | Requests, by: Provenance
) -> Plan:
    """The best plan of that kind for ``workload`` under ``bounds``.

    ``fused`` is planned as if no partition had been measured; ``split`` and ``overlap``
    are one partition in every state, the one that sustains most in simulation; ``mps`` is
    the best static share of two engines. Raises InfeasibleError, or UserError when the
    profile holds no such partition.
    """
    from nexus.planner.search.solve import make_plan
    from nexus.planner.search.static import make_static_plan

    command, created = by.command, by.created
    if sharing == "plan":
        return make_plan(profile, bounds, workload, command=command, created=created)
    if sharing == "mps":
        made = make_static_plan(
            profile, bounds, workload, green=None, command=command, created=created
        )
        return made.plan
    if sharing == "fused":
        unshared = [sample for sample in profile.samples if sample.mode not in ("split", "overlap")]
        alone = replace(profile, samples=tuple(unshared))
        plan = make_plan(alone, bounds, workload, command=command, created=created)
        return replace(plan, profile_hash=profile.hash)
    return _static(sharing, profile, bounds, workload, by)


def _static(
    sharing: Sharing, profile: Profile, bounds: Bounds, workload: Lengths | Requests, by: Provenance
) -> Plan:
    from nexus.planner.search.choice import rows_of_one
    from nexus.planner.search.solve import make_plan_search

    plan_search = make_plan_search(profile, bounds, workload, by)
    modes = [mode for mode in plan_search.shared if mode.mode == sharing]
    if not modes:
        raise UserError(f"the profile holds no {sharing} samples")
    evaluated = [plan_search.evaluate(plan_search.always(mode)) for mode in modes]
    best = modes[max(range(len(modes)), key=lambda i: (evaluated[i].per_s, evaluated[i].good))]
    rows = rows_of_one(plan_search.problem, best, plan_search.draft.axes.states())
    return plan_search.draft.plan([best], rows, "fixed")


@dataclass(frozen=True)
class Ready:
    """A deployment to start: its plan, the words of ``nexus serve``, and those for results."""

    deployment: Deployment
    plan: Plan | None
    used: PlanUsed | None
    words: list[str]
    command: str


class Preparations:
    """All of one job; plans and forecasts are made when first needed."""

    def __init__(self, job: Job, folder: Path, say: Callable[[str], None]) -> None:
        """Plans that are served are written to ``folder``."""
        self._job, self._folder, self._say = job, folder, say
        self._planned: Plans | None = None
        limits = (job.max_model_len, job.max_num_seqs, job.duration_s)
        forecast = Forecast(job.profile, *limits) if job.profile else None
        self._forecasts = Forecasts(forecast, job.plans and job.plans / FORECASTS)

    def prepare(self, deployment: Deployment) -> Ready:
        """Make it ready; raises UserError when there can be no plan."""
        job, plan = self._job, self._plan(deployment)
        used = table = None
        if plan is not None:
            used = PlanUsed.of(plan)
            table = self._folder / f"plan-{used.hash}.yaml"
            write_plan(table, plan)
        words = deployment.system.words(job.model, job.options, table)
        named = [f"plan:{used.hash}" if used and word == str(table) else word for word in words]
        told = [short_name(word) if Path(word).exists() else word for word in named]  # no paths
        return Ready(deployment, plan, used, words, shlex.join(["nexus", "serve", *told]))

    def expected(self, ready: Ready, workload: str) -> dict[Objective, float]:
        """Where its goodput is expected at each of its bounds; empty if nothing says."""
        if not self._job.grid.searches(workload):
            return {}
        who = Candidate(ready.deployment.system, ready.plan, ready.used.hash if ready.used else "")
        found = {
            objective: self._forecasts.of(who, workload, objective)
            for objective in ready.deployment.objectives
        }
        return {objective: rate for objective, rate in found.items() if rate is not None}

    def _plan(self, deployment: Deployment) -> Plan | None:
        job, sharing = self._job, deployment.system.sharing
        if sharing is None:
            return None
        if job.plan is not None:
            if sharing != ("mps" if job.plan.partitioner == "mps" else "plan"):
                raise UserError(f"{deployment.system.name} is planned from a profile: --profile")
            return job.plan
        kind = kind_of(deployment)
        if job.profile is None or kind is None:
            raise UserError("a Nexus system needs --profile or --table")
        if self._planned is None:
            kinds = kinds_of(job.grid)
            self._say(f"{len(kinds)} plans")
            self._planned = Plans(job.profile, job.max_model_len, kinds, job.plans, job.source)
        return self._planned.get(kind)


def make_plans(job: Job, folder: Path, say: Callable[[str], None]) -> int:
    """Fill the job's folder of plans, and of forecasts; how many plans there are.

    Each system's expected crossings are said. Raises UserError.
    """
    if job.profile is None or job.plans is None:
        raise UserError("--only-plans needs --profile and --plans")
    make_folder(job.plans)
    preparations = Preparations(job, folder, say)
    for deployment in deployments(job.grid, None):
        ready = preparations.prepare(deployment)
        for name in deployment.workloads:
            expected = preparations.expected(ready, name)
            told = ", ".join(f"{rate:g} at {bounds.name}" for bounds, rate in expected.items())
            say(f"{deployment.label}, {name}: {told or 'no forecast'}")
    return len(kinds_of(job.grid))


def short_name(name: str) -> str:
    """The last part of a path or of a hub's name."""
    return name.rstrip("/").rpartition("/")[2]
