"""What was measured: one JSON line a cell, with all that it depends on."""

import os
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

from pydantic import TypeAdapter, ValidationError
from pydantic.dataclasses import dataclass

from nexus.benchmarks.metrics import Metrics, Objective, PerRequest
from nexus.core.errors import DocumentError, UserError
from nexus.core.io.documents import STRICT, Provenance
from nexus.core.machine import Machine
from nexus.core.plan import Plan

SCHEMA = "nexus.bench/1"
_PART = "--"  # between the name of results and that of a part


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
    """Enough of a plan to make it again from its profile, and to read what it does.

    ``hash`` is over all of it but its provenance, so that it is the same however often the
    plan is made; ``workload`` is what it was made for.
    """

    hash: str
    profile_hash: str
    ttft_ms: float
    tbt_ms: float
    policy: str
    modes: dict[str, int]
    workload: str = ""

    @classmethod
    def of(cls, plan: Plan) -> "PlanUsed":
        """``modes`` counts the rows that name each."""
        rows = [row.mode for row in plan.rows]
        return cls(
            hash=plan_hash(plan),
            profile_hash=plan.profile_hash,
            ttft_ms=plan.bounds.ttft_ms,
            tbt_ms=plan.bounds.tbt_ms,
            policy=plan.policy,
            modes={name: rows.count(name) for name in sorted(plan.modes)},
            workload=plan.workload.source,
        )


def plan_hash(plan: Plan) -> str:
    """Identifies what a plan does, whenever and however it was made."""
    return replace(plan, provenance=_NOBODY).hash


_NOBODY = Provenance(created="", command="", software={})


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
    """The machine during a run: mean SM clock and power, highest temperature, the host's speed.

    ``host_us`` is the median time of a fixed piece of Python, in microseconds: a server whose
    steps wait for a slow host shows in it, with a high clock and a low power.
    """

    sm_mhz: float
    power_w: float
    temperature_c: float
    host_us: float | None = None


@dataclass(frozen=True, config=STRICT)
class Cell:
    """One run; ``error`` (it took too long) stands in place of its metrics.

    ``attained`` stands in place of ``per_request`` where results are kept for good: the share of
    requests that met bounds, by the bounds' names. ``gpu`` is the GPU's UUID, ``gpu_index`` which of the machine's GPUs it is.
    """

    schema: str
    key: Key
    setting: Setting
    created: str
    metrics: Metrics | None = None
    per_request: PerRequest | None = None
    attained: dict[str, float] | None = None
    condition: Condition | None = None
    error: str | None = None
    gpu: str | None = None
    gpu_index: str | None = None

    def attainment(self, objective: Objective) -> float:
        """The share of all requests that met it; 0 when the run did not end in time.

        Raises UserError where only the shares of other bounds were kept.
        """
        if self.per_request is not None:
            return self.per_request.attainment(objective)
        if self.attained is None:
            return 0.0
        if objective.name not in self.attained:
            raise UserError(f"the results do not say how many requests met {objective.name}")
        return self.attained[objective.name]

    @property
    def line(self) -> bytes:
        """The cell as one line of a file of results."""
        return _CELL.dump_json(self, exclude_none=True) + b"\n"


_CELL = TypeAdapter(Cell)


class Store:
    """The cells of one file and of its other parts; what is added is on disk at once.

    Several processes measure at a time by writing to a part each (see ``part_of``).
    """

    def __init__(self, path: Path) -> None:
        """Read ``path`` and its other parts, as far as they are there; raises DocumentError.

        A half-written end is cut.
        """
        self.path = path
        self._cells = all_cells(path)

    def add(self, cell: Cell) -> None:
        """Append ``cell``."""
        try:
            self.path.parent.mkdir(parents=True, exist_ok=True)
            with self.path.open("ab") as file:
                file.truncate(self.path.read_bytes().rfind(b"\n") + 1)
                file.write(cell.line)
                file.flush()
                os.fsync(file.fileno())
        except OSError as error:
            raise DocumentError(f"{self.path}: {error.strerror or error}") from error
        self._cells.append(cell)

    def __iter__(self) -> Iterator[Cell]:
        return iter(self._cells)


def part_of(folder: Path, name: str, part: str) -> Path:
    """Where ``part`` of the results called ``name`` is; an empty one is the main file."""
    return folder / (f"{name}{_PART}{part}.jsonl" if part else f"{name}.jsonl")


def whole_of(path: Path) -> Path:
    """The main file of a part, be it there or not."""
    return path.with_name(path.name.removesuffix(".jsonl").partition(_PART)[0] + ".jsonl")


def all_cells(path: Path) -> list[Cell]:
    """Every cell of ``path``'s results, all parts together, in the order of measurement."""
    whole = whole_of(path)
    parts = [whole, *sorted(whole.parent.glob(f"{whole.stem}{_PART}*.jsonl"))]
    cells = [cell for part in parts if part.exists() for cell in read_cells(part)]
    return sorted(cells, key=lambda cell: cell.created)


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
