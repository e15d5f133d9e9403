"""Temporary folders of processes that were killed."""

import subprocess
import sys
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import psutil
import pytest

from nexus.runtime.scratch import scratch_folder

HOLD = """
import os, sys, time
from nexus.runtime.scratch import scratch_folder

with scratch_folder("nexus-test-") as folder:
    (folder / "file").write_text("kept")
    if sys.argv[1] == "fork" and os.fork():
        os._exit(0)  # as one that was killed: its child goes on
    print(os.getpid(), folder, flush=True)
    time.sleep(600)
"""


@pytest.fixture
def there(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("TMPDIR", str(tmp_path))
    monkeypatch.setattr(tempfile, "tempdir", None)
    return tmp_path


@contextmanager
def held(how: str) -> Iterator[Path]:
    """A folder that another process has, until that is killed at the end."""
    process = subprocess.Popen([sys.executable, "-c", HOLD, how], stdout=subprocess.PIPE, text=True)
    assert process.stdout is not None
    with process.stdout as said:
        pid, folder = said.readline().split()
    owner = psutil.Process(int(pid))
    yield Path(folder)
    owner.kill()
    process.wait()
    psutil.wait_procs([owner])


def test_a_folder_is_removed_at_the_end(there: Path) -> None:
    with scratch_folder("nexus-test-") as folder:
        (folder / "file").write_text("kept")
        assert folder.parent == there
    assert list(there.iterdir()) == []


@pytest.mark.parametrize("how", ["alone", "fork"])
def test_the_next_start_removes_what_a_killed_process_left(there: Path, how: str) -> None:
    other = there / "nexus-other-1"
    other.mkdir()
    link = there / "nexus-test-link"
    link.symlink_to(other)
    with held(how) as folder, scratch_folder("nexus-test-"):
        assert (folder / "file").read_text() == "kept"
    assert (folder / "file").read_text() == "kept"
    with scratch_folder("nexus-test-") as new:
        assert sorted(there.iterdir()) == sorted([new, other, link])
