"""One process of a server that is made of several: its command, its log, its health."""

import http.client
import os
import subprocess
from contextlib import closing
from dataclasses import dataclass, field
from pathlib import Path

from nexus.core.errors import NexusError
from nexus.runtime.logs import complaint

_HEALTH_S = 2.0


class PartError(NexusError):
    """A part of the server did not come up, or ended; the message says which, and why."""


@dataclass(frozen=True)
class Recipe:
    """What a part is started with; it answers ``/health`` on ``port`` of ``host``.

    ``environment`` is what it has beside what it inherits.
    """

    name: str
    command: tuple[str, ...]
    port: int
    environment: dict[str, str] = field(default_factory=dict)
    host: str = "127.0.0.1"

    @property
    def url(self) -> str:
        """Where the part is reached."""
        return f"http://{self.host}:{self.port}"


class Part:
    """A part that was started, in a session of its own, so that no key press ends it.

    Until ``forget`` it is not waited for: its pid stays its own, and tells its session.
    """

    def __init__(self, recipe: Recipe, folder: Path) -> None:
        """Start it; what it prints goes to a file in ``folder``. Raises PartError."""
        self.name = recipe.name
        self.log = folder / f"{recipe.name.split()[0]}.log"
        self._host, self._port = recipe.host, recipe.port
        try:
            with self.log.open("wb") as log:
                self._popen = subprocess.Popen(
                    recipe.command,
                    env=os.environ | recipe.environment,
                    stdin=subprocess.DEVNULL,
                    stdout=log,
                    stderr=subprocess.STDOUT,
                    start_new_session=True,
                )
        except OSError as error:
            raise PartError(f"the {self.name} cannot be started: {error}") from error

    @property
    def pid(self) -> int:
        """Of the part's first process, which leads its session."""
        return self._popen.pid

    def check(self) -> None:
        """Raise PartError, with the log's last complaint, when the part has ended."""
        ended = os.waitid(os.P_PID, self.pid, os.WEXITED | os.WNOHANG | os.WNOWAIT)
        if ended is not None:
            code = ended.si_status if ended.si_code == os.CLD_EXITED else -ended.si_status
            raise PartError(
                f"the {self.name} ended (exit code {code}): {complaint(self.log)};"
                f" its log is {self.log}"
            )

    def forget(self) -> None:
        """Wait for the part's first process, which is to have ended."""
        self._popen.wait()

    def healthy(self) -> bool:
        """Whether it answers ``/health`` with 200 at once."""
        status, _ = self.ask("GET", "/health", None, _HEALTH_S)
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
