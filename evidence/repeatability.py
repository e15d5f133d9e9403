"""How alike two profiles of the same thing are: ``python evidence/repeatability.py A B``."""

import statistics
import sys
from collections.abc import Iterator
from pathlib import Path

from nexus.core.spread import percentile
from nexus.profiles.schema import Sample, read_profile


def differences(
    first: tuple[Sample, ...], second: tuple[Sample, ...]
) -> Iterator[tuple[str, float]]:
    """Of every median step time that both have: the sample's mode, the relative difference."""
    known = {sample.key: sample for sample in first}
    for sample in second:
        before = known.get(sample.key)
        for name in ("prefill_ms", "decode_ms"):
            if before is None or (sample.mode == "fused" and name == "prefill_ms"):
                continue
            old, new = getattr(before, name), getattr(sample, name)
            if old is not None and new is not None:
                yield sample.mode, abs(old / new - 1)


def main(first: str, second: str) -> None:
    """Print a line of statistics, for all and for each mode."""
    pairs = read_profile(Path(first)).measured, read_profile(Path(second)).measured
    found = list(differences(*pairs))
    for mode in ("all", *dict.fromkeys(mode for mode, _ in found)):
        values = [value for name, value in found if mode in ("all", name)]
        p95 = percentile(values, 95)
        sys.stdout.write(
            f"{mode}: {len(values)} step times in both: median difference"
            f" {statistics.median(values):.2%}, p95 {p95:.2%}, most {max(values):.2%}\n"
        )


if __name__ == "__main__":
    main(sys.argv[1], sys.argv[2])
