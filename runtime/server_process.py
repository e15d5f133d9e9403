"""One running server, from its first health check to its last process."""

import http.client
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from contextlib import closing, suppress
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import Self

import psutil

from nexus.core.errors import EngineError
from nexus.runtime.logs import complaint
from nexus.runtime.ports import free_ports

NEXUS_SERVE = (sys.executable, "-m", "nexus.cli", "serve")
_POLL_S = 0.25
_STOP_S = 30.0
_LINGER_S = 5.0  # what a server started may outlive it so long


class ServerError(EngineError):
    """The server ended, or was never ready."""


@dataclass(frozen=True)
class Stopped:
    """How a server ended: seconds from the signal to its exit, and who outlived it."""

    seconds: float
    exit_code: int
    left_behind: tuple[int, ...]


class Server:
    """A context manager: a server with the given words, listening when entered.

    Raises ServerError when it dies or is not healthy within ``start_s``, with the last
    error that its log tells.
    """

    def __init__(
        self,
        words: Sequence[str],
        log: Path,
        start_s: float,
        program: Sequence[str] = NEXUS_SERVE,
        environment: Mapping[str, str] | None = None,
    ) -> None:
        """``words`` follow ``program``; a port is added. ``environment`` is beside this one's."""
        self.port = free_ports(1)[0]
        self.url = f"http://127.0.0.1:{self.port}"
        self.words = [*words, "--port", str(self.port)]
        self._program = program
        self._environment = {**os.environ, **(environment or {})}
        self._log = log
        self._start_s = start_s
        self.tick: Callable[[], None] = lambda: None  # called while it starts

    def __enter__(self) -> Self:
        with self._log.open("wb") as log:
            self._process = subprocess.Popen(
                [*self._program, *self.words],
                env=self._environment,
                stdout=log,
                stderr=subprocess.STDOUT,
                start_new_session=True,
            )
        try:
            self._wait()
        except BaseException:
            self.stop()
            raise
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.stop()

    def check(self) -> None:
        """Raise ServerError when the process is gone."""
        code = self._process.poll()
        if code is not None:
            raise ServerError(f"the server died (exit code {code}): {complaint(self._log)}")

    def healthy(self) -> bool:
        """Whether it answers ``/health`` within five seconds."""
        try:
            with closing(http.client.HTTPConnection("127.0.0.1", self.port, timeout=5)) as to:
                to.request("GET", "/health")
                return to.getresponse().status == 200
        except (OSError, http.client.HTTPException):
            return False

    def stop(self, how: signal.Signals = signal.SIGTERM) -> Stopped:
        """Send a signal and wait; then kill whatever is left, the server itself included."""
        began = time.monotonic()
        family = self.family()
        if self._process.poll() is None:
            self._process.send_signal(how)
        with suppress(subprocess.TimeoutExpired):
            self._process.wait(_STOP_S)
        seconds = time.monotonic() - began
        if self._process.poll() is not None:
            deadline = time.monotonic() + _LINGER_S
            while _running(family) and time.monotonic() < deadline:
                time.sleep(0.05)
        left = _running(family)
        with suppress(ProcessLookupError):
            os.killpg(self._process.pid, signal.SIGKILL)
        for process in left:  # in a session of its own
            with suppress(psutil.NoSuchProcess):
                process.kill()
        return Stopped(seconds, self._process.wait(), tuple(process.pid for process in left))

    def last_lines(self, count: int = 25) -> str:
        """The end of the log."""
        lines = self._log.read_text(encoding="utf-8", errors="replace").splitlines()
        return "\n".join(lines[-count:])

    def _wait(self) -> None:
        end = time.monotonic() + self._start_s
        while not self.healthy():
            self.check()
            if time.monotonic() > end:
                raise ServerError(f"the server was not ready within {self._start_s:.0f} s")
            self.tick()
            time.sleep(_POLL_S)

    def family(self) -> list[psutil.Process]:
        """The processes that it started, and those that they did."""
        try:
            return psutil.Process(self._process.pid).children(recursive=True)
        except psutil.NoSuchProcess:
            return []


def _running(processes: Sequence[psutil.Process]) -> list[psutil.Process]:
    """Those that still run; one that ended and waits for init to collect it does not."""
    found = []
    for process in processes:
        with suppress(psutil.NoSuchProcess):
            if process.is_running() and process.status() != psutil.STATUS_ZOMBIE:
                found.append(process)
    return found
