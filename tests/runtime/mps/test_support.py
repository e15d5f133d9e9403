"""What the doctor says of MPS, seen with stand-ins."""

import os
import subprocess
from pathlib import Path

from nexus.runtime.doctor import examine
from nexus.runtime.mps.daemon import MpsDaemon
from nexus.runtime.mps.processes import wait_until
from nexus.runtime.mps.recipes import Programs
from nexus.runtime.mps.support import describe_daemon, describe_parts


def test_a_daemon_could_be_started(control: str, folder: Path) -> None:
    assert describe_daemon(control, folder) == (True, control)
    assert not folder.exists()


def test_the_program_is_absent(folder: Path) -> None:
    able, seen = describe_daemon("no-such-mps-control", folder)
    assert not able
    assert "no-such-mps-control is not on the PATH" in seen


def test_the_folder_is_not_private(control: str, folder: Path) -> None:
    folder.mkdir(mode=0o755)
    able, seen = describe_daemon(control, folder)
    assert not able
    assert "not a folder of this user's alone" in seen


def test_the_folder_cannot_be_made(control: str) -> None:
    able, seen = describe_daemon(control, Path("/no/such/folder"))
    assert not able
    assert "not a folder that can be written to" in seen


def test_nexus_runs_with_it(control: str, folder: Path) -> None:
    with MpsDaemon(folder, control):
        able, seen = describe_daemon(control, folder)
        assert able
        assert f"Nexus runs with MPS now (process {os.getpid()})" in seen


def test_someone_else_runs_a_daemon(control: str, folder: Path, tmp_path: Path) -> None:
    pipe = tmp_path / "pipe"
    pipe.mkdir()
    environment = os.environ | {"CUDA_MPS_PIPE_DIRECTORY": str(pipe)}
    other = subprocess.Popen([control, "-f"], env=environment, stdout=subprocess.DEVNULL)
    try:
        assert wait_until((pipe / "control").exists, 10)
        able, seen = describe_daemon(control, folder)
        assert not able
        assert f"someone else's runs (process {other.pid}): Nexus neither uses nor ends it" in seen
    finally:
        other.kill()
        other.wait()


def test_what_is_not_installed_is_named() -> None:
    assert describe_parts(Programs(needs=("json", "no_such_router"))) == (
        False,
        "not installed: no_such_router (pip install nixl vllm-router)",
    )
    assert describe_parts(Programs(needs=("json",)))[0]


def test_the_doctor_tells_both() -> None:
    assert {"mps", "mps serving"} <= {finding.name for finding in examine()}
