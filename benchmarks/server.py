"""One running ``nexus serve``, from its first health check to its last process."""

import http.client
import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Sequence
from contextlib import closing, suppress
from pathlib import Path
from types import TracebackType
from typing import Self

from nexus.benchmarks.client import RunError

_POLL_S = 0.5
_STOP_S = 30.0


class Server:
    """A context manager: ``nexus serve`` with the given words, listening when entered.

    Raises RunError when it dies or is not healthy within ``start_s``, with the last
    error that its log tells.
    """

    def __init__(self, words: Sequence[str], log: Path, start_s: float) -> None:
        """``words`` follow ``nexus serve``; a port is added to them."""
        self.port = _free_port()
        self._words = [sys.executable, "-m", "nexus.cli", "serve", *words, "--port", str(self.port)]
        self._log = log
        self._start_s = start_s

    def __enter__(self) -> Self:
        with self._log.open("wb") as log:
            self._process = subprocess.Popen(
                self._words, stdout=log, stderr=subprocess.STDOUT, start_new_session=True
            )
        try:
            self._wait()
        except BaseException:
            self._stop()
            raise
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self._stop()

    def check(self) -> None:
        """Raise RunError when the process is gone."""
        code = self._process.poll()
        if code is not None:
            raise RunError(f"the server died (exit code {code}): {self._complaint()}")

    def healthy(self) -> bool:
        """Whether it answers ``/health`` within five seconds."""
        try:
            with closing(http.client.HTTPConnection("127.0.0.1", self.port, timeout=5)) as to:
                to.request("GET", "/health")
                return to.getresponse().status == 200
        except (OSError, http.client.HTTPException):
            return False

    def _wait(self) -> None:
        end = time.monotonic() + self._start_s
        while not self.healthy():
            self.check()
            if time.monotonic() > end:
                raise RunError(f"the server was not up after {self._start_s:.0f} s")
            time.sleep(_POLL_S)

    def _stop(self) -> None:
        self._process.terminate()
        with suppress(subprocess.TimeoutExpired):
            self._process.wait(_STOP_S)
        with suppress(ProcessLookupError):  # what it left behind, it too if it would not go
            os.killpg(self._process.pid, signal.SIGKILL)
        self._process.wait()

    def _complaint(self) -> str:
        lines = self._log.read_text(encoding="utf-8", errors="replace").splitlines()
        told = [line.strip() for line in lines if "Error" in line or line.startswith("nexus: ")]
        return told[-1] if told else "it did not say why"


def _free_port() -> int:
    with closing(socket.socket()) as probe:
        probe.bind(("127.0.0.1", 0))
        port: int = probe.getsockname()[1]
        return port
