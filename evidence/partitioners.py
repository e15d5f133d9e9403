"""What green contexts give that MPS does not, and the reverse, as Markdown tables.

``python evidence/partitioners.py GREEN.yaml MPS.yaml``, two profiles of one model on one machine.
"""

import statistics
import sys
from collections.abc import Iterable, Iterator
from pathlib import Path

from nexus.profiles.schema import Profile, Sample, read_profile

Cells = tuple[str, ...]


def table(head: Cells, rows: Iterable[Cells]) -> Iterator[str]:
    """The lines of a Markdown table; a note where there are no rows."""
    body = list(rows)
    if not body:
        yield "(none in both profiles)"
        return
    for row in (head, ("---",) * len(head), *body):
        yield "| " + " | ".join(row) + " |"


def alone(green: Profile, mps: Profile) -> Iterator[Cells]:
    """Each phase alone, on the SM counts that both profiles have."""
    for one, other in pairs(green, mps, ("prefill", "decode")):
        yield (
            phase_of(one),
            str(one.prefill_sms or one.decode_sms),
            *compared(one.prefill_ms or one.decode_ms, other.prefill_ms or other.decode_ms),
        )


def fused(green: Profile, mps: Profile) -> Iterator[Cells]:
    """One batch of both phases, on all SMs: what MPS itself costs."""
    for one, other in pairs(green, mps, ("fused",)):
        yield shape_of(one), *compared(one.decode_ms, other.decode_ms)


def together(green: Profile, mps: Profile) -> Iterator[Cells]:
    """Both phases at once, at the same SM counts."""
    for one, other in pairs(green, mps, ("split", "overlap")):
        prefill = compared(one.prefill_ms, other.prefill_ms)
        yield sms_of(one), shape_of(one), *prefill, *compared(one.decode_ms, other.decode_ms)


def only(these: Profile, others: Profile) -> Iterator[Cells]:
    """Both phases at once, on SM counts that the other profile does not have."""
    known = {share_of(sample) for sample in others.measured}
    for sample in these.measured:
        if sample.mode in ("split", "overlap") and share_of(sample) not in known:
            speed = f"{sample.chunk / (sample.prefill_ms or 1.0) * 1e3:.0f}"
            tbt = f"{sample.decode_ms:.2f}"
            yield sms_of(sample), shape_of(sample), f"{sample.prefill_ms:.2f}", speed, tbt


def gains(green: Profile, mps: Profile) -> Iterator[Cells]:
    """MPS over green contexts, by kind of sample: the median and the extremes."""
    kinds: dict[str, list[float]] = {}
    for one, other in pairs(green, mps, ("prefill", "decode", "fused", "split", "overlap")):
        for phase in ("prefill_ms", "decode_ms"):
            before, after = getattr(one, phase), getattr(other, phase)
            if before and after and (one.mode, phase) != ("fused", "prefill_ms"):
                name = f"{one.mode}, {phase.removesuffix('_ms')}"
                kinds.setdefault(name, []).append(after / before)
    for name, found in kinds.items():
        spread = (f"{value:.2f}" for value in (statistics.median(found), min(found), max(found)))
        yield name, str(len(found)), *spread


def pairs(green: Profile, mps: Profile, modes: tuple[str, ...]) -> Iterator[tuple[Sample, Sample]]:
    """Samples of the same point in both."""
    known = {sample.key: sample for sample in mps.measured}
    for sample in sorted(green.measured, key=lambda sample: sample.key):
        if sample.mode in modes and sample.key in known:
            yield sample, known[sample.key]


def compared(green_ms: float | None, mps_ms: float | None) -> Cells:
    """Both times, and MPS's over the other."""
    assert green_ms is not None
    assert mps_ms is not None
    return f"{green_ms:.2f}", f"{mps_ms:.2f}", f"{mps_ms / green_ms:.2f}×"


def phase_of(sample: Sample) -> str:
    """Such as ``prefill, 512 at 0`` and ``decode, 32 × 1024``."""
    if sample.mode == "prefill":
        return f"prefill, {sample.chunk} at {sample.prefill_context}"
    return f"decode, {sample.decode_batch} × {sample.decode_context}"


def shape_of(sample: Sample) -> str:
    """Such as ``1024 at 0 beside 32 × 1024``."""
    return (
        f"{sample.chunk} at {sample.prefill_context} beside "
        f"{sample.decode_batch} × {sample.decode_context}"
    )


def share_of(sample: Sample) -> tuple[str, int, int]:
    """What tells one partition from another."""
    return sample.mode, sample.prefill_sms, sample.decode_sms


def sms_of(sample: Sample) -> str:
    """Such as ``84 + 48``."""
    return f"{sample.prefill_sms} + {sample.decode_sms}"


def main(first: str, second: str) -> None:
    """Print every table of the two profiles, whichever is which."""
    profiles = [read_profile(Path(path)) for path in (first, second)]
    by_name = {profile.partitioner: profile for profile in profiles}
    if set(by_name) != {"green", "mps"}:
        sys.exit("one profile has to be of green contexts, the other of MPS")
    green, mps = by_name["green"], by_name["mps"]
    times = ("green, ms", "MPS, ms", "MPS / green")
    both = ("SMs, prefill + decode", "prefill beside decode")
    sections: list[tuple[str, Cells, Iterable[Cells]]] = [
        (
            "MPS over green contexts",
            ("samples", "points", "median", "least", "most"),
            gains(green, mps),
        ),
        ("Alone", ("step", "SMs", *times), alone(green, mps)),
        ("One batch on all SMs", ("prefill beside decode", *times), fused(green, mps)),
        (
            "At once",
            (*both, *(f"prefill {name}" for name in times), *(f"decode {name}" for name in times)),
            together(green, mps),
        ),
        ("Under MPS only", (*both, "prefill, ms", "tokens/s", "decode, ms"), only(mps, green)),
    ]
    for title, head, rows in sections:
        sys.stdout.write(f"### {title}\n\n" + "\n".join(table(head, rows)) + "\n\n")


if __name__ == "__main__":
    main(*sys.argv[1:])
