"""``nexus bench``: one machine, several systems, the same requests."""

import gzip
import json
import os
import re
import signal
import sys
import time
from collections import deque
from collections.abc import Callable
from contextlib import ExitStack
from dataclasses import replace
from pathlib import Path
from typing import Any

from nexus.benchmarks.agenda import Deployment, Job, deployments, next_cell, wanted_rates
from nexus.benchmarks.client import RunError, TooSlowError, prepare, replay
from nexus.benchmarks.machine import watched
from nexus.benchmarks.metrics import Objective, summarize
from nexus.benchmarks.plans import Preparations, Ready, short_name
from nexus.benchmarks.results import SCHEMA, Cell, Key, Setting, Store, part_of
from nexus.benchmarks.workloads import as_timed_trace, digest, requests_at
from nexus.core.errors import NexusError, UserError
from nexus.core.io.outputs import check_writable, make_folder
from nexus.core.io.terminal import now
from nexus.planner.workload.requests import Requests
from nexus.runtime.server_process import Server, ServerError

START_S = 900.0  # the first start of a machine compiles kernels
_FIRST_START_S = 120.0  # compiles kernels; later ones find them
_LATER_START_S = 60.0
_BEFORE_S, _AFTER_S = 4.0, 8.0  # a run's prompts are made; its last requests end
_LAST_RUNS = 3
_SLACK = 3.0  # a run may take this many times its duration, and a minute


class OutOfTimeError(NexusError):
    """The call's minutes are over; the same command goes on from there."""


class Budget:
    """Of one call; what it expects is what it has seen last."""

    def __init__(self, minutes: float | None, duration_s: float) -> None:
        """``minutes`` from now, None for no end; a run sends requests for ``duration_s``."""
        self._end = None if minutes is None else time.monotonic() + 60 * minutes
        self._start_s = _FIRST_START_S
        self._runs_s: deque[float] = deque(maxlen=_LAST_RUNS)
        self._duration_s = duration_s

    @property
    def left_s(self) -> float:
        """Seconds to the end."""
        return float("inf") if self._end is None else self._end - time.monotonic()

    def started(self, seconds: float) -> None:
        """A server took so long to start."""
        self._start_s = min(seconds, _LATER_START_S)

    def ran(self, seconds: float) -> None:
        """A run took so long, from making its prompts to its last token."""
        self._runs_s.append(seconds)

    def require(self, *, starting: bool) -> None:
        """Raise OutOfTimeError unless a run can end in time, with a start before it if need be."""
        usual_s = _BEFORE_S + self._duration_s + _AFTER_S
        needed_s = max([usual_s, *self._runs_s]) + (self._start_s if starting else 0.0)
        if needed_s > self.left_s:
            raise OutOfTimeError("out of time: the same command goes on from here")


class Bench:
    """Works through the agenda; ``say`` gets a line whenever something is done."""

    def __init__(self, job: Job, folder: Path, say: Callable[[str], None]) -> None:
        """``folder`` is for plans, traces and logs, and may be thrown away afterwards."""
        self._job, self._folder, self._say = job, folder, say
        self._here = job.here
        self._budget = Budget(job.minutes, job.duration_s)
        names = (short_name(job.model), self._here.machine.name)
        name = "_".join("-".join(re.findall(r"[a-z0-9.]+", each.lower())) for each in names)
        path = part_of(make_folder(job.output), name, job.part)
        check_writable(path)
        self.store = Store(path)
        self.failed: set[str] = set()
        self._preparations = Preparations(job, folder, say)
        self._runs = 0
        self._digests: dict[tuple[str, float | None, int], str] = {}

    def run(self) -> None:
        """Every cell that is not there yet; raises OutOfTimeError."""
        plan = self._job.plan
        given = None if plan is None else Objective.of(plan.bounds)
        for deployment in deployments(self._job.grid, given):
            try:
                self._do(deployment)
            except OutOfTimeError:
                raise
            except UserError as error:  # RunError, or no plan: nothing more of this system
                self.failed.add(deployment.label)
                self._say(f"{deployment.label}: given up: {error}")

    def _do(self, deployment: Deployment) -> None:
        ready = self._preparations.prepare(deployment)
        with ExitStack() as stack:
            server: Server | None = None
            for workload in deployment.workloads:
                expected = self._preparations.expected(ready, workload)
                while (cell := self._next(ready, workload, expected)) is not None:
                    rate, repeat = cell
                    self._budget.require(starting=server is None)
                    if server is None:
                        server = self._start(ready, stack, workload)
                    self._measure(ready, server, workload, rate, repeat)

    def _next(
        self, ready: Ready, workload: str, expected: dict[Objective, float]
    ) -> tuple[float | None, int] | None:
        grid = self._job.grid
        rates = grid.rates_of(workload)
        if not rates and not expected:
            burst_per_s = self._burst_per_s(workload)
            if burst_per_s is None:
                return None, 0
            rates = wanted_rates(grid, burst_per_s)
        measured = []
        for cell in self.store:
            same = self._cell(ready, workload, cell.key.rate, cell.key.repeat)
            if (cell.key, cell.setting) == (same.key, same.setting):
                measured.append(cell)
        objectives = ready.deployment.objectives if grid.searches(workload) else ()
        return next_cell(grid, objectives, measured, rates, expected)

    def _burst_per_s(self, workload: str) -> float | None:
        """What any system served a burst at, on this machine and with this model."""
        wanted = (workload, None, self._here.machine, self._here.model_hash)
        for cell in self.store:
            key, setting = cell.key, cell.setting
            which = (key.workload, key.rate, setting.machine, setting.model_hash)
            if cell.metrics is not None and which == wanted:
                return cell.metrics.requests_per_s
        return None

    def _start(self, ready: Ready, stack: ExitStack, workload: str) -> Server:
        began = time.monotonic()
        log = self._folder / f"{ready.deployment.system.name}.log"
        try:
            limit_s = min(START_S, self._budget.left_s)
            server = stack.enter_context(Server(ready.words, log, limit_s))
        except ServerError as error:
            if self._budget.left_s <= 1:
                raise OutOfTimeError("out of time while a server was starting") from error
            raise
        seconds = time.monotonic() - began
        self._budget.started(seconds)
        self._say(f"{ready.deployment.label}: up in {seconds:.0f} s")
        if self._job.warm_up:
            requests = self._requests(workload, None, 1, count=self._job.warm_up)
            self._replay(server, requests, START_S)
        return server

    def _measure(
        self, ready: Ready, server: Server, workload: str, rate: float | None, repeat: int
    ) -> None:
        cell = self._cell(ready, workload, rate, repeat)
        requests = self._requests(workload, rate, repeat)
        limit_s = _SLACK * self._job.duration_s + 60 + (START_S if rate is None else 0)
        began = time.monotonic()
        try:
            with watched(self._here) as condition:
                details = self._replay(server, requests, limit_s)
        except RunError as error:
            server.check()  # a dead server is no result
            if rate is None or not isinstance(error, TooSlowError) or not server.healthy():
                raise
            self.store.add(cell := replace(cell, error=str(error)))
        else:
            metrics, per_request = summarize(details)
            if metrics.completed == 0:
                raise RunError(f"every request failed: {_first_error(details)}")
            cell = replace(cell, metrics=metrics, per_request=per_request, condition=condition())
            self._keep_raw(details, digest(cell.created + ready.command + workload))
            self.store.add(cell)
        self._budget.ran(time.monotonic() - began)
        self._say(f"{ready.deployment.label}: {_told(cell)}")

    def _replay(self, server: Server, requests: Requests, limit_s: float) -> dict[str, Any]:
        """Raises OutOfTimeError when the call's minutes end first, TooSlowError at ``limit_s``."""
        job, left_s = self._job, self._budget.left_s
        self._runs += 1  # no run finds the prompts of one before it in the prefix cache
        try:
            return replay(
                *(job.model, server.port, requests, self._folder),
                *(min(limit_s, left_s), server.check, self._runs),
            )
        except TooSlowError as error:
            if left_s < limit_s:
                raise OutOfTimeError("out of time during a run, which is not kept") from error
            raise

    def _requests(
        self, workload: str, rate: float | None, repeat: int, count: int | None = None
    ) -> Requests:
        job = self._job
        if rate is not None:
            return requests_at(workload, rate, job.duration_s, repeat, job.max_model_len)
        many = float(count or job.burst)
        return requests_at(workload, float("inf"), many, repeat, job.max_model_len)

    def _cell(self, ready: Ready, workload: str, rate: float | None, repeat: int) -> Cell:
        """What is to be measured, without any results."""
        planned = ready.deployment.planned_for
        setting = Setting(
            model=short_name(self._job.model),
            model_hash=self._here.model_hash,
            machine=self._here.machine,
            software=self._here.software,
            command=ready.command,
            duration_s=self._job.duration_s,
            requests_hash=self._digest(workload, rate, repeat),
            plan=ready.used,
        )
        objective = None if planned is None else planned.name
        key = Key(ready.deployment.system.name, workload, repeat, rate, objective)
        gpu_index = os.environ.get("CUDA_VISIBLE_DEVICES")
        return Cell(SCHEMA, key, setting, now(), gpu=self._here.gpu_uuid, gpu_index=gpu_index)

    def _digest(self, workload: str, rate: float | None, repeat: int) -> str:
        which = (workload, rate, repeat)
        if which not in self._digests:
            self._digests[which] = digest(as_timed_trace(self._requests(*which)))
        return self._digests[which]

    def _keep_raw(self, details: dict[str, Any], name: str) -> None:
        if not self._job.keep_raw:
            return
        folder = self.store.path.parent / "raw"
        folder.mkdir(parents=True, exist_ok=True)
        kept = {k: v for k, v in details.items() if k != "generated_texts"}
        (folder / f"{name}.json.gz").write_bytes(gzip.compress(json.dumps(kept).encode()))


def bench(job: Job, folder: Path, say: Callable[[str], None]) -> tuple[Path, bool]:
    """Measure what is missing; the file of results, and whether no system was given up.

    ``folder`` is for plans, traces and logs.
    """
    # A server must not outlive its benchmark.
    signal.signal(signal.SIGTERM, lambda number, _: sys.exit(128 + number))
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
