"""How alike two profiles of the same thing are: ``python scripts/repeatability.py A B``."""

import statistics
import sys
from pathlib import Path

from nexus.profiles.schema import Sample, read_profile


def differences(first: tuple[Sample, ...], second: tuple[Sample, ...]) -> list[float]:
    """The relative difference of every median step time that both have."""
    known = {sample.key: sample for sample in first}
    found = []
    for sample in second:
        before = known.get(sample.key)
        for name in ("prefill_ms", "decode_ms"):
            if before is None or (sample.mode == "fused" and name == "prefill_ms"):
                continue
            old, new = getattr(before, name), getattr(sample, name)
            if old is not None and new is not None:
                found.append(abs(old / new - 1))
    return found


def main(first: str, second: str) -> None:
    """Print one line of statistics."""
    found = differences(read_profile(Path(first)).measured, read_profile(Path(second)).measured)
    p95 = statistics.quantiles(found, n=100, method="inclusive")[94]
    sys.stdout.write(
        f"{len(found)} step times in both: median difference {statistics.median(found):.2%},"
        f" p95 {p95:.2%}, most {max(found):.2%}\n"
    )


if __name__ == "__main__":
    main(sys.argv[1], sys.argv[2])
