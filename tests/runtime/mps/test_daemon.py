import json
import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from nexus.core.errors import PartitionError
from nexus.runtime.mps.daemon import MpsDaemon, _ask, find_control, refuse_others
from nexus.runtime.mps.processes import MARKER, Process, look, runs, wait_until

# Enters a daemon, says who is there, and stays.
HOLDER = """
import subprocess, sys, time, os
from pathlib import Path
from nexus.runtime.mps.daemon import MpsDaemon, _ask
with MpsDaemon(Path(sys.argv[1]), sys.argv[2]) as daemon:
    server = _ask(sys.argv[2], "serve", daemon.run.pipe).strip()
    client = subprocess.Popen(["sleep", "600"], env=os.environ | daemon.client(50))
    daemon.note()
    print(daemon._daemon.pid, server, client.pid, flush=True)
    time.sleep(600)
"""


def _hold(folder: Path, control: str) -> tuple["subprocess.Popen[str]", list[Process]]:
    holder = subprocess.Popen(
        [sys.executable, "-c", HOLDER, str(folder), control], stdout=subprocess.PIPE, text=True
    )
    assert holder.stdout is not None
    parts = []
    with holder.stdout:
        line = holder.stdout.readline()
    for pid in line.split():
        seen = look(int(pid))
        assert seen is not None
        parts.append(seen.process)
    assert len(parts) == 3
    return holder, parts


def test_comes_up_and_goes_without_a_trace(folder: Path, control: str) -> None:
    with MpsDaemon(folder, control) as daemon:
        server = look(int(_ask(control, "serve", daemon.run.pipe) or ""))
        client = subprocess.Popen(["sleep", "600"], env=os.environ | daemon.client(37, 1024))
        assert folder.stat().st_mode & 0o777 == 0o700
        assert (daemon.run.pipe / "control").is_socket()
        assert not daemon.failure()
        said = daemon.client(37, 1024)
    assert said["CUDA_MPS_ACTIVE_THREAD_PERCENTAGE"] == "37"
    assert said["CUDA_MPS_PINNED_DEVICE_MEM_LIMIT"] == "0=1024M"
    assert said["CUDA_MPS_PIPE_DIRECTORY"].startswith(str(folder))
    assert client.wait(5) == -signal.SIGTERM
    assert server is not None
    assert not runs(server.process)
    assert not folder.exists()


def test_a_failure_keeps_the_logs(folder: Path, control: str) -> None:
    with pytest.raises(RuntimeError), MpsDaemon(folder, control):
        raise RuntimeError
    assert [path.name for path in folder.iterdir()] == ["log"]
    assert "up" in (folder / "log" / "daemon.log").read_text()
    with MpsDaemon(folder, control):
        pass
    assert not folder.exists()


def test_a_daemon_that_does_not_start_is_one_line(folder: Path, tmp_path: Path) -> None:
    program = tmp_path / "mps-broken"
    program.write_text("#!/bin/sh\necho no such device\nexit 3\n")
    program.chmod(0o755)
    with pytest.raises(PartitionError, match=r"ended \(exit code 3\); its logs are in"):
        MpsDaemon(folder, str(program)).__enter__()
    assert "no such device" in (folder / "log" / "daemon.log").read_text()


def test_absent_program() -> None:
    with pytest.raises(PartitionError, match="not on the PATH"):
        find_control("no-such-mps-control")


def test_one_run_at_a_time(folder: Path, control: str) -> None:
    with (
        MpsDaemon(folder, control),
        pytest.raises(PartitionError, match=f"already runs with MPS here .process {os.getpid()}"),
    ):
        MpsDaemon(folder, control).__enter__()


def test_someone_elses_daemon_is_neither_used_nor_ended(
    folder: Path, control: str, tmp_path: Path
) -> None:
    pipe = tmp_path / "pipe"
    pipe.mkdir()
    environment = os.environ | {"CUDA_MPS_PIPE_DIRECTORY": str(pipe)}
    other = subprocess.Popen([control, "-f"], env=environment, stdout=subprocess.DEVNULL)
    try:
        assert wait_until((pipe / "control").exists, 10)
        with pytest.raises(PartitionError, match=f"someone else's runs .process {other.pid}"):
            MpsDaemon(folder, control).__enter__()
        assert other.poll() is None
        assert not list((folder / "log").iterdir())
    finally:
        other.kill()
        other.wait()
    refuse_others(control)


@pytest.mark.parametrize("killed", ["holder", "daemon", "server", "all"])
def test_what_a_killed_run_left_is_cleaned_up_by_the_next(
    killed: str, folder: Path, control: str, tmp_path: Path
) -> None:
    holder, (daemon, server, client) = _hold(folder, control)
    alike = subprocess.Popen(["sleep", "600"], env=os.environ | {MARKER: f"{folder}:another"})
    kept = tmp_path / "kept"
    kept.touch()
    victims = {
        "holder": [],
        "daemon": [daemon],
        "server": [server],
        "all": [daemon, server, client],
    }
    for process in victims[killed]:
        os.kill(process.pid, signal.SIGKILL)
    holder.kill()
    holder.wait()
    try:
        with MpsDaemon(folder, control):
            assert not any(runs(process) for process in (daemon, server, client))
        assert not folder.exists()
        assert alike.poll() is None
        assert kept.exists()
    finally:
        alike.kill()
        alike.wait()


def test_a_reused_pid_is_left_alone(folder: Path, control: str) -> None:
    holder, parts = _hold(folder, control)
    holder.kill()
    holder.wait()
    innocent = subprocess.Popen(["sleep", "600"])
    try:
        state = json.loads((folder / "state.json").read_text())
        state["processes"].append([innocent.pid, 17])
        (folder / "state.json").write_text(json.dumps(state))
        with MpsDaemon(folder, control):
            assert innocent.poll() is None
            assert not any(map(runs, parts))
    finally:
        innocent.kill()
        innocent.wait()


@pytest.mark.parametrize("text", ["", "{", "[]", '{"boot": ""}'])
def test_a_broken_state_file_ends_nobody(text: str, folder: Path, control: str) -> None:
    folder.mkdir(mode=0o700)
    (folder / "state.json").write_text(text)
    with MpsDaemon(folder, control):
        pass
    assert not folder.exists()


def test_shared_memory_of_a_killed_client_is_removed(folder: Path, control: str) -> None:
    name = f"/dev/shm/nexus-test-{os.getpid()}"
    other = Path(f"{name}-other")
    other.touch()
    hold = (
        f"import mmap, time; f = open('{name}', 'w+b'); f.truncate(4096);"
        "m = mmap.mmap(f.fileno(), 4096); print('ok', flush=True); time.sleep(600)"
    )
    try:
        with MpsDaemon(folder, control) as daemon:
            client = subprocess.Popen(
                [sys.executable, "-c", hold],
                env=os.environ | daemon.client(50),
                stdout=subprocess.PIPE,
            )
            assert client.stdout is not None
            assert client.stdout.readline()
            daemon.note()
            client.kill()
            client.wait()
            client.stdout.close()
            assert Path(name).exists()
        assert not Path(name).exists()
        assert other.exists()
    finally:
        other.unlink()


def test_folder_is_refused(folder: Path, control: str, tmp_path: Path) -> None:
    with pytest.raises(PartitionError, match="too long for sockets"):
        MpsDaemon(tmp_path / ("x" * 60), control).__enter__()
    folder.mkdir(mode=0o755)
    with pytest.raises(PartitionError, match="not a folder of this user's alone"):
        MpsDaemon(folder, control).__enter__()


def test_a_client_needs_a_share(folder: Path, control: str) -> None:
    with MpsDaemon(folder, control) as daemon, pytest.raises(PartitionError):
        daemon.client(0)
