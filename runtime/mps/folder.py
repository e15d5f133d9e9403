"""The private folder of a run under MPS: what it started, so that the next one can clean up.

One run at a time holds the folder's lock. What a run that was killed left behind is
known from its state file and ended by the next: processes by pid and start time (and by
the marker that their children inherit), shared memory by name and inode, the rest by
lying in this folder.
"""

import fcntl
import json
import os
import secrets
import shutil
import stat
from collections.abc import Collection
from contextlib import suppress
from pathlib import Path
from typing import Any, Self

from nexus.core.errors import PartitionError
from nexus.core.io.outputs import write_atomically
from nexus.runtime.mps import shm
from nexus.runtime.mps.processes import Process, boot, end, family, look

_GRACE_S = 3.0
# A Unix socket's address holds 107 bytes; below the folder come "/sockets/" and a UUID.
_LONGEST = 60


def default_folder() -> Path:
    """``NEXUS_MPS_DIR``, or one per user below ``/tmp``, so that every start looks there."""
    given = os.environ.get("NEXUS_MPS_DIR")
    return Path(given) if given else Path(f"/tmp/nexus-mps-{os.getuid()}")  # noqa: S108  0700


def holder(path: Path) -> str:
    """The pid of the process that has the folder's lock; empty when nobody has."""
    try:
        lock = os.open(path / "lock", os.O_RDONLY | os.O_CLOEXEC | os.O_NOFOLLOW)
    except OSError:
        return ""
    try:
        fcntl.flock(lock, fcntl.LOCK_SH | fcntl.LOCK_NB)
    except BlockingIOError:
        return os.pread(lock, 20, 0).decode(errors="replace")
    finally:
        os.close(lock)
    return ""


def left_behind(path: Path) -> set[Process]:
    """What still runs of the run that last had the folder, be it over or not."""
    state = _read_state(path / "state.json")
    if state["boot"] != boot():
        return set()
    noted = {Process(int(pid), int(started)) for pid, started in state["processes"]}
    return family(noted, state["marker"])


def clean_up(path: Path) -> None:
    """End and remove what a killed run left; raises PartitionError while another run is on."""
    RunFolder.open(path).close(keep_logs=False)


def check_folder(path: Path) -> None:
    """Raise PartitionError when this folder could not be a run's."""
    if len(os.fsencode(path)) > _LONGEST:
        raise PartitionError(f"{path} is too long for sockets: at most {_LONGEST} bytes")
    try:
        status = path.lstat()
    except OSError:
        if not os.access(path.parent, os.W_OK | os.X_OK):
            raise PartitionError(f"{path.parent}: not a folder that can be written to") from None
        return
    if not stat.S_ISDIR(status.st_mode) or status.st_uid != os.getuid() or status.st_mode & 0o77:
        raise PartitionError(f"{path} is not a folder of this user's alone (mode 0700)")


class RunFolder:
    """The folder of the run that is on; made by ``RunFolder.open``, ended by ``close``.

    ``pipe`` and ``log`` are MPS's directories, ``sockets`` is for the parts' own sockets.
    """

    def __init__(self, path: Path, lock: int) -> None:
        """``lock`` is the descriptor that holds the lock; use ``open``."""
        self.path = path
        self.pipe, self.log, self.sockets = (path / name for name in ("pipe", "log", "sockets"))
        self.marker = f"{path}:{secrets.token_hex(8)}"
        self._lock = lock
        self._processes: set[Process] = set()
        self._segments: set[shm.Segment] = set()
        self._sessions: set[int] = set()

    @classmethod
    def open(cls, path: Path) -> Self:
        """Take the folder, and clean up what a killed run left in it.

        Raises PartitionError when another run has it, or it is not this user's alone.
        """
        path = Path(os.path.abspath(path))  # noqa: PTH100  links stay: they may be the shorter name
        check_folder(path)
        try:
            path.mkdir(mode=0o700, exist_ok=True)
        except OSError as error:
            raise PartitionError(f"{path}: {error.strerror or error}") from error
        check_folder(path)  # whoever made it
        lock = _take_lock(path / "lock")
        try:
            _clean(path)
            folder = cls(path, lock)
            for made in (folder.pipe, folder.log, folder.sockets):
                made.mkdir(mode=0o700)
            folder._write()
        except BaseException:
            os.close(lock)
            raise
        return folder

    def note(self, processes: Collection[Process], *, look_for_memory: bool = False) -> None:
        """Put down which processes belong to the run, and the shared memory that they hold."""
        segments = shm.held(processes) if look_for_memory else set()
        if not self._processes.issuperset(processes) or not self._segments.issuperset(segments):
            self._processes |= set(processes)
            self._segments |= segments
            self._write()

    def own_session(self, leader: int) -> None:
        """All of the session that this pid leads belongs to the run; it must stay unwaited for."""
        self._sessions.add(leader)

    def members(self) -> set[Process]:
        """Every process of this run that still runs."""
        return family(self._processes, self.marker, self._sessions)

    def close(self, *, keep_logs: bool) -> None:
        """Remove all but, if wanted, the logs; the run's processes are to have ended."""
        shm.remove(self._segments)
        for name in ("state.json", "pipe", "sockets", *(() if keep_logs else ("log",))):
            _remove(self.path / name)
        _remove(self.path / "lock")
        with suppress(OSError):
            self.path.rmdir()
        os.close(self._lock)

    def _write(self) -> None:
        state = {
            "boot": boot(),
            "marker": self.marker,
            "processes": sorted((each.pid, each.started) for each in self._processes),
            "shared_memory": sorted((each.path, each.inode) for each in self._segments),
        }
        write_atomically(self.path / "state.json", json.dumps(state) + "\n")


def _take_lock(path: Path) -> int:
    """A descriptor with the lock; a lock file that its holder has just removed does not count."""
    while True:
        lock = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC | os.O_NOFOLLOW, 0o600)
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError as error:
            holder = os.pread(lock, 20, 0).decode(errors="replace")
            os.close(lock)
            raise PartitionError(
                f"Nexus already runs with MPS here (process {holder}, folder {path.parent})"
            ) from error
        with suppress(FileNotFoundError):
            if path.stat().st_ino == os.fstat(lock).st_ino:
                os.truncate(lock, 0)
                os.pwrite(lock, str(os.getpid()).encode(), 0)
                return lock
        os.close(lock)


def _clean(path: Path) -> None:
    """End and remove what the run that last had the folder left behind."""
    state = _read_state(path / "state.json")
    segments = {shm.Segment(str(name), int(inode)) for name, inode in state["shared_memory"]}
    left = left_behind(path)
    segments |= shm.held(left)
    # MPS goes last: a client that loses its server is harder to end.
    servers = {process for process in left if _is_mps(process)}
    stuck = end(left - servers, _GRACE_S) | end(servers, _GRACE_S)
    if stuck:
        pids = ", ".join(str(process.pid) for process in sorted(stuck))
        raise PartitionError(f"processes of a former run cannot be ended: {pids}")
    shm.remove(segments)
    for name in ("state.json", "pipe", "log", "sockets"):
        _remove(path / name)


def _read_state(path: Path) -> dict[str, Any]:
    """The state file, or one that says nothing: what cannot be read names nobody to end."""
    empty = {"boot": "", "marker": "", "processes": [], "shared_memory": []}
    try:
        state = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return empty
    return {**empty, **state} if isinstance(state, dict) else empty


def _is_mps(process: Process) -> bool:
    seen = look(process.pid)
    return seen is not None and seen.name.startswith("nvidia-cuda-mps")


def _remove(path: Path) -> None:
    if path.is_dir() and not path.is_symlink():
        shutil.rmtree(path, ignore_errors=True)
    else:
        path.unlink(missing_ok=True)
