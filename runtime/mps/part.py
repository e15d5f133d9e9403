"""One process of a server that is made of several: its command, its log, its health."""

from dataclasses import dataclass, field
from pathlib import Path

from nexus.core.errors import NexusError
from nexus.runtime.process import HttpProcess

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


class Part(HttpProcess):
    """A part that was started; it is not waited for until all of its session has ended."""

    def __init__(self, recipe: Recipe, folder: Path) -> None:
        """Start it; what it prints goes to a file in ``folder``. Raises PartError."""
        self.name = recipe.name
        log = folder / f"{recipe.name.split()[0]}.log"
        try:
            super().__init__(recipe.command, log, recipe.port, recipe.environment, recipe.host)
        except OSError as error:
            raise PartError(f"the {self.name} cannot be started: {error}") from error

    def check(self) -> None:
        """Raise PartError, with the log's last complaint, when the part has ended."""
        code = self.exit_code()
        if code is not None:
            raise PartError(
                f"the {self.name} ended (exit code {code}): {self.complaint()};"
                f" its log is {self.log}"
            )

    def is_up(self) -> bool:
        """Whether it answers ``/health`` with 200 at once."""
        return self.healthy(_HEALTH_S)
