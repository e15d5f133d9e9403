"""From vLLM's per-request details to the field's metrics.

TTFT counts from the moment of sending; TBT is every gap between two chunks of a stream;
TPOT is one request's mean gap; normalized latency is a request's whole latency over its
output tokens. A request that failed meets no bound.
"""

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from pydantic import Field
from pydantic.dataclasses import dataclass

from nexus.core.arrays import Bools, Floats, Ints
from nexus.core.errors import UserError
from nexus.core.io.documents import STRICT
from nexus.core.slo import Bounds
from nexus.core.spread import Spread, percentile


@dataclass(frozen=True, config=STRICT)
class Objective:
    """Bounds in ms on TTFT, and on a request's TBT p95 or (``tpot``) its TPOT."""

    ttft_ms: float = Field(gt=0)
    gap_ms: float = Field(gt=0)
    tpot: bool = False

    @property
    def name(self) -> str:
        """Such as ``1000/25`` or ``500/30:tpot``."""
        return f"{self.ttft_ms:g}/{self.gap_ms:g}" + (":tpot" if self.tpot else "")

    def within(self, other: "Objective") -> bool:
        """Whether who meets these bounds meets ``other`` too: a bound on TBT is one on TPOT."""
        return (
            self.ttft_ms <= other.ttft_ms
            and self.gap_ms <= other.gap_ms
            and (other.tpot or not self.tpot)
        )

    @property
    def bounds(self) -> Bounds:
        """What a plan is made for: a bound on TPOT is one on every gap, to be safe."""
        return Bounds(ttft_ms=self.ttft_ms, tbt_ms=self.gap_ms)

    @classmethod
    def of(cls, bounds: Bounds) -> "Objective":
        """What a plan with these bounds is for."""
        return cls(ttft_ms=bounds.ttft_ms, gap_ms=bounds.tbt_ms)

    @classmethod
    def parse(cls, text: str) -> "Objective":
        """From its name; raises UserError."""
        pair, _, kind = text.partition(":")
        ttft, _, gap = pair.partition("/")
        try:
            if kind not in ("", "tpot"):
                raise ValueError(kind)
            return cls(ttft_ms=float(ttft), gap_ms=float(gap), tpot=kind == "tpot")
        except ValueError:
            raise UserError(f"bounds {text!r} are not like 1000/25 or 500/30:tpot") from None


OBJECTIVES = tuple(
    map(Objective.parse, ("500/15", "1000/25", "2000/50", "500/30:tpot", "2000/100:tpot"))
)


@dataclass(frozen=True, config=STRICT)
class PerRequest:
    """One value a request, in order of arrival; times in ms, null where a request failed.

    ``tbt_p95_ms`` and ``tpot_ms`` are 0 for an output of one token.
    """

    input_tokens: tuple[int, ...]
    output_tokens: tuple[int, ...]
    ttft_ms: tuple[float | None, ...]
    tbt_p95_ms: tuple[float | None, ...]
    tpot_ms: tuple[float | None, ...]

    def attainment(self, objective: Objective) -> float:
        """The share of all requests that meet both bounds."""
        gaps = self.tpot_ms if objective.tpot else self.tbt_p95_ms
        met = [
            ttft is not None
            and gap is not None
            and ttft <= objective.ttft_ms
            and gap <= objective.gap_ms
            for ttft, gap in zip(self.ttft_ms, gaps, strict=True)
        ]
        return sum(met) / len(met)

    def ttft_of_longest(self, share: float = 0.1) -> Spread | None:
        """TTFT of the ``share`` of requests with the longest prompts."""
        order = np.argsort(self.input_tokens, kind="stable")
        longest = order[-max(round(share * len(order)), 1) :]
        times = [self.ttft_ms[index] for index in longest]
        return Spread.of(np.array([time for time in times if time is not None]))


@dataclass(frozen=True, config=STRICT)
class Metrics:
    """One run's metrics; times in ms, normalized latency in ms per output token.

    ``merged_share`` is the share of output tokens that came in a chunk with an earlier
    one: the gap before them is not seen, and not counted. ``ttft_longest`` is of the tenth
    of the requests with the longest prompts.
    """

    completed: int
    failed: int
    duration_s: float
    requests_per_s: float
    input_tokens_per_s: float
    output_tokens_per_s: float
    tbt_max_ms: float
    merged_share: float
    ttft: Spread | None = None
    tbt: Spread | None = None
    tbt_p95: Spread | None = None
    tpot: Spread | None = None
    normalized: Spread | None = None
    ttft_longest: Spread | None = None


def summarize(details: Mapping[str, Any]) -> tuple[Metrics, PerRequest]:
    """Metrics of what ``vllm bench serve --save-detailed`` reports.

    ``details`` holds ``ttfts`` and ``itls`` in seconds, ``input_lens``, ``output_lens``,
    ``errors`` (one entry a request), and ``duration`` in seconds.
    """
    gaps = [1e3 * np.asarray(each, dtype=np.float64) for each in details["itls"]]
    outputs = np.array(details["output_lens"], dtype=np.int64)
    ttft = 1e3 * np.array(details["ttfts"], dtype=np.float64)
    tbt_p95 = np.array([percentile(each, 95) if len(each) else 0.0 for each in gaps])
    tpot = np.array([each.sum() for each in gaps]) / np.maximum(outputs - 1, 1)
    lived = (ttft > 0) & np.array([not error for error in details["errors"]])
    per_request = PerRequest(
        input_tokens=tuple(int(tokens) for tokens in details["input_lens"]),
        output_tokens=tuple(outputs.tolist()),
        ttft_ms=_rounded(ttft, lived),
        tbt_p95_ms=_rounded(tbt_p95, lived),
        tpot_ms=_rounded(tpot, lived),
    )
    done = np.flatnonzero(lived)
    whole_ms = ttft + np.array([each.sum() for each in gaps])
    several = np.array([len(each) > 0 for each in gaps])
    spreads = {
        "ttft": Spread.of(ttft[done]),
        "tbt_p95": Spread.of(tbt_p95[lived & several]),
        "tpot": Spread.of(tpot[lived & (outputs > 1)]),
        "normalized": Spread.of(whole_ms[done] / np.maximum(outputs[done], 1)),
        "ttft_longest": per_request.ttft_of_longest(),
    }
    seconds = max(float(details["duration"]), 1e-9)
    return _metrics(per_request, done, [gaps[i] for i in done], seconds, spreads), per_request


def _metrics(
    each: PerRequest,
    done: Ints,
    gaps: Sequence[Floats],
    seconds: float,
    spreads: Mapping[str, Spread | None],
) -> Metrics:
    """Of the requests ``done``, by their numbers, and ``gaps``, which are theirs alone."""
    seen = len(done) + sum(map(len, gaps))
    produced = sum(each.output_tokens[i] for i in done)
    taken = sum(each.input_tokens[i] for i in done)
    all_gaps = np.concatenate([*gaps, np.zeros(0)])
    return Metrics(
        completed=len(done),
        failed=len(each.output_tokens) - len(done),
        duration_s=round(seconds, 3),
        requests_per_s=round(len(done) / seconds, 4),
        input_tokens_per_s=round(taken / seconds, 2),
        output_tokens_per_s=round(produced / seconds, 2),
        tbt_max_ms=round(float(all_gaps.max(initial=0.0)), 3),
        merged_share=round(1.0 - seen / produced, 4) if produced else 0.0,
        tbt=Spread.of(all_gaps),
        **spreads,
    )


def _rounded(values: Floats, lived: Bools) -> tuple[float | None, ...]:
    return tuple(
        round(float(value), 2) if alive else None
        for value, alive in zip(values, lived, strict=True)
    )
