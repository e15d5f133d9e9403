"""What a profiler and the engines of its pairs say to each other."""

from dataclasses import dataclass
from typing import Any, Literal

from nexus.profiler.nvml import Condition
from nexus.profiler.pairs.points import Role
from nexus.profiler.points import Point

Order = Literal["mark", "stop"]


@dataclass(frozen=True)
class Times:
    """Milliseconds of a step, how many were seen, and the GPU meanwhile."""

    median: float
    p95: float
    repeats: int
    condition: Condition


@dataclass(frozen=True)
class Setup:
    """What to start: options are vLLM's; ``cache`` is a folder for what it compiles."""

    role: Role
    model: str
    options: tuple[str, ...]
    on_cpu: bool
    cache: str | None = None


@dataclass(frozen=True)
class Ready:
    """The engine runs: the worker's facts, and the SMs that its share gives."""

    facts: dict[str, Any]
    sms: int


@dataclass(frozen=True)
class Looping:
    """Steps run from now on."""


@dataclass(frozen=True)
class Stopped:
    """The answer to "stop", whether or not anything ran."""


@dataclass(frozen=True)
class Failed:
    """The engine did not start, or the point cannot run."""

    why: str


@dataclass(frozen=True)
class Solo:
    """Time this point."""

    point: Point


@dataclass(frozen=True)
class CoRun:
    """Run this point until "stop"."""

    point: Point
