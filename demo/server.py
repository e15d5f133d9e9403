"""A `nexus serve` process for the demo: started, waited for, and ended without a trace."""

import signal
import socket
import subprocess
import time
from collections.abc import Callable, Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

import httpx
import psutil

from nexus.errors import NexusError

START_S = 300.0
STOP_S = 30.0


class DemoError(NexusError):
    """A step of the demo failed; the message says which, and what it printed last."""


@dataclass(frozen=True)
class Stopped:
    """How a server ended: seconds from SIGTERM to its exit, and who outlived it."""

    seconds: float
    exit_code: int
    left_behind: tuple[int, ...]


class Server:
    """One server process, its log in a file."""

    def __init__(self, command: Sequence[str], port: int, log: Path) -> None:
        """Start ``command``, which is to listen on 127.0.0.1:``port``."""
        self.url = f"http://127.0.0.1:{port}"
        self._log = log
        with log.open("wb") as sink:
            self._process = subprocess.Popen(command, stdout=sink, stderr=subprocess.STDOUT)

    def wait_until_ready(self, tick: Callable[[], None]) -> None:
        """Return when ``/health`` answers; ``tick`` is called meanwhile.

        Raises DemoError when the process ends first or `START_S` seconds are over.
        """
        deadline = time.monotonic() + START_S
        while time.monotonic() < deadline:
            if self._process.poll() is not None:
                raise DemoError(f"the server ended with code {self._process.returncode}")
            try:
                if httpx.get(f"{self.url}/health", timeout=2).is_success:
                    return
            except httpx.TransportError:
                pass
            tick()
            time.sleep(0.25)
        raise DemoError(f"the server was not ready within {START_S:.0f} s")

    def stop(self) -> Stopped:
        """Send SIGTERM and wait; whatever is still there after `STOP_S` seconds is killed."""
        began = time.monotonic()
        family = self._family()
        if self._process.poll() is None:
            self._process.send_signal(signal.SIGTERM)
        try:
            exit_code = self._process.wait(STOP_S)
        except subprocess.TimeoutExpired:
            self._process.kill()
            exit_code = self._process.wait()
        seconds = time.monotonic() - began
        deadline = time.monotonic() + 5
        while (alive := _running(family)) and time.monotonic() < deadline:
            time.sleep(0.1)
        for process in alive:
            process.kill()
        return Stopped(seconds, exit_code, tuple(process.pid for process in alive))

    def last_lines(self, count: int = 25) -> str:
        """The end of the log."""
        lines = self._log.read_text(errors="replace").splitlines()
        return "\n".join(lines[-count:])

    def _family(self) -> list[psutil.Process]:
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


def free_port() -> int:
    """A TCP port that nothing listens on right now."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])
