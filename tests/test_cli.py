"""The command line: help that reads well, and one line for whatever a user gets wrong."""

import json
import os
import socket
import subprocess
import sys
from contextlib import closing
from pathlib import Path

import pytest

COMMANDS = ("doctor", "profile", "plan", "serve", "simulate", "report", "bench")


def nexus(*words: str, cwd: Path | None = None) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-m", "nexus.cli", *words],
        capture_output=True,
        text=True,
        cwd=cwd,
        timeout=500,
        env={**os.environ, "HF_HUB_OFFLINE": "1", "COLUMNS": "100"},
        check=False,
    )


def refused(result: subprocess.CompletedProcess[str], told: str, code: int = 2) -> None:
    assert result.returncode == code, result.stderr
    assert "Traceback" not in result.stderr
    (line,) = [line for line in result.stderr.splitlines() if line.startswith("nexus: ")]
    assert result.stderr.splitlines()[-1] == line
    assert told in line


def test_help_names_every_command() -> None:
    result = nexus("--help")
    assert result.returncode == 0
    assert all(f"\n  {command} " in result.stdout for command in COMMANDS)


def test_typed_bare_it_shows_its_help() -> None:
    bare = nexus()
    assert (bare.returncode, bare.stdout) == (0, nexus("--help").stdout)
    assert nexus("--version").stdout.count(".") == 2


@pytest.mark.parametrize("command", COMMANDS)
def test_each_help_has_an_example(command: str) -> None:
    result = nexus(command, "--help")
    assert result.returncode == 0
    assert f"Example: nexus {command}" in result.stdout


def test_doctor_says_what_is_here() -> None:
    result = nexus("doctor", "--json")
    report = json.loads(result.stdout)
    assert result.returncode == 0
    assert report["can_serve"] is True
    assert set(report["findings"]) >= {"device", "vllm", "torch", "green contexts", "mps", "cupti"}
    assert "nexus serve can run here" in nexus("doctor").stdout


def test_nonsense_is_refused_in_one_line(tmp_path: Path) -> None:
    refused(nexus("conjure"), "conjure")
    refused(nexus("plan", "--colour", "red"), "--colour")
    refused(nexus("plan", "--ttft-ms", "-1", cwd=tmp_path), "ttft-ms")
    refused(nexus("plan", "nowhere.yaml", cwd=tmp_path), "No such file")
    refused(nexus("plan", cwd=tmp_path), "no profile given")
    refused(nexus("serve", "--table", "nowhere.yaml", cwd=tmp_path), "No such file")
    refused(nexus("serve", "--prefill-order", "random"), "prefill-order")
    (tmp_path / "profile.yaml").write_text("schema: [")
    refused(nexus("plan", cwd=tmp_path), "not YAML")
    assert [path.name for path in tmp_path.iterdir()] == ["profile.yaml"]


def test_a_plan_is_made_simulated_and_drawn_without_a_gpu(tmp_path: Path) -> None:
    profile = str(Path(__file__).parents[1] / "profiles" / "h200" / "qwen2.5-3b.yaml")
    lengths = ("--input-tokens", "1000", "--output-tokens", "100")
    two = ("--rate", "8", "--replicas", "2")
    bounds = ("--ttft-ms", "1000", "--tbt-ms", "25")
    made = nexus("plan", profile, *bounds, *lengths, *two, cwd=tmp_path)
    assert made.returncode == 0, made.stderr
    assert "for one of 2 servers" in made.stdout
    assert "At 4 requests/s" in made.stdout
    assert "requests/s" in made.stdout
    assert "wrote plan.yaml" in made.stdout
    share = ("--late-share", "0.2")
    run = nexus("simulate", "--num-requests", "200", "--stock", "2048", *share, cwd=tmp_path)
    assert run.returncode == 0, run.stderr
    assert "assuming profile" in run.stderr
    assert "plan at " in run.stdout
    assert "vllm-2048 at " in run.stdout
    drawn = nexus("report", cwd=tmp_path)
    assert drawn.returncode == 0, drawn.stderr
    assert (tmp_path / "report.html").read_text().lstrip().startswith("<!")
    errors = nexus("plan", profile, "--check", cwd=tmp_path)
    assert "held out" in errors.stdout
    refused(nexus("plan", profile, "--tbt-ms", "0.5", cwd=tmp_path), "TBT", code=3)
    refused(nexus("plan", profile, "--input-tokens", "5", cwd=tmp_path), "go together")
    refused(nexus("plan", profile, "--trace", "none.csv", cwd=tmp_path), "No such file")
    refused(nexus("simulate", "none.yaml", cwd=tmp_path), "No such file")
    refused(nexus("report", "-o", "plan.yaml", cwd=tmp_path), "would overwrite plan.yaml")


def test_a_share_for_mps_is_planned_and_simulated(tmp_path: Path) -> None:
    profile = str(Path(__file__).parents[1] / "profiles" / "h200" / "qwen2.5-3b.yaml")
    words = ("plan", profile, "--partitioner", "mps", "--ttft-ms", "1000", "--tbt-ms", "25")
    lengths = ("--input-tokens", "1000", "--output-tokens", "100")
    made = nexus(*words, *lengths, cwd=tmp_path)
    assert made.returncode == 0, made.stderr
    assert "against the" in made.stdout
    assert "with the dynamic plan" in made.stdout
    assert "partitioner: mps" in (tmp_path / "plan.yaml").read_text()
    run = nexus("simulate", "--num-requests", "200", cwd=tmp_path)
    assert run.returncode == 0, run.stderr
    assert "plan at " in run.stdout
    refused(nexus(*words, "--policy", "fixed", cwd=tmp_path), "no --policy")


def test_no_such_model_is_refused_in_one_line(tmp_path: Path) -> None:
    refused(nexus("profile", "./nowhere", cwd=tmp_path), "no such model: ./nowhere")
    refused(nexus("serve", "./nowhere", cwd=tmp_path), "no such model: ./nowhere")
    (tmp_path / "empty").mkdir()
    refused(nexus("serve", "./empty", cwd=tmp_path), "no such model: ./empty")


@pytest.mark.engine
def test_vllm_s_own_refusals_are_one_line(tiny_model: Path, tmp_path: Path) -> None:
    model = str(tiny_model)
    refused(nexus("profile", model, "--colour", "red", cwd=tmp_path), "--colour")
    refused(nexus("serve", model, "--max-model-len", "1000000"), "max_model_len")
    with closing(socket.socket()) as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        port = str(taken.getsockname()[1])
        refused(nexus("serve", model, "--port", port), f"port {port}: Address already in use")
