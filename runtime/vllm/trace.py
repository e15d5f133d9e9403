"""``nexus serve --trace``: steps and passes as a Chrome trace, for Perfetto or chrome://tracing.

The file is a JSON array that is written line by line, from the scheduler's process and the
worker's alike; it is closed when the server ends, or when a line cannot be written, as on a full
disk: then no process writes any more. Both viewers take one that is not closed.
Times are those of the monotonic clock, which all processes of a machine share.
"""

import fcntl
import json
import os
import stat
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

from nexus.core.io import chrome_trace
from nexus.runtime.vllm.compat import log

STEPS = "steps (decode lane)"
PASSES = "passes (prefill lane)"
LEFT_LANE = "left the lane"
FIRST_TOKENS = "first tokens"
_LANES = {STEPS: 1, PASSES: 2}
_BEGIN = b"[\n"
_END = b'{"ph": "M", "name": "end", "pid": 1}\n]\n'
_TAIL_BYTES = 1 << 20  # more than the longest line


class ServeTrace:
    """Appends to one file, a line at a time, so that two processes do not mix theirs.

    Never raises OSError: what cannot be written ends the trace, with one line in the log.
    """

    def __init__(self, path: Path, *, begin: bool = False, engine: int = 0) -> None:
        """``begin`` a new file, or go on with the one that another process has begun.

        What is written is of that ``engine``, of several that are data parallel.
        """
        self._process = engine + 1
        self._file: int | None = None
        try:
            ordinary = not path.exists() or path.is_file()
            flags = (os.O_RDWR if ordinary else os.O_WRONLY) | os.O_CREAT | os.O_CLOEXEC
            self._file = os.open(path, flags | (os.O_TRUNC if begin else 0), 0o644)
        except OSError as error:
            self._stop(error)
        if begin:
            self._append(_BEGIN)
        if begin or engine:
            for lane, tid in _LANES.items():
                self._write(chrome_trace.track_name(tid, lane, self._process))

    def span(self, lane: str, name: str, start_s: float, end_s: float, **told: Any) -> None:
        """A box from ``start_s`` to ``end_s`` on ``lane``; ``told`` is shown with it."""
        self._write(chrome_trace.box(_LANES[lane], name, start_s, end_s, told, self._process))

    def mark(self, lane: str, name: str, at_s: float, **told: Any) -> None:
        """A moment on ``lane``; ``told`` is shown with it."""
        self._write(chrome_trace.moment(_LANES[lane], name, at_s, told, self._process))

    def level(self, name: str, at_s: float, **values: float) -> None:
        """A counter's values from ``at_s`` on."""
        self._write(chrome_trace.level(name, at_s, values, self._process))

    def end(self) -> None:
        """End the array, when no process writes any more."""
        self._append(_END)
        self._close()

    def _write(self, event: chrome_trace.Event) -> None:
        self._append((json.dumps(event) + ",\n").encode())

    def _append(self, line: bytes) -> None:
        if self._file is None:
            return
        try:
            with _locked(self._file):
                over = not _has_added(self._file, line)
        except OSError as error:
            self._stop(error)
        else:
            if over:
                self._close()

    def _stop(self, error: OSError) -> None:
        log.warning("nexus: the trace ends here: %s", error.strerror or error)
        self._close()

    def _close(self) -> None:
        if self._file is not None:
            os.close(self._file)
            self._file = None


def _has_added(file: int, line: bytes) -> bool:
    """Whether ``line`` is in the file, whose array may be over or never begun.

    Raises OSError where there is no room, and ends the array.
    """
    status = os.fstat(file)
    if not stat.S_ISREG(status.st_mode):
        _write(file, line)
        return True
    size = status.st_size
    if os.pread(file, 2, max(0, size - 2)) == _END[-2:] or (size == 0 and line != _BEGIN):
        return False
    try:
        _write(file, line, size)
    except OSError:
        _end_within(file, size)
        raise
    return True


def _end_within(file: int, size: int) -> None:
    """End the array with whole lines alone, the last ones giving way to what ends it.

    Where there are none to give way nothing stays.
    """
    start = max(0, size - _TAIL_BYTES)
    tail = os.pread(file, size - start, start)
    room = tail.rfind(b"\n", 0, max(0, len(tail) - len(_END))) + 1
    if room:
        size = start + room
        with suppress(OSError):
            _write(file, _END, size)
            size += len(_END)
    elif start == 0:
        size = 0
    os.ftruncate(file, size)


def _write(file: int, data: bytes, at: int | None = None) -> None:
    """All of ``data``, from ``at`` on in a file; where OSError is raised, a part may be there."""
    while data:
        count = os.write(file, data) if at is None else os.pwrite(file, data, at)
        data, at = data[count:], None if at is None else at + count


@contextmanager
def _locked(file: int) -> Iterator[None]:
    fcntl.flock(file, fcntl.LOCK_EX)
    try:
        yield
    finally:
        fcntl.flock(file, fcntl.LOCK_UN)
