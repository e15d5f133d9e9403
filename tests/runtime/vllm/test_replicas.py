"""Two servers with a plan behind vLLM's router, by the command that docs/operations.md names."""

import http.client
import re
import subprocess
import sys
import time
import urllib.request
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack, closing
from pathlib import Path
from typing import Any

import httpx
import pytest

from nexus.runtime.ports import free_ports
from nexus.runtime.server_process import Server

pytestmark = pytest.mark.engine

START_S = 400.0
OPTIONS = ("--enforce-eager", "--max-model-len", "512", "--kv-cache-memory-bytes", "64M")
ROUTER = (sys.executable, "-m", "vllm_router.launch_router")


@pytest.fixture
def replicas(tiny_model: Path, make_plan: Any, tmp_path: Path) -> Iterator[list[Server]]:
    words = [str(tiny_model), "--table", str(make_plan((64,))), "--force", *OPTIONS]
    servers = [Server(words, tmp_path / f"{number}.log", START_S) for number in range(2)]
    with ExitStack() as stack, ThreadPoolExecutor() as pool:
        for started in [pool.submit(stack.enter_context, each) for each in servers]:
            started.result()
        yield servers


@pytest.fixture
def router(replicas: list[Server]) -> Iterator[httpx.Client]:
    pytest.importorskip("vllm_router")
    port, metrics = map(str, free_ports(2))
    urls = ("--worker-urls", *(each.url for each in replicas))
    where = ("--host", "127.0.0.1", "--port", port, "--prometheus-port", metrics)
    with (
        subprocess.Popen([*ROUTER, *urls, "--policy", "round_robin", *where]) as process,
        httpx.Client(base_url=f"http://127.0.0.1:{port}", timeout=60) as client,
    ):
        try:
            end = time.monotonic() + 60
            while not is_up(port):
                assert process.poll() is None
                assert time.monotonic() < end
                time.sleep(0.25)
            yield client
        finally:
            process.terminate()


def is_up(port: str) -> bool:
    with closing(http.client.HTTPConnection("127.0.0.1", int(port), timeout=5)) as to:
        try:
            to.request("GET", "/health")
            return to.getresponse().status == 200
        except OSError:
            return False


def steps(server: Server) -> float:
    with urllib.request.urlopen(f"{server.url}/metrics", timeout=10) as page:
        found = re.findall(r"(?m)^nexus_mode_steps_total{.*} (.*)$", page.read().decode())
    return sum(map(float, found))


def test_requests_are_spread_over_the_replicas(
    router: httpx.Client, replicas: list[Server], tiny_model: Path
) -> None:
    before = [steps(each) for each in replicas]
    for _ in range(6):
        body = {"model": str(tiny_model), "prompt": "w5 w6 w7", "max_tokens": 4, "temperature": 0}
        answer = router.post("/v1/completions", json=body)
        assert answer.json()["usage"]["completion_tokens"] == 4
    assert all(now > then for now, then in zip(map(steps, replicas), before, strict=True))
