"""What the scheduler's process counts is what the HTTP server's process shows."""

import json
import re
import tempfile
import urllib.request
from pathlib import Path
from typing import Any

import pytest
from openai import OpenAI
from prometheus_client import REGISTRY, generate_latest

from nexus.core.plan import Mode, Row
from nexus.runtime.server_process import Server
from nexus.runtime.vllm.metrics import SchedulerMetrics, on_metrics_page
from nexus.runtime.vllm.watch import Scheduled, StepWatch

LABELS = {"model_name": "m", "engine": "0"}


def watched(count: int) -> StepWatch:
    watch = StepWatch()
    step = Scheduled(Mode("fused", 512), Row(8, 1000, 512, "fused-512", tbt_ms=10.0), 8, 512)
    for number in range(count):
        watch.scheduled(step)
        watch.ended(number * 0.012)
    return watch


def page() -> list[str]:
    lines = generate_latest(REGISTRY).decode().splitlines()
    return [line for line in lines if line.startswith("nexus_")]


def test_counts_add_up_and_levels_are_the_last(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("PROMETHEUS_MULTIPROC_DIR", raising=False)
    with on_metrics_page(tmp_path):
        assert page() == []
        metrics = SchedulerMetrics(tmp_path, LABELS, ["fused-512", "overlap-100"])
        for count in (3, 2):
            metrics.steps(watched(count).take())
        metrics.level("nexus_realized_sms", 132, phase="decode")
        metrics.level("nexus_realized_sms", 48, phase="decode")
        metrics.count("nexus_lane_failures", 2)
        shown = page()
        for mode, ended in (("fused-512", 5.0), ("overlap-100", 0.0)):
            series = f'engine="0",mode="{mode}",model_name="m"'
            assert f"nexus_mode_steps_total{{{series}}} {ended}" in shown
        assert 'nexus_realized_sms{engine="0",model_name="m",phase="decode"} 48.0' in shown
        assert 'nexus_lane_failures_total{engine="0",model_name="m"} 2.0' in shown
        assert 'nexus_steps_compared_total{engine="0",model_name="m"} 3.0' in shown
        (measured,) = [line for line in shown if "step_measured_seconds_total" in line]
        assert float(measured.split()[-1]) == pytest.approx(0.036)
        assert not [line for line in shown if "pid=" in line]
        metrics.close()
    assert page() == []


def test_where_vllm_collects_the_files_itself_they_go_there(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "all").mkdir()
    monkeypatch.setenv("PROMETHEUS_MULTIPROC_DIR", str(tmp_path / "all"))
    with on_metrics_page(tmp_path / "own"):
        SchedulerMetrics(tmp_path / "own", LABELS, ["fused-512"]).close()
        assert len(list((tmp_path / "all").glob("*.db"))) == 2
        assert page() == []


CONFIG = """
api-server-count: 1
data-parallel-size: 2
port: 1
dtype: float32
enforce-eager: true
enable-prefix-caching: false
kv-cache-memory-bytes: 64M
max-model-len: 512
max-num-seqs: 8
"""


@pytest.mark.engine
def test_engines_of_a_server_have_numbers_of_their_own(
    tiny_model: Path, make_plan: Any, tmp_path: Path
) -> None:
    """Configured by a file, after another server that was killed."""
    left_over = Path(tempfile.mkdtemp(prefix="nexus-metrics-"))
    config, trace = tmp_path / "options.yaml", tmp_path / "trace.json"
    config.write_text(CONFIG)
    plan = ("--table", str(make_plan((64,))), "--force", "--trace", str(trace))
    words = [str(tiny_model), *plan, "--config", str(config)]
    with Server(words, tmp_path / "serve.log", start_s=400) as server:
        assert not left_over.exists()
        with OpenAI(base_url=f"{server.url}/v1", api_key="none") as client:
            prompts = [f"w{7 + n} " * 40 for n in range(8)]
            client.completions.create(model=str(tiny_model), prompt=prompts, max_tokens=8)
        with urllib.request.urlopen(f"{server.url}/metrics", timeout=10) as answer:
            lines = answer.read().decode().splitlines()
    for name in (
        "vllm:generation_tokens_total",
        "nexus_mode_steps_total",
        "nexus_batch_scale_ratio",
    ):
        series = [line for line in lines if line.startswith(f"{name}{{")]
        engines = {re.findall('engine="(.)"', line)[0] for line in series}
        assert engines == {"0", "1"}, series
        assert all(float(line.split()[-1]) > 0 for line in series)
    boxes = [event for event in json.loads(trace.read_text()) if event["ph"] == "X"]
    assert {event["pid"] for event in boxes} == {1, 2}
