"""Service-level objectives: the bounds, and how much of the traffic has to meet them."""

from pydantic.dataclasses import dataclass

from nexus.core.io.documents import STRICT, Ms

LATE_GAPS = 0.05
"""Of a request's gaps between tokens, as many may exceed the bound on TBT."""

GOOD_GAPS = 1.0 - LATE_GAPS
"""Of a request's gaps, as many must be within the bound for the request to be on time."""

GOOD_REQUESTS = 0.9
"""Of all requests, as many must meet both bounds at a rate that counts as sustained."""


@dataclass(frozen=True, config=STRICT)
class Bounds:
    """The service-level objective: time to first token and time between tokens."""

    ttft_ms: Ms
    tbt_ms: Ms


def has_late_budget(tokens: int, late: int) -> bool:
    """Whether a request with so many output tokens and late gaps may have one more of those."""
    return late + 1 <= LATE_GAPS * tokens
