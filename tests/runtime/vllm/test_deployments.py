"""One plan behind each way to start vLLM: it outlives its clients, and ends with its engine.

Each server is started once, by one of the commands, with one of the orders, and all that users do
to servers is done to it in turn.
"""

import re
import sys
import time
import urllib.request
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import psutil
import pytest
from openai import BadRequestError, OpenAI

from nexus.evidence.lane.churn import Churn, run
from nexus.runtime.server_process import NEXUS_SERVE, Server, ServerError

pytestmark = pytest.mark.engine

CHUNK = 512
START_S = 400.0
END_S = 60.0
OPTIONS = ("--enforce-eager", "--max-model-len", "1024", "--kv-cache-memory-bytes", "64M")
# The `vllm` command of the CPU build looks for a distribution of another name, and ends.
VLLM = """
from vllm.entrypoints.cli.serve import cmd_init
from vllm.utils.argparse_utils import FlexibleArgumentParser
parser = FlexibleArgumentParser()
(command,) = cmd_init()
command.subparser_init(parser.add_subparsers())
arguments = parser.parse_args()
command.validate(arguments)
command.cmd(arguments)
"""


NGRAM = '{"method": "ngram", "num_speculative_tokens": 3, "prompt_lookup_max": 3}'


@dataclass(frozen=True)
class Deployment:
    """A command and its words, the order of its prompts, and why it ends in the end."""

    program: tuple[str, ...]
    words: tuple[str, ...]
    order: str
    told: str


API_SERVER = (sys.executable, "-m", "vllm.entrypoints.openai.api_server", "--model")
VLLM_SERVE = (sys.executable, "-c", VLLM, "serve")
DEPLOYMENTS = {
    "vLLM's API server": Deployment(API_SERVER, (), "fcfs", "the engine died: EngineCore ended"),
    "vllm serve with two API servers": Deployment(
        VLLM_SERVE, ("--api-server-count", "2"), "spf", "EngineCore died unexpectedly"
    ),
    "nexus serve": Deployment(
        NEXUS_SERVE,
        ("--force", "--speculative-config", NGRAM),
        "deadline",
        "the engine died: EngineCore ended",
    ),
}


@pytest.fixture(params=DEPLOYMENTS)
def deployment(request: pytest.FixtureRequest) -> Deployment:
    return DEPLOYMENTS[request.param]


@pytest.fixture
def server(
    deployment: Deployment, tiny_model: Path, make_plan: Any, tmp_path: Path, plugin_path: str
) -> Iterator[Server]:
    words = [str(tiny_model), *deployment.words, *OPTIONS]
    environment = {"PYTHONPATH": plugin_path, "VLLM_WORKER_SHUTDOWN_TIMEOUT_SECONDS": "5"}
    table = str(make_plan((CHUNK,)))
    if deployment.program == NEXUS_SERVE:
        words += ["--table", table, "--prefill-order", deployment.order]
    else:
        environment |= {"NEXUS_TABLE": table, "NEXUS_PREFILL_ORDER": deployment.order}
        environment["NEXUS_FORCE"] = "1"
    log = tmp_path / "serve.log"
    with Server(words, log, START_S, deployment.program, environment) as running:
        yield running


@pytest.fixture(scope="module")
def answers() -> set[str]:
    """What all servers answer: the same."""
    return set()


def test_a_server_outlives_its_clients_and_ends_with_its_engine(
    deployment: Deployment, server: Server, tiny_model: Path, answers: set[str]
) -> None:
    model = str(tiny_model)
    with OpenAI(base_url=f"{server.url}/v1", api_key="none", max_retries=0) as client:
        before = answer(client, model)
        one_token_in_and_out(client, model)
        too_long_a_prompt(client, model)
        many_long_prompts(client, model)
        vanishing_clients(server, model)
        answers |= {before, answer(client, model)}
        assert len(answers) == 1
    if NGRAM in deployment.words:
        assert drafts(server) > 0
    engine_killed(server, deployment)


def answer(client: OpenAI, model: str) -> str:
    prompt = [7 + place for place in range(300)]
    made = client.completions.create(model=model, prompt=prompt, max_tokens=60, temperature=0)
    return made.choices[0].text


def one_token_in_and_out(client: OpenAI, model: str) -> None:
    prompts = [[3 + number] for number in range(40)]
    made = client.completions.create(model=model, prompt=prompts, max_tokens=1)
    assert made.usage is not None
    assert (made.usage.prompt_tokens, made.usage.completion_tokens) == (40, 40)


def too_long_a_prompt(client: OpenAI, model: str) -> None:
    with pytest.raises(BadRequestError, match="maximum context length is 1024"):
        client.completions.create(model=model, prompt=[5] * 1025, max_tokens=1)


def many_long_prompts(client: OpenAI, model: str) -> None:
    prompts = [[3 + (number + place) % 500 for place in range(900)] for number in range(200)]
    made = client.completions.create(model=model, prompt=prompts, max_tokens=2)
    assert len(made.choices) == 200
    assert made.usage is not None
    assert made.usage.prompt_tokens == 200 * 900


def vanishing_clients(server: Server, model: str) -> None:
    churned = run(server.port, model, Churn(300, 60.0, 1 / 3, 32, 256, 8))
    assert churned["nothing_lost"], churned
    assert churned["given_up"] > 50
    found = churned["metrics"]
    assert found[f"nexus_mode_steps_total:fused-{CHUNK}"] > 300
    assert 0 < found["nexus_batch_scale_ratio"] <= 1


def drafts(server: Server) -> float:
    with urllib.request.urlopen(f"{server.url}/metrics", timeout=10) as page:
        (count,) = re.findall(
            r"(?m)^vllm:spec_decode_num_drafts_total{.*} (.*)$", page.read().decode()
        )
    return float(count)


def engine_killed(server: Server, deployment: Deployment) -> None:
    family = psutil.Process(server.pid).children(recursive=True)
    (engine,) = [each for each in family if "EngineCore" in " ".join(each.cmdline())]
    engine.kill()
    with pytest.raises(ServerError, match=rf"\(exit code 1\): .*{deployment.told}"):
        watch(server)
    assert server.stop().left_behind == ()


def watch(server: Server) -> None:
    end = time.monotonic() + END_S
    while time.monotonic() < end:
        server.check()
        time.sleep(0.5)
