"""One running server, from its first health check to its last process."""

import signal
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from types import TracebackType
from typing import Self

from nexus.core.errors import EngineError
from nexus.runtime.ports import free_ports
from nexus.runtime.process import HttpProcess, Stopped

NEXUS_SERVE = (sys.executable, "-m", "nexus.cli", "serve")
_POLL_S = 0.25
_HEALTH_S = 5.0
_STOP_S = 30.0


class ServerError(EngineError):
    """The server ended, or was never ready."""


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
        self._environment = environment
        self._log = log
        self._start_s = start_s
        self.tick: Callable[[], None] = lambda: None  # called while it starts

    def __enter__(self) -> Self:
        command = [*self._program, *self.words]
        self._process = HttpProcess(command, self._log, self.port, self._environment)
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
        code = self._process.exit_code()
        if code is not None:
            raise ServerError(f"the server died (exit code {code}): {self._process.complaint()}")

    def healthy(self) -> bool:
        """Whether it answers ``/health`` within five seconds."""
        return self._process.healthy(_HEALTH_S)

    def stop(self, how: signal.Signals = signal.SIGTERM) -> Stopped:
        """Send a signal and wait; then kill whatever is left, the server itself included."""
        return self._process.stop(how, _STOP_S)

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

    @property
    def pid(self) -> int:
        """Of its first process."""
        return self._process.pid
