"""Temporary folders that do not outlive their process for long, however it ends."""

import fcntl
import os
import shutil
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path


@contextmanager
def scratch_folder(prefix: str) -> Iterator[Path]:
    """A new folder whose name begins with ``prefix``, removed at the end.

    Those that processes of this user left when they were killed are removed first. A folder is
    in use while its owner, or a child that it forked, has it locked: unlike a pid, a lock is
    seen from other containers, and is nobody else's later.
    """
    _remove_left_over(prefix)
    path, lock = _make(prefix)
    try:
        yield path
    finally:
        shutil.rmtree(path, ignore_errors=True)
        os.close(lock)


def _make(prefix: str) -> tuple[Path, int]:
    while True:
        path = Path(tempfile.mkdtemp(prefix=prefix))
        lock = _lock(path)
        if lock is not None:
            return path, lock
        # Another process took it for left over in the moment before it was locked.


def _lock(path: Path) -> int | None:
    """The locked folder's descriptor; None where it is in use, gone or not this user's."""
    try:
        lock = os.open(path, os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC)
    except OSError:
        return None
    try:
        fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        seen, held = path.stat(), os.fstat(lock)
        if (seen.st_ino, seen.st_uid) == (held.st_ino, os.getuid()):
            return lock
    except OSError:
        pass
    os.close(lock)
    return None


def _remove_left_over(prefix: str) -> None:
    for path in Path(tempfile.gettempdir()).glob(f"{prefix}*"):
        lock = _lock(path)
        if lock is not None:
            shutil.rmtree(path, ignore_errors=True)
            os.close(lock)
