"""``nexus serve --trace``: steps and passes as a Chrome trace, for Perfetto or chrome://tracing.

The file is a JSON array that is written line by line, from the scheduler's process and the
worker's alike; it is closed when the server ends. Both viewers take one that is not.
Times are those of the monotonic clock, which all processes of a machine share.
"""

import json
import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from nexus.runtime.vllm.rows import Row

STEPS = "steps (decode lane)"
PASSES = "passes (prefill lane)"
LEFT_LANE = "left the lane"
FIRST_TOKENS = "first tokens"
_LANES = {STEPS: 1, PASSES: 2}


def told_of(rows: Sequence[Row]) -> dict[str, Any]:
    """What a trace tells of a pass; ``ends``: ids of the prompts that it was the last of."""
    return {
        "prompts": len(rows),
        "tokens": sum(len(row.tokens) for row in rows),
        "ends": [row.ends for row in rows if row.ends is not None],
    }


class ServeTrace:
    """Appends to one file; a line is one write, so that two processes do not mix theirs."""

    def __init__(self, path: Path, *, begin: bool = False) -> None:
        """``begin`` a new file, or go on with the one that another process has begun."""
        flags = os.O_WRONLY | os.O_CREAT | os.O_APPEND | (os.O_TRUNC if begin else 0)
        self._file = os.open(path, flags, 0o644)
        if begin:
            os.write(self._file, b"[\n")
            for lane, tid in _LANES.items():
                self._write({"ph": "M", "name": "thread_name", "tid": tid, "args": {"name": lane}})

    def span(self, lane: str, name: str, start_s: float, end_s: float, **told: Any) -> None:
        """A box from ``start_s`` to ``end_s`` on ``lane``; ``told`` is shown with it."""
        times = {"ts": round(1e6 * start_s, 1), "dur": round(1e6 * (end_s - start_s), 1)}
        self._write({"ph": "X", "name": name, "tid": _LANES[lane], **times, "args": told})

    def mark(self, lane: str, name: str, at_s: float, **told: Any) -> None:
        """A moment on ``lane``; ``told`` is shown with it."""
        at = {"ts": round(1e6 * at_s, 1), "s": "t"}
        self._write({"ph": "i", "name": name, "tid": _LANES[lane], **at, "args": told})

    def level(self, name: str, at_s: float, **values: float) -> None:
        """A counter's values from ``at_s`` on."""
        self._write({"ph": "C", "name": name, "ts": round(1e6 * at_s, 1), "args": values})

    def end(self) -> None:
        """End the array, when no process writes any more."""
        os.write(self._file, b'{"ph": "M", "name": "end", "pid": 1}\n]\n')
        os.close(self._file)

    def _write(self, event: dict[str, Any]) -> None:
        os.write(self._file, (json.dumps({"pid": 1, **event}) + ",\n").encode())
