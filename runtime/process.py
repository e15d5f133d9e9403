"""A process that Nexus starts: its output goes to a file, and nothing that it started is left."""

import http.client
import os
import signal
import subprocess
import time
from collections.abc import Collection, Mapping, Sequence
from contextlib import closing, suppress
from dataclasses import dataclass
from pathlib import Path

import psutil

_LINGER_S = 5.0  # what a process started may outlive it so long
_POLL_S = 0.05


@dataclass(frozen=True)
class Stopped:
    """How a process ended: seconds from the signal to its exit, and the pids that outlived it."""

    seconds: float
    exit_code: int
    left_behind: tuple[int, ...]


class LoggedProcess:
    """Runs in a session of its own, so that no key press ends it, with nothing to read."""

    def __init__(
        self,
        command: Sequence[str],
        log: Path,
        environment: Mapping[str, str] | None = None,
        *,
        pass_fds: Collection[int] = (),
        append: bool = False,
    ) -> None:
        """Start it; ``environment`` is what it has beside what it inherits. Raises OSError."""
        self.log = log
        with log.open("ab" if append else "wb") as output:
            self._popen = subprocess.Popen(
                command,
                env=os.environ | dict(environment or {}),
                stdin=subprocess.DEVNULL,
                stdout=output,
                stderr=subprocess.STDOUT,
                pass_fds=pass_fds,
                start_new_session=True,
            )

    @property
    def pid(self) -> int:
        """Its own until the process is waited for; of its session too."""
        return self._popen.pid

    def exit_code(self) -> int | None:
        """Negative for a signal; None while it runs. Does not wait for it: the pid stays its own."""
        if self._popen.returncode is not None:
            return self._popen.returncode
        ended = os.waitid(os.P_PID, self.pid, os.WEXITED | os.WNOHANG | os.WNOWAIT)
        if ended is None:
            return None
        return ended.si_status if ended.si_code == os.CLD_EXITED else -ended.si_status

    def complaint(self) -> str:
        """The last error that its log tells of, in one line."""
        lines = self.log.read_text(encoding="utf-8", errors="replace").splitlines()
        told = [line.strip() for line in lines if "Error" in line or line.startswith("nexus: ")]
        return told[-1].removeprefix("nexus: ") if told else "it did not say why"

    def wait(self) -> int:
        """Wait for it, and give its exit code."""
        return self._popen.wait()

    def stop(self, how: signal.Signals | None, grace_s: float) -> Stopped:
        """Send a signal, if any, and wait; then kill whatever is left, the process itself included."""
        began = time.monotonic()
        family = self._family()
        if how is not None and self.exit_code() is None:
            self._popen.send_signal(how)
        with suppress(subprocess.TimeoutExpired):
            self._popen.wait(grace_s)
        seconds = time.monotonic() - began
        if self._popen.returncode is not None:
            deadline = time.monotonic() + _LINGER_S
            while _running(family) and time.monotonic() < deadline:
                time.sleep(_POLL_S)
        left = _running(family)
        with suppress(ProcessLookupError):
            os.killpg(self.pid, signal.SIGKILL)
        for process in left:  # in a session of its own
            with suppress(psutil.NoSuchProcess):
                process.kill()
        return Stopped(seconds, self.wait(), tuple(process.pid for process in left))

    def _family(self) -> list[psutil.Process]:
        try:
            return psutil.Process(self.pid).children(recursive=True)
        except psutil.NoSuchProcess:
            return []


class HttpProcess(LoggedProcess):
    """One that answers HTTP on ``port`` of ``host``."""

    def __init__(
        self,
        command: Sequence[str],
        log: Path,
        port: int,
        environment: Mapping[str, str] | None = None,
        host: str = "127.0.0.1",
    ) -> None:
        """As ``LoggedProcess``."""
        super().__init__(command, log, environment)
        self._host, self._port = host, port

    def healthy(self, within_s: float) -> bool:
        """Whether it answers ``/health`` with 200."""
        status, _ = self.ask("GET", "/health", None, within_s)
        return status == 200

    def ask(self, method: str, path: str, body: str | None, timeout_s: float) -> tuple[int, str]:
        """The status and text of its answer to one HTTP request; 0 and why when there is none."""
        headers = {"Content-Type": "application/json"} if body else {}
        to = http.client.HTTPConnection(self._host, self._port, timeout=timeout_s)
        try:
            with closing(to):
                to.request(method, path, body, headers)
                answer = to.getresponse()
                return answer.status, answer.read().decode(errors="replace")
        except (OSError, http.client.HTTPException) as error:
            return 0, str(error)


def _running(processes: Sequence[psutil.Process]) -> list[psutil.Process]:
    """Those that still run; one that ended and waits for init to collect it does not."""
    found = []
    for process in processes:
        with suppress(psutil.NoSuchProcess):
            if process.is_running() and process.status() != psutil.STATUS_ZOMBIE:
                found.append(process)
    return found
