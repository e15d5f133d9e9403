"""Service-level objectives: the bounds, and how much of the traffic has to meet them."""

from typing import Annotated

from pydantic import Field
from pydantic.dataclasses import dataclass

from nexus.core.arrays import Floats
from nexus.core.io.documents import STRICT, Ms, Quantity

LATE_GAPS = 0.05
"""Of a request's gaps between tokens, as many may exceed the bound on TBT."""

GOOD_GAPS = 1.0 - LATE_GAPS
"""Of a request's gaps, as many must be within the bound for the request to be on time."""

GOOD_REQUESTS = 0.9
"""Of all requests, as many must meet both bounds at a rate that counts as sustained."""


@dataclass(frozen=True, config=STRICT)
class Bounds:
    """The service-level objective: time to first token and time between tokens.

    The bound on TTFT is ``ttft_ms``, and ``ttft_ms_per_1k_tokens`` more for each 1,000 prompt
    tokens that have to be computed.
    """

    ttft_ms: Ms
    tbt_ms: Ms
    ttft_ms_per_1k_tokens: Annotated[Quantity, Field(exclude_if=lambda ms: ms == 0.0)] = 0.0

    def ttft_ms_for(self, tokens: float) -> float:
        """The bound on TTFT of a prompt of which ``tokens`` are not cached."""
        return self.ttft_ms + self.ttft_ms_per_1k_tokens * tokens / 1e3

    def ttft_ms_of(self, tokens: Floats) -> Floats:
        """The same for many prompts at once; of ``tokens``' shape."""
        return self.ttft_ms + self.ttft_ms_per_1k_tokens * tokens / 1e3

    @property
    def ttft_name(self) -> str:
        """In words, such as ``1000 ms`` or ``1000 ms + 40 ms per 1,000 prompt tokens``."""
        slope = self.ttft_ms_per_1k_tokens
        more = f" + {slope:g} ms per 1,000 prompt tokens" if slope else ""
        return f"{self.ttft_ms:g} ms{more}"


def has_late_budget(tokens: int, late: int) -> bool:
    """Whether a request with so many output tokens and late gaps may have one more of those."""
    return late + 1 <= LATE_GAPS * tokens
