"""``nexus bench``: one machine, several systems, the same requests."""

import gzip
import json
import re
import shlex
import time
from collections.abc import Callable
from contextlib import ExitStack
from dataclasses import dataclass, replace
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from nexus.benchmarks.agenda import Deployment, Task, agenda, next_cell
from nexus.benchmarks.client import RunError, TooSlowError, prepare, replay
from nexus.benchmarks.job import Job
from nexus.benchmarks.machine import Clock
from nexus.benchmarks.metrics import Objective, summarize
from nexus.benchmarks.plans import Plans, kinds_of
from nexus.benchmarks.results import SCHEMA, Cell, Key, PlanUsed, Setting, Store
from nexus.benchmarks.server import Server
from nexus.benchmarks.workloads import as_timed_trace, digest, requests_at
from nexus.errors import NexusError, UserError
from nexus.planner.table import Plan, write_plan
from nexus.planner.workload import Requests
from nexus.profiles.schema import Profile

START_S = 900.0  # the first start of a machine compiles kernels
_SLACK = 3.0  # a run may take this many times its duration, and a minute
_GENERATING_S = 5.0  # to make the prompts, and to let the last requests end


@dataclass(frozen=True)
class _Ready:
    """A deployment that is set up: its plan's file, the command, and who it is."""

    deployment: Deployment
    plan: Plan | None
    words: list[str]
    command: str


class OutOfTimeError(NexusError):
    """The call's minutes are over; the same command goes on from there."""


class Bench:
    """Works through the agenda; ``say`` gets a line whenever something is done."""

    def __init__(self, job: Job, folder: Path, say: Callable[[str], None]) -> None:
        """``folder`` is for plans, traces and logs, and may be thrown away afterwards."""
        self._job, self._folder, self._say = job, folder, say
        self._here = job.here
        self._end = None if job.minutes is None else time.monotonic() + 60 * job.minutes
        name = "_".join(map(_plain, (_short(job.model), self._here.machine.name)))
        self.store = Store(job.output / f"{name}.jsonl")
        self._start_s = 60.0
        self.failed: set[str] = set()
        self._planned: Plans | None = None
        self._digests: dict[tuple[str, float | None, int], str] = {}

    def run(self) -> None:
        """Every cell that is not there yet; raises OutOfTimeError."""
        plan = self._job.plan
        given = None if plan is None else Objective.of(plan.bounds)
        for task in agenda(self._job.grid, given, self._end is not None):
            if task.deployment.label in self.failed:
                continue
            try:
                self._do(task)
            except OutOfTimeError:
                raise
            except UserError as error:  # RunError, or no plan: nothing more of this system
                self.failed.add(task.deployment.label)
                self._say(f"{task.deployment.label}: given up: {error}")

    def _do(self, task: Task) -> None:
        ready: _Ready | None = None
        with ExitStack() as stack:
            server: Server | None = None
            for workload in task.deployment.workloads:
                ready = ready or self._prepare(task.deployment)
                while (cell := self._next(task, ready, workload)) is not None:
                    rate, repeat = cell
                    self._keep_time(starting=server is None)
                    if server is None:
                        server = self._start(ready, stack, workload)
                    self._measure(ready, server, workload, rate, repeat)

    def _next(self, task: Task, ready: _Ready, workload: str) -> tuple[float | None, int] | None:
        burst_per_s = self._burst_per_s(workload)
        if burst_per_s is None and not self._job.grid.rates:
            return None, 0
        measured = [
            cell
            for cell in self.store
            if cell.key == self._key(ready, workload, cell.key.rate, cell.key.repeat)
            and cell.setting == self._setting(ready, workload, cell.key.rate, cell.key.repeat)
        ]
        return next_cell(self._job.grid, task, measured, burst_per_s)

    def _burst_per_s(self, workload: str) -> float | None:
        """What any system served a burst at, on this machine and with this model."""
        for cell in self.store:
            same = (cell.key.workload, cell.key.rate) == (workload, None)
            if same and cell.setting.machine == self._here.machine and cell.metrics:
                return cell.metrics.requests_per_s
        return None

    def _prepare(self, deployment: Deployment) -> _Ready:
        job, system = self._job, deployment.system
        plan = self._plan(deployment)
        table = None
        if plan is not None:
            table = self._folder / f"plan-{plan.hash}.yaml"
            write_plan(table, plan)
        words = system.words(job.model, job.options, table)
        named = [f"plan:{plan.hash}" if plan and word == str(table) else word for word in words]
        told = [_short(word) if Path(word).exists() else word for word in named]  # no paths
        return _Ready(deployment, plan, words, shlex.join(["nexus", "serve", *told]))

    def _plan(self, deployment: Deployment) -> Plan | None:
        sharing, objective = deployment.system.sharing, deployment.planned_for
        if sharing is None or objective is None:
            return None
        if self._job.plan is not None:
            if sharing != ("mps" if self._job.plan.partitioner == "mps" else "plan"):
                raise UserError(f"{deployment.system.name} is planned from a profile: --profile")
            return self._job.plan
        if self._job.profile is None:
            raise UserError("a Nexus system needs --profile or --table")
        (workload,) = deployment.workloads
        return self._plans(self._job.profile).get((sharing, objective, workload))

    def _plans(self, profile: Profile) -> Plans:
        """All of them, made when the first is needed."""
        if self._planned is None:
            job, kinds = self._job, kinds_of(self._job.grid)
            self._say(f"{len(kinds)} plans")
            self._planned = Plans(profile, job.max_model_len, kinds, job.plans)
        return self._planned

    def _start(self, ready: _Ready, stack: ExitStack, workload: str) -> Server:
        began = time.monotonic()
        log = self._folder / f"{ready.deployment.system.name}.log"
        server = stack.enter_context(Server(ready.words, log, START_S))
        self._start_s = time.monotonic() - began
        self._say(f"{ready.deployment.label}: up in {self._start_s:.0f} s")
        if self._job.warm_up:
            requests = self._requests(workload, None, 1, count=self._job.warm_up)
            self._replay(server, as_timed_trace(requests), self._job.warm_up, START_S)
        return server

    def _measure(
        self, ready: _Ready, server: Server, workload: str, rate: float | None, repeat: int
    ) -> None:
        key = self._key(ready, workload, rate, repeat)
        requests = self._requests(workload, rate, repeat)
        cell = Cell(SCHEMA, key, self._setting(ready, workload, rate, repeat), _now())
        count = len(requests.arrivals_s)
        limit_s = _SLACK * self._job.duration_s + 60 + (START_S if rate is None else 0)
        try:
            with Clock(self._here) as clock:
                details = self._replay(server, as_timed_trace(requests), count, limit_s)
        except RunError as error:
            server.check()  # a dead server is no result
            if rate is None or not isinstance(error, TooSlowError) or not server.healthy():
                raise
            self.store.add(cell := replace(cell, error=str(error)))
        else:
            metrics, per_request = summarize(details)
            if metrics.completed == 0:
                raise RunError(f"every request failed: {_first_error(details)}")
            cell = replace(
                cell, metrics=metrics, per_request=per_request, condition=clock.condition
            )
            self._keep_raw(details, digest(cell.created + ready.command + workload))
            self.store.add(cell)
        self._say(f"{ready.deployment.label}: {_told(cell)}")

    def _replay(self, server: Server, trace: str, count: int, limit_s: float) -> dict[str, Any]:
        path = self._folder / "trace.jsonl"
        path.write_text(trace, encoding="utf-8")
        job = self._job
        return replay(job.model, server.port, path, count, self._folder, limit_s, server.check)

    def _requests(
        self, workload: str, rate: float | None, repeat: int, count: int | None = None
    ) -> Requests:
        job = self._job
        if rate is None:
            many = float(count or job.burst)
            return requests_at(workload, float("inf"), many, repeat, job.max_model_len)
        return requests_at(workload, rate, job.duration_s, repeat, job.max_model_len)

    def _key(self, ready: _Ready, workload: str, rate: float | None, repeat: int) -> Key:
        planned = ready.deployment.planned_for
        objective = None if planned is None else planned.name
        return Key(ready.deployment.system.name, workload, repeat, rate, objective)

    def _setting(self, ready: _Ready, workload: str, rate: float | None, repeat: int) -> Setting:
        return Setting(
            model=_short(self._job.model),
            model_hash=self._here.model_hash,
            machine=self._here.machine,
            software=self._here.software,
            command=ready.command,
            duration_s=self._job.duration_s,
            requests_hash=self._digest(workload, rate, repeat),
            plan=None if ready.plan is None else PlanUsed.of(ready.plan),
        )

    def _digest(self, workload: str, rate: float | None, repeat: int) -> str:
        which = (workload, rate, repeat)
        if which not in self._digests:
            self._digests[which] = digest(as_timed_trace(self._requests(*which)))
        return self._digests[which]

    def _keep_time(self, *, starting: bool) -> None:
        needs = 1.3 * self._job.duration_s + _GENERATING_S + (self._start_s if starting else 0.0)
        if self._end is not None and time.monotonic() + needs > self._end:
            raise OutOfTimeError("out of time: the same command goes on from here")

    def _keep_raw(self, details: dict[str, Any], name: str) -> None:
        if not self._job.keep_raw:
            return
        folder = self.store.path.parent / "raw"
        folder.mkdir(parents=True, exist_ok=True)
        kept = {k: v for k, v in details.items() if k != "generated_texts"}
        text = json.dumps(kept).encode()
        (folder / f"{name}.json.gz").write_bytes(gzip.compress(text))


def bench(job: Job, folder: Path, say: Callable[[str], None]) -> tuple[Path, bool]:
    """Measure what is missing; the file of results, and whether no system was given up.

    ``folder`` is for plans, traces and logs.
    """
    prepare()
    runner = Bench(job, folder, say)
    say(f"results go to {runner.store.path}")
    try:
        runner.run()
    except OutOfTimeError as stop:
        say(str(stop))
    return runner.store.path, not runner.failed


def _told(cell: Cell) -> str:
    key, metrics = cell.key, cell.metrics
    at = "a burst" if key.rate is None else f"{key.rate:g} req/s"
    where = f"{key.workload} at {at} (repeat {key.repeat})"
    if metrics is None or metrics.ttft is None or metrics.tbt is None:
        return f"{where}: {cell.error or f'{metrics and metrics.failed} requests failed'}"
    return (
        f"{where}: TTFT p50 {metrics.ttft.p50:.0f} p95 {metrics.ttft.p95:.0f}, TBT p50 "
        f"{metrics.tbt.p50:.1f} p95 {metrics.tbt.p95:.1f} p99 {metrics.tbt.p99:.1f} ms, "
        f"{metrics.requests_per_s:.2f} req/s, {metrics.failed} failed"
    )


def _first_error(details: dict[str, Any]) -> str:
    told = next((str(error) for error in details["errors"] if error), "no token came")
    return told.strip().splitlines()[-1]


def _short(name: str) -> str:
    return name.rstrip("/").rpartition("/")[2]


def _plain(name: str) -> str:
    return "-".join(re.findall(r"[a-z0-9.]+", name.lower()))


def _now() -> str:
    return datetime.now(UTC).isoformat(timespec="seconds")
