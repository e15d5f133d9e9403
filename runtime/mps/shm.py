"""POSIX shared memory that processes hold, so that it can be removed after they were killed."""

import os
from collections.abc import Iterable
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

from nexus.runtime.mps.processes import Process, everyone

_SHM = "/dev/shm/"  # noqa: S108  where the kernel keeps it


@dataclass(frozen=True, order=True)
class Segment:
    """One file of shared memory: its path, and the inode that tells it from a later one."""

    path: str
    inode: int


def held(processes: Iterable[Process]) -> set[Segment]:
    """The shared memory that these processes have mapped."""
    return {segment for process in processes for segment in _mapped(process.pid)}


def remove(segments: Iterable[Segment]) -> None:
    """Remove what is still there, is this user's, and is mapped by nobody."""
    present = [segment for segment in segments if _is_ours(segment)]
    if not present:
        return
    in_use = {segment for seen in everyone() for segment in _mapped(seen.process.pid)}
    for segment in present:
        if segment not in in_use:
            with suppress(OSError):
                Path(segment.path).unlink()


def _is_ours(segment: Segment) -> bool:
    try:
        status = Path(segment.path).stat()
    except OSError:
        return False
    return status.st_ino == segment.inode and status.st_uid == os.getuid()


def _mapped(pid: int) -> set[Segment]:
    try:
        lines = Path(f"/proc/{pid}/maps").read_text(encoding="utf-8", errors="replace")
    except OSError:
        return set()
    found = set()
    for line in lines.splitlines():
        if _SHM in line and not line.endswith(" (deleted)"):
            _, _, _, _, inode, path = line.split(maxsplit=5)
            found.add(Segment(path, int(inode)))
    return found
