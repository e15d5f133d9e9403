"""The main job on this machine: profile, plan, serve, ask, stop. All real."""

import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import closing, contextmanager
from pathlib import Path

import psutil
import pytest
from openai import OpenAI

from nexus.benchmarks.lane.churn import metrics
from nexus.planner.table import read_plan
from nexus.profiles.schema import read_profile

pytestmark = [pytest.mark.engine, pytest.mark.timeout(600)]

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
        timeout=300,
        check=False,
    )
    assert done.returncode == 0, done.stderr


@contextmanager
def serving(cwd: Path, *words: str) -> Iterator[tuple[OpenAI, psutil.Process]]:
    with closing(socket.socket()) as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    log = cwd / "serve.log"
    with log.open("w") as out:
        server = subprocess.Popen(
            [sys.executable, "-m", "nexus.cli", "serve", *words, "--port", str(port)],
            cwd=cwd,
            stdout=out,
            stderr=subprocess.STDOUT,
            env={**os.environ, "VLLM_LOGGING_LEVEL": "INFO"},
        )
    client = OpenAI(base_url=f"http://127.0.0.1:{port}/v1", api_key="none", max_retries=0)
    try:
        deadline = time.monotonic() + 240
        while not answers(client):
            assert server.poll() is None, log.read_text()[-3000:]
            assert time.monotonic() < deadline, log.read_text()[-3000:]
            time.sleep(0.5)
        yield client, psutil.Process(server.pid)
    finally:
        client.close()
        server.kill()
        server.wait()


def answers(client: OpenAI) -> bool:
    from openai import APIError

    try:
        return bool(client.models.list().data)
    except APIError:
        return False


def completions(client: OpenAI) -> list[str]:
    model = client.models.list().data[0].id
    answer = client.completions.create(
        model=model, prompt=PROMPTS, max_tokens=12, temperature=0, extra_body={"ignore_eos": True}
    )
    return [choice.text for choice in sorted(answer.choices, key=lambda choice: choice.index)]


def stop(server: psutil.Process, how: signal.Signals) -> float:
    """Seconds until the server and all of its children are gone."""
    family = [server, *server.children(recursive=True)]
    start = time.monotonic()
    server.send_signal(how)
    _, alive = psutil.wait_procs(family, timeout=30)
    assert alive == []
    return time.monotonic() - start


def test_profile_plan_serve(tiny_model: Path, tmp_path: Path) -> None:
    nexus("profile", str(tiny_model), "--minutes", "0.5", *ENGINE, cwd=tmp_path)
    nexus("plan", "--ttft-ms", "5000", "--tbt-ms", "1000", cwd=tmp_path)
    plan = read_plan(tmp_path / "plan.yaml")
    profile = read_profile(tmp_path / "profile.yaml")
    assert plan.profile_hash == profile.hash
    assert plan.model == profile.model
    with serving(tmp_path, "--table", "plan.yaml", *ENGINE) as (client, server):
        planned = completions(client)
        steps = metrics(client.base_url.port or 0)
        counted = {name: steps[f"nexus_mode_steps_total:{name}"] for name in plan.modes}
        assert sum(counted.values()) > 12
        refusal = pytest.raises(Exception, match="maximum context length")
        with refusal as caught:
            client.completions.create(model=str(tiny_model), prompt="w5 " * 2000, max_tokens=1)
        assert getattr(caught.value, "status_code", None) == 400
        assert stop(server, signal.SIGTERM) < 5
    with serving(tmp_path, str(tiny_model), *ENGINE) as (client, server):
        assert completions(client) == planned
        assert stop(server, signal.SIGINT) < 5
