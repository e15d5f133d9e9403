"""Where sharing SMs pays, as one Markdown table: ``python evidence/sharing.py PROFILE...``.

For each decode load and each context before the prompt, the split or overlap that prefills most
beside it in comparison with one batch at the same TBT: a batch sized for the load, with each
phase's attention apart and the whole step one CUDA graph, and a batch of stock vLLM's. Both are
interpolated between measured batches, without those that a quicker one beats.
"""

import sys
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path

from nexus.profiles.schema import Profile, Sample, read_profile

HEAD = (
    "shape",
    "decodes",
    "before the prompt",
    "best sharing",
    "TBT",
    "prompt tokens/s",
    "÷ batch",
    "÷ stock",
    "clock, power",
    "of the batch",
    "gain",
)

Load = tuple[int, int, int]  # decodes, their context, tokens before the prompt's
Frontier = list[tuple[float, float]]  # TBT and rate


@dataclass(frozen=True)
class Row:
    """One load's best way to share; ``over_stock`` where stock vLLM was measured at that TBT.

    ``batch`` is the measured batch next to it in TBT. ``gaining`` of ``ways`` prefill more than
    one batch does at the same TBT.
    """

    shape: str
    load: Load
    best: Sample
    over_batch: float
    over_stock: float | None
    batch: Sample
    gaining: int
    ways: int

    @property
    def cells(self) -> tuple[str, ...]:
        """As ``HEAD`` names them."""
        best, (decodes, context, before) = self.best, self.load
        sms = f"{best.prefill_sms}" + (f"-{best.decode_sms}" if best.mode == "split" else "")
        return (
            self.shape,
            f"{decodes} × {context}",
            str(before),
            f"{best.mode}-{sms}, {best.chunk} tokens",
            f"{best.decode_ms:.1f} ms",
            f"{rate(best):.0f}",
            f"{self.over_batch:.2f}×",
            f"{self.over_stock:.2f}×" if self.over_stock else "",
            _condition(best),
            _condition(self.batch),
            f"{self.gaining} of {self.ways}",
        )


def rows(profile: Profile) -> Iterator[Row]:
    """One row for each load that has ways to share and batches at their TBT."""
    shape = Path(profile.model.name).name
    shared = [s for s in profile.measured if s.mode in ("split", "overlap")]
    fused = [s for s in profile.measured if s.mode == "fused"]
    stock = [s for s in profile.stock if s.error is None]
    for load in sorted({load_of(sample) for sample in shared}):
        alike = [s for s in fused if load_of(s) == load]
        batches = frontier(alike)
        of_stock = frontier(s for s in stock if load_of(s) == load)
        gains = []
        for sample in shared:
            same = rate_at(batches, _tbt(sample)) if load_of(sample) == load else None
            if same is not None:
                gains.append((rate(sample) / same, sample))
        if not gains:
            continue
        gain, best = max(gains, key=lambda found: found[0])
        theirs = rate_at(of_stock, _tbt(best))
        yield Row(
            shape=shape,
            load=load,
            best=best,
            over_batch=gain,
            over_stock=rate(best) / theirs if theirs else None,
            batch=min(alike, key=lambda s: abs(_tbt(s) - _tbt(best))),
            gaining=sum(found > 1 for found, _ in gains),
            ways=len(gains),
        )


def load_of(sample: Sample) -> Load:
    """What a sample's prompt tokens run beside, and after."""
    return sample.decode_batch, sample.decode_context, sample.prefill_context


def rate(sample: Sample) -> float:
    """Prompt tokens a second."""
    return sample.chunk / (sample.prefill_ms or 1.0) * 1e3


def frontier(samples: Iterable[Sample]) -> Frontier:
    """The batches that have a higher rate than all quicker ones, up to the longest TBT."""
    best: Frontier = []
    measured = sorted((_tbt(sample), rate(sample)) for sample in samples)
    for tbt, found in measured:
        if not best or found > best[-1][1]:
            best.append((tbt, found))
    return [*best, *((tbt, best[-1][1]) for tbt, _ in measured[-1:])]


def rate_at(batches: Frontier, tbt_ms: float) -> float | None:
    """The rate at ``tbt_ms``, on the line between two batches; None outside of them."""
    for (left, low), (right, high) in pairwise(batches):
        if left <= tbt_ms <= right:
            return low + (high - low) * (tbt_ms - left) / max(right - left, 1e-9)
    return None


def _tbt(sample: Sample) -> float:
    return sample.decode_ms or 0.0


def _condition(sample: Sample) -> str:
    if sample.sm_mhz is None or sample.power_w is None:
        return ""
    return f"{sample.sm_mhz:.0f} MHz, {sample.power_w:.0f} W"


def main(paths: list[str]) -> None:
    """Print the table of the profiles at ``paths``."""
    lines = [HEAD, ("---",) * len(HEAD)]
    lines += [row.cells for path in paths for row in rows(read_profile(Path(path)))]
    sys.stdout.write("".join(f"| {' | '.join(cells)} |\n" for cells in lines))


if __name__ == "__main__":
    main(sys.argv[1:])
