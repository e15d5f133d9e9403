"""What a GPU profile says, as Markdown tables: ``python evidence/curves.py PROFILE``.

The figures in docs/h200.md are lines of this script's output, or of ``evidence/sharing.py``'s.
"""

import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from nexus.profiles.schema import KernelClass, Profile, read_profile

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


def _curve(profile: Profile, phase: str, size: int) -> Iterator[tuple[int, float | None]]:
    for s in profile.measured:
        if s.mode == phase == "prefill" and (s.chunk, s.prefill_context) == (size, 0):
            yield s.prefill_sms, s.prefill_ms
        if s.mode == phase == "decode" and (s.decode_batch, s.decode_context) == (size, 1024):
            yield s.decode_sms, s.decode_ms


def main(path: str) -> None:
    """Print every table of the profile at ``path``."""
    profile = read_profile(Path(path))
    for title, part in (
        ("Solo", solo),
        ("Kernels", kernels),
        ("Power", power),
    ):
        sys.stdout.write(f"### {title}\n\n" + "\n".join(part(profile)) + "\n")


if __name__ == "__main__":
    main(sys.argv[1])
