"""``nexus serve`` with a plan that has lane modes: what it refuses, and what it shows."""

import json
import re
import urllib.request
from collections.abc import Iterator
from dataclasses import replace
from itertools import chain
from pathlib import Path
from typing import Any

import pytest
from openai import OpenAI

from nexus.core.errors import EngineError, MismatchError
from nexus.core.plan import Mode, read_plan, write_plan
from nexus.evidence.lane.churn import Churn, metrics, run
from nexus.evidence.lane.handover import summary
from nexus.evidence.lane.tracefile import read_trace
from nexus.runtime.machine import config_hash, this_machine
from nexus.runtime.server_process import Server
from nexus.runtime.vllm.front_end.server import serve

ROOT = Path(__file__).resolve().parents[4]
OVERLAP = Mode("overlap", 256, prefill_sms=1)
OPTIONS = (
    *("--enforce-eager", "--dtype", "float32", "--max-model-len", "1024"),
    *("--max-num-seqs", "16", "--kv-cache-memory-bytes", "64M", "--no-enable-prefix-caching"),
)

pytestmark = pytest.mark.engine


@pytest.mark.parametrize(
    ("options", "named"),
    [
        (("--worker-cls", "some.Worker"), "--worker-cls"),
        (
            ("--kv-transfer-config", '{"kv_connector": "ExampleConnector", "kv_role": "kv_both"}'),
            "--kv-transfer-config",
        ),
        (("--kv-offloading-size", "1"), "--kv-offloading-size"),
        (("--enable-lora",), "--enable-lora"),
        (("--pipeline-parallel-size", "2"), "--pipeline-parallel-size"),
        (
            (
                "--speculative-config",
                '{"method": "ngram", "num_speculative_tokens": 2, "prompt_lookup_max": 2}',
            ),
            "--speculative-config",
        ),
    ],
)
def test_what_the_lane_cannot_do_is_refused_in_one_line(
    tiny_model: Path, lane_plan: Any, options: tuple[str, ...], named: str
) -> None:
    words = [*OPTIONS, *options, "--port", "0"]
    with pytest.raises(EngineError) as caught:
        serve(str(tiny_model), words, lane_plan((OVERLAP,)), "deadline", 500.0, force=True)
    assert named in str(caught.value)
    assert "overlap-1" in str(caught.value)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("software", "dtype", "told"),
    [
        ({"vllm": "0.1.0"}, "float32", "measured with vllm 0.1.0"),
        ({}, "bfloat16", "made for float32, this engine computes in bfloat16"),
    ],
)
def test_a_plan_of_something_else_is_refused_before_an_engine_starts(
    tiny_model: Path, make_plan: Any, software: dict[str, str], dtype: str, told: str
) -> None:
    path = make_plan((64,))
    plan = read_plan(path)
    model = replace(plan.model, config_hash=config_hash(str(tiny_model)))
    provenance = replace(plan.provenance, software=software)
    write_plan(path, replace(plan, machine=this_machine(), model=model, provenance=provenance))
    words = [*OPTIONS, "--dtype", dtype, "--port", "0"]
    with pytest.raises(MismatchError, match=f"{told}.*--force") as caught:
        serve(str(tiny_model), words, path, "deadline", 500.0, force=False)
    assert "\n" not in str(caught.value)


@pytest.fixture
def server(tiny_model: Path, lane_plan: Any, tmp_path: Path) -> Iterator[Server]:
    table = lane_plan((OVERLAP,))
    trace = ("--trace", str(tmp_path / "trace.json"))
    several = ("--api-server-count", "2")
    words = [str(tiny_model), "--table", str(table), "--force", *several, *trace, *OPTIONS]
    with Server(words, tmp_path / "serve.log", start_s=240) as running:
        yield running
    events = json.loads((tmp_path / "trace.json").read_text())
    boxes = [event for event in events if event["ph"] == "X"]
    assert {event["tid"] for event in boxes} == {1, 2}  # steps and passes
    assert all(event["dur"] >= 0 for event in boxes)
    told = summary(read_trace(tmp_path / "trace.json"))
    assert told["prompt_tokens"] > 256
    assert told["hand_over"]["ms"]["p50"] > 0


def test_metrics_show_the_lane_at_work(server: Server) -> None:
    with OpenAI(base_url=f"http://127.0.0.1:{server.port}/v1", api_key="none") as client:
        model = client.models.list().data[0].id
        prompts = [f"w{7 + n} " * (40 + 50 * n) for n in range(8)]
        client.completions.create(model=model, prompt=prompts, max_tokens=8, temperature=0)
    found = metrics(server.port)
    assert found["nexus_mode_steps_total:overlap-1"] > 0
    assert found["nexus_lane_prompt_tokens_total"] > 256
    assert found["nexus_lane_failures_total"] == 0
    assert (found["nexus_lane_prompts"], found["nexus_lane_up"]) == (0, 1)
    assert found["nexus_realized_sms:decode"] > 0
    assert_dashboard_finds_its_series(server)
    churned = run(server.port, model, Churn(60, 30.0, 0.3, 40, 400, 6))
    assert churned["nothing_lost"], churned
    assert churned["given_up"] > 5


def assert_dashboard_finds_its_series(server: Server) -> None:
    """Each metric and label that a query of the dashboard names is on the page."""
    with urllib.request.urlopen(f"{server.url}/metrics", timeout=10) as answer:
        page = answer.read().decode()
    series: dict[str, str] = {}
    for name, labels in re.findall(r"(?m)^([a-z_:]+){([^}]*)}", page):
        series[name] = series.get(name, "") + labels
    dashboard = json.loads((ROOT / "deploy" / "grafana.json").read_text())
    for target in chain.from_iterable(panel["targets"] for panel in dashboard["panels"]):
        names = re.findall(r"(?:nexus_|vllm:)\w+", target["expr"])
        assert names, target
        labels = re.findall(r"{{(\w+)}}", target["legendFormat"])
        for name in names:
            assert name in series
            assert all(f'{label}="' in series[name] for label in [*labels, "model_name"]), name
