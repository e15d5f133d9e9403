"""The main job on this machine: profile, plan, serve, ask, stop. All real."""

import signal
import subprocess
import sys
from pathlib import Path

import pytest
from openai import OpenAI

from nexus.core.plan import read_plan
from nexus.evidence.lane.churn import metrics
from nexus.profiles.schema import read_profile
from nexus.runtime.server_process import Server

pytestmark = [pytest.mark.engine, pytest.mark.timeout(1200)]

START_S = 400.0

ENGINE = (
    "--enforce-eager",
    "--dtype",
    "float32",
    "--max-model-len",
    "1024",
    "--max-num-seqs",
    "16",
    "--kv-cache-memory-bytes",
    "64M",
)
PROMPTS = [f"w{7 + n} " * (3 + 17 * n) for n in range(8)]


def nexus(*words: str, cwd: Path) -> None:
    done = subprocess.run(
        [sys.executable, "-m", "nexus.cli", *words],
        cwd=cwd,
        capture_output=True,
        text=True,
        timeout=500,
        check=False,
    )
    assert done.returncode == 0, done.stderr


def client_of(server: Server) -> OpenAI:
    return OpenAI(base_url=f"{server.url}/v1", api_key="none", max_retries=0)


def completions(client: OpenAI) -> list[str]:
    model = client.models.list().data[0].id
    answer = client.completions.create(
        model=model, prompt=PROMPTS, max_tokens=12, temperature=0, extra_body={"ignore_eos": True}
    )
    return [choice.text for choice in sorted(answer.choices, key=lambda choice: choice.index)]


def end(server: Server, how: signal.Signals) -> None:
    """One signal ends the server, and whatever it has started with it."""
    stopped = server.stop(how)
    assert (stopped.exit_code, stopped.left_behind) == (0, ())


def test_profile_plan_serve(tiny_model: Path, tmp_path: Path) -> None:
    nexus("profile", str(tiny_model), "--minutes", "0.5", *ENGINE, cwd=tmp_path)
    nexus("plan", "--ttft-ms", "5000", "--tbt-ms", "1000", cwd=tmp_path)
    plan = read_plan(tmp_path / "plan.yaml")
    profile = read_profile(tmp_path / "profile.yaml")
    assert plan.profile_hash == profile.hash
    assert plan.model == profile.model
    table = ("--table", str(tmp_path / "plan.yaml"))
    with (
        Server((*table, *ENGINE), tmp_path / "planned.log", START_S) as server,
        client_of(server) as client,
    ):
        planned = completions(client)
        steps = metrics(server.port)
        counted = {name: steps[f"nexus_mode_steps_total:{name}"] for name in plan.modes}
        assert sum(counted.values()) > 12
        refusal = pytest.raises(Exception, match="maximum context length")
        with refusal as caught:
            client.completions.create(model=str(tiny_model), prompt="w5 " * 2000, max_tokens=1)
        assert getattr(caught.value, "status_code", None) == 400
        end(server, signal.SIGTERM)
    with (
        Server((str(tiny_model), *ENGINE), tmp_path / "stock.log", START_S) as server,
        client_of(server) as client,
    ):
        assert completions(client) == planned
        end(server, signal.SIGINT)
