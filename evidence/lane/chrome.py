"""Some milliseconds of kernels as a small Chrome trace, for Perfetto or chrome://tracing."""

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from nexus.core.io.outputs import write_atomically
from nexus.evidence.lane.activity import Stream, busiest
from nexus.profiler.kernels import KernelRecord, kernel_class

WINDOW_MS = 50.0
MOST_BYTES = 280_000


def write_window(
    path: Path,
    records: Sequence[KernelRecord],
    prefill: set[Stream],
    names: Mapping[tuple[int, int], str],
) -> float:
    """Write the milliseconds in which both lanes are busiest; how many there are.

    ``names`` are those of a (context, stream). Kernels are named by their class. Where
    ``WINDOW_MS`` would make a file of over ``MOST_BYTES``, the window is shorter.
    """
    window_ms = WINDOW_MS
    while True:
        start = busiest(records, prefill, int(window_ms * 1e6))
        text = _trace(records, start, int(window_ms * 1e6), names)
        if len(text) <= MOST_BYTES or window_ms < 1.0:
            write_atomically(path, text)
            return window_ms
        window_ms *= 0.8


def _trace(
    records: Sequence[KernelRecord],
    start_ns: int,
    window_ns: int,
    names: Mapping[tuple[int, int], str],
) -> str:
    inside = [r for r in records if start_ns <= r.start_ns < start_ns + window_ns]
    keys = sorted({(record.context, record.stream) for record in inside})
    events: list[dict[str, Any]] = [
        {
            "ph": "M",
            "name": "thread_name",
            "pid": 1,
            "tid": place,
            "args": {"name": names.get(key, f"context {key[0]}, stream {key[1]}")},
        }
        for place, key in enumerate(keys, start=1)
    ]
    events += [
        {
            "ph": "X",
            "pid": 1,
            "tid": keys.index((record.context, record.stream)) + 1,
            "ts": round((record.start_ns - start_ns) / 1e3, 1),
            "dur": round((record.end_ns - record.start_ns) / 1e3, 1),
            "name": kernel_class(record.name),
        }
        for record in sorted(inside, key=lambda each: each.start_ns)
    ]
    lines = (json.dumps(event, separators=(",", ":")) for event in events)
    return "[\n" + ",\n".join(lines) + "\n]\n"
