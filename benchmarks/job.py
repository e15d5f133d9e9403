"""What one call of ``nexus bench`` is to do."""

from dataclasses import dataclass
from pathlib import Path

from nexus.benchmarks.agenda import Grid
from nexus.benchmarks.machine import Here
from nexus.core.plan import Plan
from nexus.profiles.schema import Profile


@dataclass(frozen=True)
class Job:
    """One call of ``nexus bench``.

    ``options`` go to every server. Plans are made from ``profile`` (read from ``source``) and
    kept in the folder ``plans``, or ``plan`` serves all. ``part`` names the file of results of
    one of several calls at a time. ``burst`` is how many requests at once show what a
    workload's capacity is, where no profile tells; ``minutes`` limits the whole call.
    """

    model: str
    here: Here
    options: tuple[str, ...]
    grid: Grid
    output: Path
    max_model_len: int
    max_num_seqs: int
    profile: Profile | None = None
    source: str = ""
    plans: Path | None = None
    plan: Plan | None = None
    part: str = ""
    duration_s: float = 60.0
    burst: int = 128
    warm_up: int = 16
    minutes: float | None = None
    keep_raw: bool = False
