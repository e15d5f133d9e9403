"""The driver's own MPS daemon: shares, and nothing left of it after a kill."""

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from nexus.core.plan import percent_for
from nexus.runtime.mps.daemon import CONTROL, MpsDaemon
from nexus.runtime.mps.processes import Process, everyone, runs, wait_until

pytestmark = pytest.mark.gpu
SMS = "import torch; print(torch.cuda.get_device_properties(0).multi_processor_count, flush=True)"
STAY = f"{SMS}; torch.ones(1, device='cuda').sum().item(); print('up', flush=True)"
HOLDER = f"""
import os, subprocess, sys, time
from pathlib import Path
from nexus.runtime.mps.daemon import MpsDaemon
with MpsDaemon(Path(sys.argv[1])) as daemon:
    command = [sys.executable, "-c", {STAY + "; import time; time.sleep(600)"!r}]
    client = subprocess.Popen(command, env=os.environ | daemon.client(50), stdout=subprocess.PIPE)
    while client.stdout.readline().strip() != b"up":
        assert client.poll() is None
    daemon.note()
    print(client.pid, flush=True)
    time.sleep(600)
"""


def _sms(environment: dict[str, str]) -> int:
    done = subprocess.run(
        [sys.executable, "-c", SMS],
        env=os.environ | environment,
        capture_output=True,
        text=True,
        check=True,
    )
    return int(done.stdout)


def _of_mps() -> set[Process]:
    return {seen.process for seen in everyone() if seen.name == CONTROL[:15]}


def test_a_client_gets_its_share(folder: Path) -> None:
    whole = _sms({})
    with MpsDaemon(folder) as daemon:
        for sms in (whole // 4 // 2 * 2, whole // 2 // 2 * 2):
            # The driver gives at least what was asked for, in steps of its own.
            assert sms <= _sms(daemon.client(percent_for(sms, whole))) < sms + 8
        assert _sms(daemon.client(100)) == whole
        assert _of_mps()
    assert wait_until(lambda: not _of_mps(), 5)
    assert not folder.exists()


@pytest.mark.parametrize("killed", ["holder", "holder and daemon", "everything"])
def test_what_a_kill_left_is_cleaned_up(folder: Path, killed: str) -> None:
    before = _of_mps()
    holder = subprocess.Popen(
        [sys.executable, "-c", HOLDER, str(folder)], stdout=subprocess.PIPE, text=True
    )
    assert holder.stdout is not None
    with holder.stdout:
        client = int(holder.stdout.readline())
    left = _of_mps() - before
    assert len(left) == 2  # the daemon and its server
    holder.kill()
    holder.wait()
    if killed != "holder":
        os.kill(min(left).pid, signal.SIGKILL)
    if killed == "everything":
        os.kill(max(left).pid, signal.SIGKILL)
        os.kill(client, signal.SIGKILL)
    time.sleep(0.5)
    with MpsDaemon(folder) as daemon:
        assert not any(map(runs, left))
        assert _sms(daemon.client(50)) > 0
    assert wait_until(lambda: not _of_mps() - before, 5)
    assert not folder.exists()
