"""What a GPU profile says, as Markdown tables: ``python scripts/curves.py PROFILE``.

Every figure in docs/h200.md is a line of this script's output.
"""

import sys
from collections import Counter
from collections.abc import Iterator
from itertools import pairwise
from pathlib import Path
from typing import Any

from nexus.profiles.schema import KernelClass, Profile, Sample, read_profile

CLOSE = 1.10  # saturated: within 10 % of the time on all SMs
SHOWN_SMS = (8, 16, 32, 48, 64, 80, 96, 112, 132)


def table(head: tuple[str, ...], rows: list[tuple[Any, ...]]) -> Iterator[str]:
    """The lines of a Markdown table."""
    yield "| " + " | ".join(head) + " |"
    yield "|" + "---|" * len(head)
    for row in rows:
        yield "| " + " | ".join(str(cell) for cell in row) + " |"
    yield ""


def solo(profile: Profile) -> Iterator[str]:
    """Step time against SMs, as a multiple of that on all of them, and where it saturates."""
    total = profile.machine.sms
    rows = []
    for phase, size in (("prefill", 512), ("prefill", 2048), ("decode", 32), ("decode", 128)):
        curve = {sms: ms for sms, ms in _curve(profile, phase, size) if ms}
        whole = curve[total]
        enough = min(sms for sms, ms in curve.items() if ms <= CLOSE * whole)
        unit = "tokens" if phase == "prefill" else "sequences of 1024"
        cells = [f"{curve[sms] / whole:.2f}" if sms in curve else "" for sms in SHOWN_SMS]
        rows.append((f"{phase}, {size} {unit}", f"{whole:.2f} ms", *cells, enough))
    head = ("step", f"on {total}", *(f"×, {sms} SMs" for sms in SHOWN_SMS), "within 10 % from")
    yield from table(head, rows)


def kernels(profile: Profile) -> Iterator[str]:
    """Each kernel class's share of a step on all SMs, its slowdown, where it saturates."""
    rows = []
    for phase in ("prefill", "decode"):
        times: dict[KernelClass, dict[int, float]] = {}
        for sample in profile.kernels:
            if sample.phase == phase:
                times.setdefault(sample.kernel_class, {})[sample.sms] = sample.ms
        whole = sum(curve.get(profile.machine.sms, 0.0) for curve in times.values())
        for name, curve in sorted(times.items(), key=lambda item: -item[1].get(132, 0.0)):
            full = curve.get(profile.machine.sms)
            if not full or full < 0.01 * whole:
                continue
            enough = min(sms for sms, ms in curve.items() if ms <= CLOSE * full)
            slower = [f"{curve[sms] / full:.2f}" if sms in curve else "" for sms in (32, 64, 104)]
            rows.append((phase, name, f"{full:.2f} ms", f"{full / whole:.0%}", *slower, enough))
    head = (
        "phase",
        "kernels",
        "on 132",
        "share",
        "×, 32 SMs",
        "×, 64",
        "×, 104",
        "within 10 % from",
    )
    yield from table(head, rows)


def power(profile: Profile) -> Iterator[str]:
    """Clock and power of prefill on all SMs and of a decode step."""
    rows = [
        (
            f"{s.mode}, {s.chunk or s.decode_batch}",
            f"{s.sm_mhz:.0f} MHz",
            f"{s.power_w:.0f} W",
            f"{(s.chunk or s.decode_batch) / (s.prefill_ms or s.decode_ms or 1) * 1e3:.0f}",
        )
        for s in profile.measured
        if s.mode in ("prefill", "decode")
        and max(s.prefill_sms, s.decode_sms) == profile.machine.sms
        and (s.prefill_context, s.decode_context) in ((0, 0), (0, 1024))
        and s.sm_mhz
        and s.power_w
    ]
    yield from table(("step on all SMs", "clock", "power", "tokens/s"), rows)


def sharing(profile: Profile) -> Iterator[str]:
    """At each shared mode's TBT: its prefill rate over chunked prefill's at the same TBT."""
    measured = profile.measured
    shared = [s for s in measured if s.mode in ("split", "overlap") and not s.prefill_context]
    loads = sorted({(s.decode_batch, s.decode_context) for s in shared})
    chunk, _ = Counter(s.chunk for s in shared).most_common(1)[0]
    yield f"Chunks of {chunk} tokens."
    yield ""
    rows = []
    for load in loads:
        fused = _fused_frontier(measured, load)
        if len(fused) < 2:
            continue
        gains = []
        for s in shared:
            if _is(s, load) and s.chunk == chunk:
                at_same_tbt = _interpolate(fused, s.decode_ms or 0.0)
                if at_same_tbt:
                    name = f"{s.mode} {s.prefill_sms}"
                    gains.append((_rate(s) / at_same_tbt, s.decode_ms or 0.0, name, _rate(s)))
        if gains:
            best, worst = max(gains), min(gains)
            rows.append(
                (
                    f"{load[0]} × {load[1]}",
                    f"{best[2]}: {best[1]:.1f} ms, {best[3]:.0f}/s, {best[0]:.2f}×",
                    f"{worst[2]}: {worst[1]:.1f} ms, {worst[3]:.0f}/s, {worst[0]:.2f}×",
                    f"{sum(gain[0] > 1 for gain in gains)} of {len(gains)}",
                )
            )
    head = ("decodes", "best: TBT, prefill tokens/s, over fused", "worst", "modes that gain")
    yield from table(head, rows)


def _curve(profile: Profile, phase: str, size: int) -> Iterator[tuple[int, float | None]]:
    for s in profile.measured:
        if s.mode == phase == "prefill" and (s.chunk, s.prefill_context) == (size, 0):
            yield s.prefill_sms, s.prefill_ms
        if s.mode == phase == "decode" and (s.decode_batch, s.decode_context) == (size, 1024):
            yield s.decode_sms, s.decode_ms


def _is(sample: Sample, load: tuple[int, int]) -> bool:
    return (sample.decode_batch, sample.decode_context) == load


def _rate(sample: Sample) -> float:
    return sample.chunk / (sample.prefill_ms or 1.0) * 1e3


def _fused_frontier(
    samples: tuple[Sample, ...], load: tuple[int, int]
) -> list[tuple[float, float]]:
    chosen = [s for s in samples if s.mode == "fused" and _is(s, load) and not s.prefill_context]
    return sorted((s.decode_ms or 0.0, _rate(s)) for s in chosen)


def _interpolate(points: list[tuple[float, float]], tbt_ms: float) -> float | None:
    """The rate at ``tbt_ms`` on the line through ``points``; None outside of it."""
    for (left, low), (right, high) in pairwise(points):
        if left <= tbt_ms <= right:
            return low + (high - low) * (tbt_ms - left) / (right - left)
    return None


def main(path: str) -> None:
    """Print every table of the profile at ``path``."""
    profile = read_profile(Path(path))
    for title, part in (
        ("Solo", solo),
        ("Kernels", kernels),
        ("Power", power),
        ("Sharing", sharing),
    ):
        sys.stdout.write(f"### {title}\n\n" + "\n".join(part(profile)) + "\n")


if __name__ == "__main__":
    main(sys.argv[1])
