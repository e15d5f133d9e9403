"""What was measured: one JSON line a cell, with all that it depends on."""

import os
from collections.abc import Iterator
from pathlib import Path

from pydantic import TypeAdapter, ValidationError
from pydantic.dataclasses import dataclass

from nexus.benchmarks.metrics import Metrics, Objective, PerRequest
from nexus.errors import DocumentError
from nexus.planner.table import Plan
from nexus.profiles.schema import STRICT, Machine

SCHEMA = "nexus.bench/1"


@dataclass(frozen=True, config=STRICT)
class Key:
    """Which cell of the grid; ``rate`` is in requests per second, null: all at once.

    ``objective`` is what the system's plan was made for (null for stock vLLM).
    """

    system: str
    workload: str
    repeat: int = 0
    rate: float | None = None
    objective: str | None = None


@dataclass(frozen=True, config=STRICT)
class PlanUsed:
    """Enough of a plan to make it again from its profile, and to read what it does."""

    hash: str
    profile_hash: str
    ttft_ms: float
    tbt_ms: float
    policy: str
    modes: dict[str, int]

    @classmethod
    def of(cls, plan: Plan) -> "PlanUsed":
        """``modes`` counts the rows that name each."""
        rows = [row.mode for row in plan.rows]
        return cls(
            hash=plan.hash,
            profile_hash=plan.profile_hash,
            ttft_ms=plan.bounds.ttft_ms,
            tbt_ms=plan.bounds.tbt_ms,
            policy=plan.policy,
            modes={name: rows.count(name) for name in sorted(plan.modes)},
        )


@dataclass(frozen=True, config=STRICT)
class Setting:
    """All that a cell's numbers depend on, but for chance; no paths.

    ``command`` is the server's, ``requests_hash`` is over their times and lengths.
    """

    model: str
    model_hash: str
    machine: Machine
    software: dict[str, str]
    command: str
    duration_s: float
    requests_hash: str
    plan: PlanUsed | None = None


@dataclass(frozen=True, config=STRICT)
class Condition:
    """The GPU during a run: mean SM clock and power, highest temperature."""

    sm_mhz: float
    power_w: float
    temperature_c: float


@dataclass(frozen=True, config=STRICT)
class Cell:
    """One run; ``error`` (it took too long) stands in place of its metrics."""

    schema: str
    key: Key
    setting: Setting
    created: str
    metrics: Metrics | None = None
    per_request: PerRequest | None = None
    condition: Condition | None = None
    error: str | None = None

    def attainment(self, objective: Objective) -> float:
        """The share of all requests that met it; 0 when the run did not end in time."""
        return 0.0 if self.per_request is None else self.per_request.attainment(objective)


_CELL = TypeAdapter(Cell)


class Store:
    """The cells of one file; what is added is on disk at once."""

    def __init__(self, path: Path) -> None:
        """Read ``path``, if it is there; raises DocumentError. A half-written end is cut."""
        self.path = path
        self._cells = list(read_cells(path)) if path.exists() else []

    def add(self, cell: Cell) -> None:
        """Append ``cell``."""
        line = _CELL.dump_json(cell, exclude_none=True) + b"\n"
        try:
            self.path.parent.mkdir(parents=True, exist_ok=True)
            with self.path.open("ab") as file:
                if file.tell() and not _ends_whole(self.path):
                    file.truncate(_last_whole(self.path))
                file.write(line)
                file.flush()
                os.fsync(file.fileno())
        except OSError as error:
            raise DocumentError(f"{self.path}: {error.strerror or error}") from error
        self._cells.append(cell)

    def find(self, key: Key, setting: Setting) -> Cell | None:
        """The cell measured last under just these circumstances."""
        for cell in reversed(self._cells):
            if cell.key == key and cell.setting == setting:
                return cell
        return None

    def __iter__(self) -> Iterator[Cell]:
        return iter(self._cells)


def read_cells(path: Path) -> Iterator[Cell]:
    """The cells of a file, in the order of their measurement; raises DocumentError.

    A last line without its end, left by a run that was killed, is passed over.
    """
    try:
        text = path.read_bytes()
    except OSError as error:
        raise DocumentError(f"{path}: {error.strerror or error}") from error
    whole = text[: text.rfind(b"\n") + 1]
    for number, line in enumerate(whole.splitlines(), 1):
        try:
            yield _CELL.validate_json(line)
        except ValidationError as error:
            first = error.errors()[0]
            where = ".".join(map(str, first["loc"]))
            raise DocumentError(f"{path}:{number}: {where}: {first['msg']}") from error


def _ends_whole(path: Path) -> bool:
    return path.read_bytes().endswith(b"\n")


def _last_whole(path: Path) -> int:
    return path.read_bytes().rfind(b"\n") + 1
