"""Real processes: how they end, what their logs tell, and what they leave."""

import signal
import sys
from collections.abc import Callable
from pathlib import Path

import psutil
import pytest

from nexus.runtime.mps.processes import wait_until
from nexus.runtime.process import HttpProcess, LoggedProcess

Run = Callable[..., LoggedProcess]
# Has a child in a session of its own, that outlives it.
PARENT = """
import subprocess, sys, time
subprocess.Popen(["sleep", "600"], start_new_session=True)
print("ready", flush=True)
time.sleep(600)
"""


@pytest.fixture
def run(tmp_path: Path) -> Run:
    def start(code: str, **rest: object) -> LoggedProcess:
        command = [sys.executable, "-S", "-c", code]
        return LoggedProcess(command, tmp_path / "log", **rest)  # type: ignore[arg-type]

    return start


def test_tells_how_it_ended_and_keeps_its_pid(run: Run) -> None:
    process = run("import sys; print('ValueError: no'); print('bye'); sys.exit(3)")
    assert wait_until(lambda: process.exit_code() is not None, 60)
    assert process.exit_code() == 3
    assert psutil.Process(process.pid).status() == psutil.STATUS_ZOMBIE
    assert process.complaint() == "ValueError: no"
    assert process.wait() == process.exit_code() == 3


def test_a_log_may_say_nothing_or_the_user_s_error(run: Run) -> None:
    process = run("import os; print(os.environ['WORD'])", environment={"WORD": "hm"})
    process.wait()
    assert process.complaint() == "it did not say why"
    assert process.log.read_text() == "hm\n"
    more = run("print('nexus: no such model')", append=True)
    more.wait()
    assert more.complaint() == "no such model"
    assert more.log.read_text().startswith("hm\n")


def test_nothing_that_it_started_is_left(run: Run) -> None:
    process = run(PARENT)
    assert wait_until(lambda: "ready" in process.log.read_text(), 60)
    (child,) = psutil.Process(process.pid).children()
    assert process.exit_code() is None
    stopped = process.stop(signal.SIGTERM, grace_s=60)
    assert stopped.exit_code == process.exit_code() == -signal.SIGTERM
    assert stopped.left_behind == (child.pid,)
    assert wait_until(lambda: not child.is_running() or child.status() == "zombie", 60)


def test_one_that_does_not_end_by_itself_is_killed(run: Run) -> None:
    process = run("import time; time.sleep(600)")
    assert process.stop(None, grace_s=0.1).exit_code == -signal.SIGKILL


def test_one_that_cannot_be_started_says_so(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError):
        LoggedProcess([str(tmp_path / "no-such-program")], tmp_path / "log")


def test_one_without_a_server_is_not_healthy(tmp_path: Path) -> None:
    command = [sys.executable, "-S", "-c", "import time; time.sleep(600)"]
    process = HttpProcess(command, tmp_path / "log", port=9)
    try:
        assert not process.healthy(within_s=5)
        status, why = process.ask("POST", "/v1/completions", "{}", 5)
        assert status == 0
        assert "refused" in why
    finally:
        process.stop(signal.SIGTERM, grace_s=60)
