"""What the imagined engine moves around: requests, chunks on the lane, boxes of a trace."""

from dataclasses import dataclass, field

from nexus.core.prefill.ranking import Rank
from nexus.core.slo import Bounds


@dataclass(slots=True)
class Prefix:
    """The blocks that a prompt begins with, and what came of them.

    ``held``: those in the cache that it uses; ``num_done``: of ``keys``, those that it found or
    computed; ``version``: of the cache, when it was last looked at.
    """

    keys: list[int]
    held: list[int] = field(default_factory=list)
    num_done: int = 0
    version: int = -1


@dataclass(slots=True)
class Sequence:
    """One request on its way through the engine; ``spans`` are its [first, last] steps.

    ``remaining`` tokens are to be computed before its next one; ``cached`` are those that it
    finds in the prefix cache, and ``computed`` counts them from when it runs. ``reply_s``: what lies between the ends of its steps and its client. ``late``: gaps beyond
    the bound on TBT. ``is_counted``: among those that an ``EarlyStop`` counts as late.
    ``refused``: it came when the queue was full, and is never served.
    """

    index: int
    arrival_s: float
    prompt: int
    output: int
    remaining: int
    cached: int = 0
    prefix: Prefix | None = None
    computed: int = 0
    emitted: int = 0
    rank: Rank = ()
    joined: int = 0  # steps that were done when it began to decode
    decoding: bool = False
    preempted: bool = False
    waits: bool = False
    late: int = 0
    is_counted: bool = False
    refused: bool = False
    reply_s: float = 0.0
    spans: list[tuple[int, int]] = field(default_factory=list)


@dataclass(frozen=True, slots=True)
class EarlyStop:
    """When to give up: more than ``most`` requests, from number ``since`` on, break ``bounds``."""

    bounds: Bounds
    since: int
    most: int

    def is_too_late(self, sequence: Sequence, now_s: float) -> bool:
        """Whether its first token would come too late now."""
        bound_ms = self.bounds.ttft_ms_for(sequence.prompt - sequence.cached)
        return 1e3 * (now_s - sequence.arrival_s) > bound_ms


@dataclass(frozen=True, slots=True)
class Event:
    """What ran when: one box of a trace; times in seconds."""

    lane: str
    name: str
    start_s: float
    end_s: float
    chunk: int
    decode_batch: int
