"""``nexus serve --partitioner mps``: one command up, one signal down.

Started in this order: the MPS daemon; both engines at once; when they are healthy, the
router, and a first request through all of them. The end of any part is the end of all.
What a kill of this very process leaves behind is known from the run's folder and cleaned
up by the next start.
"""

import argparse
import signal
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path

from nexus.core.errors import MismatchError
from nexus.core.plan import Plan, read_plan
from nexus.runtime.machine import (
    check_machine,
    check_model,
    check_software,
    seen_apart,
    this_machine,
)
from nexus.runtime.mps.daemon import MpsDaemon, find_control
from nexus.runtime.mps.folder import clean_up, default_folder
from nexus.runtime.mps.part import Part, PartError, Recipe
from nexus.runtime.mps.processes import end, look, send, wait_until
from nexus.runtime.mps.recipes import (
    Address,
    Programs,
    Recipes,
    check_installed,
    check_options,
    make_recipes,
)
from nexus.runtime.ports import check_port
from nexus.runtime.vllm.compat import check_installed as check_vllm
from nexus.runtime.vllm.options import parse_serve

START_S = 900.0
FIRST_REQUEST_S = 300.0
_POLL_S = 0.25
_NOTE_S = 2.0
_MEMORY_S = 20.0
_GRACE_S = 5.0

Say = Callable[[str], None]


def serve(
    model: str,
    options: Sequence[str],
    table: Path,
    say: Say,
    force: bool = False,
    *,
    programs: Programs | None = None,
    folder: Path | None = None,
) -> None:
    """Run the server until SIGINT, SIGTERM or SIGHUP.

    Raises UserError before anything is started when the plan is not for MPS or does not
    fit the model or machine (unless ``force``), an option is refused, something is not
    installed, or the port is taken; PartError when a part does not come up, or ends.
    """
    programs = programs or Programs()
    check_options(options)
    check_vllm("options", device="cuda")
    arguments = parse_serve(model, options)
    plan = _plan_for(arguments, table, force)
    check_installed(programs)
    find_control(programs.control)
    folder = folder or default_folder()
    clean_up(folder)  # first, for it may be what has the port
    check_port(arguments.host, arguments.port)
    names = arguments.served_model_name or [model]
    address = Address(arguments.host, arguments.port, names[0])
    run(make_recipes(model, options, plan, address, programs), say, programs.control, folder)


def run(recipes: Recipes, say: Say, control: str, folder: Path) -> None:
    """Run the parts until SIGINT, SIGTERM or SIGHUP; raises as ``serve`` and ``MpsDaemon``."""
    with _stop_signals() as stop, MpsDaemon(folder, control) as daemon:
        Server(daemon, recipes, stop, say).run()


class Server:
    """The parts of one server, from the first to the last."""

    def __init__(
        self, daemon: MpsDaemon, recipes: Recipes, stop: threading.Event, say: Say
    ) -> None:
        """``stop`` ends the server; ``say`` takes a line for the user."""
        self._daemon = daemon
        self._recipes = recipes
        self._stop = stop
        self._say = say
        self._parts: list[Part] = []
        self._noted = self._noted_memory = 0.0

    def run(self) -> None:
        """Start the parts and watch them until ``stop``; raises PartError when one ends."""
        recipes, shares = self._recipes, self._recipes.shares
        try:
            self._say(
                f"starting two engines: prefill on {shares.prefill_percent} % of the SMs,"
                f" decode on {shares.decode_percent} %; logs in {self._daemon.run.log}"
            )
            engines = [
                self._start(recipes.prefill, self._daemon.client(shares.prefill_percent)),
                self._start(recipes.decode, self._daemon.client(shares.decode_percent)),
            ]
            self._await(engines)
            if self._stop.is_set():
                return
            router = self._start(recipes.router, self._daemon.mark())
            self._await([router])
            self._await_answer(router)
            if not self._stop.is_set():
                self._say(self._where())
            while not self._stop.wait(_POLL_S):
                self._check()
        finally:
            self._end()

    def _start(self, recipe: Recipe, environment: dict[str, str]) -> Part:
        # vLLM's own sockets go where the next start would clean them up.
        private = {"VLLM_RPC_BASE_PATH": str(self._daemon.run.sockets)}
        whole = replace(recipe, environment={**recipe.environment, **private, **environment})
        part = Part(whole, self._daemon.run.log)
        self._parts.append(part)
        self._daemon.run.own_session(part.pid)
        self._note(at_once=True)
        return part

    def _await(self, parts: Sequence[Part]) -> None:
        """Return when all of ``parts`` are healthy, or the server is to stop."""
        deadline = time.monotonic() + START_S
        waiting = list(parts)
        while waiting and not self._stop.wait(_POLL_S):
            self._check()
            waiting = [part for part in waiting if not part.is_up()]
            if waiting and time.monotonic() > deadline:
                raise PartError(f"the {waiting[0].name} was not up after {START_S:.0f} s")
        self._note(at_once=True)

    def _await_answer(self, router: Part) -> None:
        """Return when the first request was answered, or the server is to stop."""
        answers: list[tuple[int, str]] = []
        words = ("POST", "/v1/completions", self._recipes.first_request, FIRST_REQUEST_S)
        asking = threading.Thread(target=lambda: answers.append(router.ask(*words)), daemon=True)
        asking.start()
        while asking.is_alive() and not self._stop.wait(_POLL_S):
            self._check()
        if answers and answers[0][0] != 200:
            status, text = answers[0]
            logs = self._daemon.run.log
            raise PartError(f"the first request failed ({status}): {text[:300]}; logs in {logs}")

    def _check(self) -> None:
        if self._daemon.failure():
            raise PartError(f"{self._daemon.failure()}; its logs are in {self._daemon.run.log}")
        for part in self._parts:
            part.check()
        self._note()

    def _note(self, *, at_once: bool = False) -> None:
        """Put down from time to time who runs, and less often what memory they share."""
        now = time.monotonic()
        if at_once or now > self._noted + _NOTE_S:
            with_memory = at_once or now > self._noted_memory + _MEMORY_S
            self._daemon.note(look_for_memory=with_memory)
            self._noted = now
            self._noted_memory = now if with_memory else self._noted_memory

    def _where(self) -> str:
        recipes = self._recipes
        return (
            f"serving on port {recipes.router.port}; metrics: {recipes.prefill.url}/metrics,"
            f" {recipes.decode.url}/metrics, http://127.0.0.1:{recipes.metrics_port}/metrics"
        )

    def _end(self) -> None:
        """End the parts: their first processes are asked to, what is left after that is killed."""
        self._daemon.note()
        for part in reversed(self._parts):
            first = look(part.pid)
            if first is not None:
                send(first.process, signal.SIGTERM)
        wait_until(lambda: not self._daemon.clients(), _GRACE_S)
        end(self._daemon.clients(), 0.0)
        for part in self._parts:
            part.wait()


def _plan_for(arguments: argparse.Namespace, table: Path, force: bool) -> Plan:
    plan = read_plan(table)
    if plan.partitioner != "mps":
        raise MismatchError(
            f"{table} is a plan for green contexts: make one for MPS with"
            " `nexus plan --partitioner mps`, or serve it without --partitioner mps"
        )
    if not force:
        check_machine(plan.machine, seen_apart(this_machine), str(table))
        check_model(plan.model, arguments.model, str(table), arguments)
        check_software(plan.provenance.software, str(table))
    return plan


@contextmanager
def _stop_signals() -> Iterator[threading.Event]:
    """An event that SIGINT, SIGTERM and SIGHUP set, for as long as the context lasts."""
    stop = threading.Event()
    before = {
        number: signal.signal(number, lambda *_: stop.set())
        for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)
    }
    try:
        yield stop
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
