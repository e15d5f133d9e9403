"""The life of a server under MPS, with stand-ins for the daemon, the engines and the router."""

import os
import signal
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest

from nexus.runtime.mps.processes import MARKER, look, wait_until
from nexus.runtime.ports import free_ports

PARTS = ("prefill", "decode", "router")
DRIVER = """
import sys
from pathlib import Path
from nexus.core.errors import NexusError
from nexus.core.plan import Shares
from nexus.runtime.mps.part import Recipe
from nexus.runtime.mps.recipes import Recipes
from nexus.runtime.mps.serve import run

part, control, folder, *words = sys.argv[1:]
ports, behaviours = words[:3], words[3:]
recipes = []
for name, port, behaviour in zip(("prefill", "decode", "router"), ports, behaviours):
    others = ports[:2] if name == "router" else []
    recipes.append(Recipe(name, (part, name, port, behaviour, *others), int(port)))
try:
    run(Recipes(*recipes, Shares(64, 37, 1, 1), 1, "{}"), print, control, Path(folder))
except NexusError as error:
    print(f"nexus: {error}", file=sys.stderr)
    sys.exit(error.exit_code)
"""


@dataclass
class Started:
    """A server that runs: its process, and what its parts have told."""

    process: "subprocess.Popen[str]"
    folder: Path
    ports: list[int]
    events: Path

    def told(self) -> dict[str, list[str]]:
        lines = self.events.read_text().splitlines() if self.events.exists() else []
        return {words[0]: words[1:] for words in (line.split(maxsplit=5) for line in lines)}

    def wait_for(self, *names: str) -> None:
        assert wait_until(lambda: set(names) <= set(self.told()), 60)

    def wait_until_serving(self) -> None:
        assert self.process.stdout is not None
        for line in self.process.stdout:
            if line.startswith("serving"):
                return
        raise AssertionError(self.process.communicate())

    def pids(self) -> list[int]:
        told = self.told()
        return [int(pid) for name in told for pid in told[name][:2] if pid.isdigit()]

    def memory(self) -> list[Path]:
        return [Path(told[2]) for told in self.told().values() if len(told) > 2]

    def end(self) -> tuple[int, str]:
        _, said = self.process.communicate(timeout=60)
        return self.process.returncode, said


class Starter:
    """Starts servers, and ends what a failed test leaves."""

    def __init__(self, part: str, control: str, folder: Path, tmp_path: Path) -> None:
        self._part, self._control, self._folder, self._tmp = part, control, folder, tmp_path
        self.all: list[Started] = []

    def __call__(self, **behaviour: str) -> Started:
        ports = free_ports(3)
        events = self._tmp / f"events-{len(self.all)}"
        words = [*map(str, ports), *(behaviour.get(name, "serves") for name in PARTS)]
        process = subprocess.Popen(
            [sys.executable, "-c", DRIVER, self._part, self._control, str(self._folder), *words],
            env=os.environ | {"EVENTS": str(events), "PYTHONUNBUFFERED": "1"},
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )
        self.all.append(Started(process, self._folder, ports, events))
        return self.all[-1]


@pytest.fixture
def start(part: str, control: str, folder: Path, tmp_path: Path) -> Iterator[Starter]:
    starter = Starter(part, control, folder, tmp_path)
    yield starter
    for started in starter.all:
        started.process.kill()
        started.process.communicate()
        for pid in started.pids():
            if look(pid):
                os.kill(pid, signal.SIGKILL)
        for memory in started.memory():
            memory.unlink(missing_ok=True)


def _nothing_runs(started: Started) -> bool:
    return not any(look(pid) for pid in started.pids())


@pytest.mark.parametrize("signum", [signal.SIGTERM, signal.SIGINT, signal.SIGHUP])
def test_one_command_up_and_one_signal_down(start: Starter, signum: signal.Signals) -> None:
    started = start()
    started.wait_until_serving()
    told = started.told()
    assert next(iter(told)) == "daemon"
    assert list(told)[-1] == "router"
    assert [told[name][3] for name in PARTS] == ["64", "37", "-"]
    assert told["router"][4] == "[200, 200]"  # the engines were healthy before it was started
    assert all(path.exists() for path in started.memory())
    started.process.send_signal(signum)
    assert started.end() == (0, "")
    assert _nothing_runs(started)
    assert not started.folder.exists()
    assert not any(path.exists() for path in started.memory())


@pytest.mark.parametrize("victim", ["daemon", *PARTS])
def test_the_end_of_any_part_is_the_end_of_all(start: Starter, victim: str) -> None:
    started = start()
    started.wait_until_serving()
    os.kill(int(started.told()[victim][0]), signal.SIGKILL)
    code, said = started.end()
    assert code == 1
    assert len(said.splitlines()) == 1
    assert victim in said
    assert "exit code -9" in said
    assert _nothing_runs(started)
    assert not any(path.exists() for path in started.memory())
    assert {path.name for path in started.folder.iterdir()} == {"log"}
    logs = {path.name for path in (started.folder / "log").iterdir()}
    assert logs == {"daemon.log", "prefill.log", "decode.log", "router.log"}


@pytest.mark.parametrize("part_name", PARTS)
def test_a_part_that_does_not_come_up(start: Starter, part_name: str) -> None:
    started = start(**{part_name: "dies"})
    code, said = started.end()
    assert code == 1
    log = started.folder / "log" / f"{part_name}.log"
    assert said == (
        f"nexus: the {part_name} ended (exit code 3): ValueError: there is no room;"
        f" its log is {log}\n"
    )
    assert log.exists()
    assert _nothing_runs(started)


def test_a_first_request_that_is_not_answered(start: Starter) -> None:
    started = start(router="refuses")
    code, said = started.end()
    assert code == 1
    log = started.folder / "log"
    assert said == f"nexus: the first request failed (500): not today; logs in {log}\n"
    assert _nothing_runs(started)


def test_a_signal_ends_a_server_that_is_still_starting(start: Starter) -> None:
    started = start(decode="hangs")
    started.wait_for("daemon", "prefill", "decode")
    started.process.terminate()
    assert started.end() == (0, "")
    assert "router" not in started.told()
    assert _nothing_runs(started)
    assert not started.folder.exists()


def test_a_part_that_will_not_go_is_killed(start: Starter) -> None:
    started = start(prefill="stubborn")
    started.wait_until_serving()
    started.process.terminate()
    assert started.end() == (0, "")
    assert _nothing_runs(started)
    assert not any(path.exists() for path in started.memory())


@pytest.mark.parametrize("victim", ["", "daemon", *PARTS, "all"])
def test_the_next_start_cleans_up_what_a_kill_left(
    start: Starter, victim: str, part: str, folder: Path, tmp_path: Path
) -> None:
    first = start()
    first.wait_until_serving()
    # One that looks alike: the same program, in a run that has nothing to do with this one.
    alike_environment = {"EVENTS": str(tmp_path / "alike"), MARKER: "/elsewhere:1"}
    alike = subprocess.Popen(
        [part, "prefill", str(free_ports(1)[0]), "serves"], env=os.environ | alike_environment
    )
    assert wait_until((tmp_path / "alike").exists, 30)
    *_, alike_worker, alike_memory = (tmp_path / "alike").read_text().split()[:4]
    first.process.kill()
    first.process.wait()
    told = first.told()
    for name in told if victim == "all" else {victim} & set(told):
        os.kill(int(told[name][0]), signal.SIGKILL)
    assert not _nothing_runs(first)  # their children at least
    try:
        second = start()
        second.wait_until_serving()
        assert _nothing_runs(first)
        assert not any(path.exists() for path in first.memory())
        assert alike.poll() is None
        assert look(int(alike_worker)) is not None
        assert Path(alike_memory).exists()
        second.process.terminate()
        assert second.end() == (0, "")
        assert not folder.exists()
    finally:
        alike.terminate()
        alike.wait()
        Path(alike_memory).unlink()


def test_a_second_server_is_refused_while_one_runs(start: Starter) -> None:
    first = start()
    first.wait_until_serving()
    second = start()
    code, said = second.end()
    assert code == 2
    assert f"already runs with MPS here (process {first.process.pid}," in said
    first.process.terminate()
    assert first.end() == (0, "")
