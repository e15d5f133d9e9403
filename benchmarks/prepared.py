"""A server that is set up to be started: its command, its plan, and what is expected of it."""

import re
import shlex
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from nexus.benchmarks.agenda import Deployment
from nexus.benchmarks.forecast import Candidate, Forecast, Forecasts
from nexus.benchmarks.job import Job
from nexus.benchmarks.metrics import Objective
from nexus.benchmarks.plans import Plans, kind_of, kinds_of
from nexus.benchmarks.results import PlanUsed
from nexus.core.errors import UserError
from nexus.core.plan import Plan, write_plan
from nexus.profiles.schema import Profile

FORECASTS = "forecast.json"  # in the folder of plans


@dataclass(frozen=True)
class Ready:
    """A deployment that is set up: its plan, the words of ``nexus serve``, and those as told."""

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
        self._forecasts = Forecasts(_forecast(job), job.plans and job.plans / FORECASTS)

    def prepare(self, deployment: Deployment) -> Ready:
        """Make it ready; raises UserError when there can be no plan."""
        job, system = self._job, deployment.system
        plan = self._plan(deployment)
        used = table = None
        if plan is not None:
            used = PlanUsed.of(plan)
            table = self._folder / f"plan-{used.hash}.yaml"
            write_plan(table, plan)
        words = system.words(job.model, job.options, table)
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
        if deployment.system.sharing is None:
            return None
        if self._job.plan is not None:
            sharing = "mps" if self._job.plan.partitioner == "mps" else "plan"
            if deployment.system.sharing != sharing:
                raise UserError(f"{deployment.system.name} is planned from a profile: --profile")
            return self._job.plan
        kind = kind_of(deployment)
        if self._job.profile is None or kind is None:
            raise UserError("a Nexus system needs --profile or --table")
        return self._plans(self._job.profile).get(kind)

    def _plans(self, profile: Profile) -> Plans:
        """All of them, made when the first is needed."""
        if self._planned is None:
            job, kinds = self._job, kinds_of(self._job.grid)
            self._say(f"{len(kinds)} plans")
            self._planned = Plans(profile, job.max_model_len, kinds, job.plans, job.source)
        return self._planned


def _forecast(job: Job) -> Forecast | None:
    if job.profile is None:
        return None
    return Forecast(job.profile, job.max_model_len, job.max_num_seqs, job.duration_s)


def short_name(name: str) -> str:
    """The last part of a path or of a hub's name."""
    return name.rstrip("/").rpartition("/")[2]


def plain_name(name: str) -> str:
    """In lower case, of letters, digits, points and dashes."""
    return "-".join(re.findall(r"[a-z0-9.]+", name.lower()))
