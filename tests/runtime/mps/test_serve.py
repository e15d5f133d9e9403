"""The real command with the real router and two real vLLM engines; only the MPS daemon stands in."""

import json
import os
import signal
import subprocess
import sys
import urllib.request
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from nexus.core.io.documents import Provenance
from nexus.core.machine import Engine, Model
from nexus.core.plan import (
    Axes,
    Mode,
    Plan,
    Prediction,
    Row,
    Shares,
    Workload,
    percent_for,
    write_plan,
)
from nexus.core.slo import Bounds
from nexus.runtime.machine import config_hash, this_machine
from nexus.runtime.mps.folder import clean_up
from nexus.runtime.mps.processes import Process, runs
from nexus.runtime.ports import free_ports

START_S = 280


@dataclass
class Command:
    """One `nexus serve --partitioner mps`, its words on stderr as they come."""

    process: "subprocess.Popen[str]"
    port: int

    def wait_until_serving(self) -> list[str]:
        """The addresses of the metrics: prefill engine, decode engine, router."""
        assert self.process.stderr is not None
        told = []
        for line in self.process.stderr:
            told.append(line)
            if line.startswith("serving on port"):
                return [word.rstrip(",\n") for word in line.split() if word.startswith("http")]
        raise AssertionError("".join(told))

    def end(self) -> tuple[int, list[str]]:
        _, said = self.process.communicate(timeout=60)
        return self.process.returncode, said.splitlines()


@pytest.fixture
def environment(control: str, folder: Path) -> dict[str, str]:
    """With the stand-in where the driver's program would be; two engines on few cores."""
    bin_folder = Path(control).parent / "bin"
    bin_folder.mkdir()
    (bin_folder / "nvidia-cuda-mps-control").symlink_to(control)
    return {
        **os.environ,
        "PATH": f"{bin_folder}:{os.environ['PATH']}",
        "NEXUS_MPS_DIR": str(folder),
        "OMP_NUM_THREADS": "1",
        "PYTHONUNBUFFERED": "1",
    }


@pytest.fixture
def table(tiny_model: Path, tmp_path: Path) -> Path:
    """A plan of one share for the tiny model on this machine."""
    machine = this_machine()
    half = max(1, machine.sms // 2)
    mode = Mode("split", 64, half, half)
    model = Model(
        str(tiny_model),
        config_hash(str(tiny_model)),
        "float32",
        2,
        64,
        2,
        1,
        32,
        max_model_len=1024,
    )
    percent = percent_for(half, machine.sms)
    plan = Plan(
        provenance=Provenance("now", "nexus plan --partitioner mps", {}),
        profile_hash="0",
        machine=machine,
        model=model,
        engine=Engine(512, 16, 16, 16_384, enforce_eager=True),
        bounds=Bounds(1000.0, 100.0),
        workload=Workload("stated", 100.0, 10.0),
        policy="fixed",
        prediction=Prediction(1.0, "stock", 1.0, 1.0, 1.0, "tbt"),
        axes=Axes((0,), (1,), (0,)),
        modes={mode.name: mode},
        rows=(Row(0, 1, 0, mode.name),),
        partitioner="mps",
        shares=Shares(percent, percent, 4096, 8192),
    )
    write_plan(tmp_path / "plan.yaml", plan)
    return tmp_path / "plan.yaml"


@pytest.fixture
def commands(environment: dict[str, str], folder: Path) -> Iterator[list[Command]]:
    """The commands started by ``_start``; killed at the end, and their parts with them."""
    assert environment["NEXUS_MPS_DIR"] == str(folder)
    started: list[Command] = []
    yield started
    for command in started:
        command.process.kill()
        command.process.communicate()
    clean_up(folder)


def _start(
    commands: list[Command], model: Path, table: Path, environment: dict[str, str], port: int
) -> Command:
    words = [str(model), "--table", str(table), "--partitioner", "mps", "--port", str(port)]
    process = subprocess.Popen(
        [sys.executable, "-m", "nexus.cli", "serve", *words, "--no-enable-prefix-caching"],
        env=environment,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.PIPE,
        text=True,
    )
    commands.append(Command(process, port))
    return commands[-1]


def _complete(model: Path, port: int, prompt: list[int]) -> Any:
    body = {"model": str(model), "prompt": prompt, "max_tokens": 6, "temperature": 0}
    request = urllib.request.Request(
        f"http://127.0.0.1:{port}/v1/completions",
        json.dumps(body | {"ignore_eos": True}).encode(),
        {"Content-Type": "application/json"},
    )
    with urllib.request.urlopen(request, timeout=120) as answer:
        return json.load(answer)


def _metric(address: str, name: str) -> float:
    with urllib.request.urlopen(address, timeout=30) as page:
        lines = page.read().decode().splitlines()
    return sum(float(line.split()[-1]) for line in lines if line.startswith(name))


def _noted(folder: Path) -> tuple[list[Process], list[Path]]:
    """The processes and the shared memory that the run has put down."""
    state = json.loads((folder / "state.json").read_text())
    processes = [Process(pid, started) for pid, started in state["processes"]]
    return processes, [Path(name) for name, _ in state["shared_memory"]]


@pytest.mark.engine
@pytest.mark.timeout(3 * START_S)
def test_the_kv_goes_over_and_a_kill_leaves_nothing_for_long(
    commands: list[Command],
    tiny_model: Path,
    table: Path,
    environment: dict[str, str],
    folder: Path,
) -> None:
    pytest.importorskip("nixl")
    pytest.importorskip("vllm_router")
    (port,) = free_ports(1)
    first = _start(commands, tiny_model, table, environment, port)
    prefill, decode, _ = first.wait_until_serving()
    decode_port = int(decode.split(":")[2].split("/")[0])
    for length in (5, 40, 200):  # less than a block, some blocks, several chunks
        prompt = [3 + (7 * place + length) % 500 for place in range(length)]
        answer = _complete(tiny_model, first.port, prompt)
        alone = _complete(tiny_model, decode_port, prompt)  # that engine computes it all
        assert answer["choices"][0]["text"] == alone["choices"][0]["text"]
        assert answer["usage"]["completion_tokens"] == 6
    assert _metric(decode, "vllm:nixl_bytes_transferred_sum") > 0
    assert _metric(prefill, "vllm:prompt_tokens_total") >= 245
    assert _metric(prefill, "vllm:generation_tokens_total") == 4  # the start's own request too

    left, memory = _noted(folder)
    assert len(left) > 5
    first.process.kill()
    first.process.wait()
    assert any(map(runs, left))
    second = _start(commands, tiny_model, table, environment, port)  # which the first's router has
    second.wait_until_serving()
    assert not any(map(runs, left))
    assert not [path for path in memory if path.exists()]
    left, memory = _noted(folder)
    second.process.send_signal(signal.SIGTERM)
    assert second.end() == (0, [])
    assert not any(map(runs, left))
    assert not folder.exists()
    assert not [path for path in memory if path.exists()]


def test_a_plan_and_its_partitioner_go_together(
    tiny_model: Path, table: Path, environment: dict[str, str]
) -> None:
    def refused(*words: str) -> str:
        done = subprocess.run(
            [sys.executable, "-m", "nexus.cli", "serve", str(tiny_model), *words],
            env=environment,
            capture_output=True,
            text=True,
        )
        assert done.returncode == 2
        assert len(done.stderr.splitlines()) == 1
        return done.stderr

    assert "is a plan for MPS: add --partitioner mps" in refused("--table", str(table))
    assert "--partitioner mps needs --table" in refused("--partitioner", "mps")
    mps = ("--table", str(table), "--partitioner", "mps")
    assert "--trace cannot be combined" in refused(*mps, "--trace", "t.json")
    assert "--prefill-order cannot be combined" in refused(*mps, "--prefill-order", "spf")
    assert "--kv-transfer-config cannot be" in refused(*mps, "--kv-transfer-config", "{}")
