"""The plan that each kind of sharing serves with, made by the planner from one profile.

The planner's own libraries are imported only when something has to be planned: plans can
be made on one machine and used on another that lacks them.
"""

import multiprocessing
import os
import re
import shlex
from collections.abc import Iterable
from concurrent.futures import ProcessPoolExecutor
from dataclasses import replace
from itertools import pairwise
from pathlib import Path

from nexus.benchmarks.agenda import Deployment, Grid, deployments
from nexus.benchmarks.metrics import Objective
from nexus.benchmarks.systems import SYSTEMS, Sharing
from nexus.benchmarks.workloads import to_plan_for
from nexus.core.errors import UserError
from nexus.core.io.documents import Provenance
from nexus.core.io.terminal import now
from nexus.core.plan import Plan, read_plan, write_plan
from nexus.core.slo import Bounds
from nexus.planner.workload.requests import Lengths, Requests
from nexus.profiles.schema import Profile

Kind = tuple[Sharing, Objective, str]  # what shares, for which bounds, for which workload

_DECISIVE = ("--systems", "--bounds", "--workloads", "--max-model-len")


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
        the rest is put there.
        ``source`` is where the profile is from.
        """
        self._made: dict[Kind, Plan | UserError] = {}
        for kind in kinds:
            if folder is not None and (folder / _file(kind)).exists():
                plan = read_plan(folder / _file(kind))
                wanted = _command(profile.model.name, source, max_model_len, kind)
                alike = _asked(plan.provenance.command) == _asked(wanted)
                if plan.profile_hash == profile.hash and alike:
                    self._made[kind] = plan
        missing = [kind for kind in dict.fromkeys(kinds) if kind not in self._made]
        workers = max(1, min(len(missing), (os.cpu_count() or 2) // 2))
        with ProcessPoolExecutor(workers, multiprocessing.get_context("spawn")) as pool:
            tasks = {
                kind: pool.submit(_make, profile, source, max_model_len, kind) for kind in missing
            }
            self._made |= {kind: task.result() for kind, task in tasks.items()}
        for kind in missing:
            made = self._made[kind]
            if folder is not None and not isinstance(made, UserError):
                write_plan(folder / _file(kind), made)

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
    sharing, bounds, workload = (
        deployment.system.sharing,
        deployment.planned_for,
        deployment.planned_on,
    )
    if sharing is None or bounds is None or workload is None:
        return None
    return sharing, bounds, workload


def _file(kind: Kind) -> str:
    sharing, objective, workload = kind
    return (
        "_".join(re.sub(r"\W+", "-", part) for part in (sharing, objective.name, workload))
        + ".yaml"
    )


def _make(profile: Profile, source: str, max_model_len: int, kind: Kind) -> Plan | UserError:
    sharing, objective, workload = kind
    known = to_plan_for(workload, max_model_len)
    by = Provenance(
        created=now(),
        command=_command(profile.model.name, source, max_model_len, kind),
        software=dict(profile.provenance.software),
    )
    try:
        return plan_for(sharing, profile, objective.bounds, known, by)
    except UserError as error:
        return error


def _command(model: str, source: str, max_model_len: int, kind: Kind) -> str:
    """What makes this very plan again, and no other."""
    sharing, objective, workload = kind
    system = next(system.name for system in SYSTEMS.values() if system.sharing == sharing)
    words = ["nexus", "bench", model, "--only-plans", "--profile", source, "--plans", "plans"]
    words += ["--systems", system, "--bounds", objective.name, "--workloads", workload]
    return shlex.join([*words, "--max-model-len", str(max_model_len)])


def _asked(command: str) -> set[tuple[str, str]]:
    """The options that a plan depends on; which profile it is from, the profile's hash says."""
    words = shlex.split(command)
    return {pair for pair in pairwise(words) if pair[0] in _DECISIVE}


def plan_for(
    sharing: Sharing, profile: Profile, bounds: Bounds, workload: Lengths | Requests, by: Provenance
) -> Plan:
    """The best plan of that kind for ``workload`` under ``bounds``.

    ``fused`` is planned as if no partition had been measured; ``split`` and ``overlap``
    are one partition in every state, the one that sustains most in simulation; ``mps`` is
    the best static share of two engines. Raises InfeasibleError, or UserError when the
    profile holds no such partition.
    """
    if sharing == "plan":
        return _planned(profile, bounds, workload, by)
    if sharing == "mps":
        return _under_mps(profile, bounds, workload, by)
    if sharing == "fused":
        unshared = [sample for sample in profile.samples if sample.mode not in ("split", "overlap")]
        plan = _planned(replace(profile, samples=tuple(unshared)), bounds, workload, by)
        return replace(plan, profile_hash=profile.hash)
    return _static(sharing, profile, bounds, workload, by)


def _planned(
    profile: Profile, bounds: Bounds, workload: Lengths | Requests, by: Provenance
) -> Plan:
    from nexus.planner.search.solve import make_plan

    return make_plan(profile, bounds, workload, command=by.command, created=by.created)


def _under_mps(
    profile: Profile, bounds: Bounds, workload: Lengths | Requests, by: Provenance
) -> Plan:
    from nexus.planner.search.static import make_static_plan

    command, created = by.command, by.created
    made = make_static_plan(profile, bounds, workload, green=None, command=command, created=created)
    return made.plan


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
