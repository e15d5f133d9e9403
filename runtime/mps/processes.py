"""Processes that are surely the ones meant, and the end of them.

A pid alone is reused; a pid together with the moment its process started is not, until
the machine boots again. Processes are also known by a word in their environment, which
their children inherit. Linux only, as MPS is.

Start times are the kernel's own: psutil's are of the clock, which may be set meanwhile.
"""

import os
import signal
import time
from collections.abc import Callable, Collection
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

import psutil

MARKER = "NEXUS_MPS_RUN"  # the variable that tells the processes of one run
_PROC = Path("/proc")
_POLL_S = 0.05
_KILLED_S = 2.0


@dataclass(frozen=True, order=True)
class Process:
    """One process: its id, and when it started, in clock ticks since the boot."""

    pid: int
    started: int


@dataclass(frozen=True)
class Seen:
    """A process that runs (has not ended, be it unwaited for), and what the kernel says of it.

    ``parent`` and ``session`` are the pids of its parent and of its session's leader;
    ``name`` is its short name.
    """

    process: Process
    parent: int
    session: int
    name: str


def boot() -> str:
    """What tells this boot of the machine from every other."""
    try:
        return (_PROC / "sys/kernel/random/boot_id").read_text(encoding="ascii").strip()
    except OSError:
        return ""


def look(pid: int) -> Seen | None:
    """The process that has ``pid`` now, or None when it ended."""
    try:
        text = (_PROC / str(pid) / "stat").read_text(encoding="utf-8", errors="replace")
    except OSError:
        return None
    # The second field is a name in brackets, and may itself hold brackets and spaces.
    head, _, rest = text.rpartition(")")
    fields = rest.split()
    if fields[0] in "ZX":
        return None
    process = Process(pid, int(fields[19]))
    return Seen(process, int(fields[1]), int(fields[3]), head.partition("(")[2])


def runs(process: Process) -> bool:
    """Whether this very process still runs."""
    seen = look(process.pid)
    return seen is not None and seen.process == process


def everyone() -> list[Seen]:
    """Every process that can be seen from here, but for the one that asks."""
    return [seen for pid in psutil.pids() if pid != os.getpid() and (seen := look(pid)) is not None]


def family(
    roots: Collection[Process], marker: str = "", sessions: Collection[int] = ()
) -> set[Process]:
    """``roots``, whoever carries ``marker``, and all their children, as far as they run.

    So are those of ``sessions``, given by their leaders' pids: children of the caller that
    it has not waited for, so that no other process can have their pids.
    """
    present = everyone()
    found = {seen.process for seen in present if seen.process in roots or seen.session in sessions}
    if marker:
        found |= {seen.process for seen in present if marker_of(seen.process.pid) == marker}
    while True:
        parents = {process.pid for process in found}
        more = {seen.process for seen in present if seen.parent in parents} - found
        if not more:
            return found
        found |= more


def marker_of(pid: int) -> str:
    """What ``MARKER`` says in a process's environment; nothing where that is not ours to read."""
    try:
        return psutil.Process(pid).environ().get(MARKER, "")
    except psutil.Error:
        return ""


def end(processes: Collection[Process], grace_s: float) -> set[Process]:
    """End all of them: SIGTERM, and SIGKILL after ``grace_s`` seconds.

    Returns those that run even then, as only one that is stuck in the kernel does.
    """
    left = {process for process in processes if runs(process)}
    for signum, patience_s in ((signal.SIGTERM, grace_s), (signal.SIGKILL, _KILLED_S)):
        if not left:
            break
        for process in left:
            send(process, signum)
        wait_until(lambda: not any(map(runs, processes)), patience_s)
        left = {process for process in left if runs(process)}
    return left


def send(process: Process, signum: int) -> None:
    """Send a signal, unless the process ended: its pid may be another's by now."""
    if runs(process):
        with suppress(ProcessLookupError, PermissionError):
            os.kill(process.pid, signum)


def wait_until(done: Callable[[], bool], timeout_s: float) -> bool:
    """Whether ``done`` came true within ``timeout_s`` seconds."""
    deadline = time.monotonic() + timeout_s
    while not done():
        if time.monotonic() > deadline:
            return False
        time.sleep(_POLL_S)
    return True
