"""What the scheduler's process counts is what the HTTP server's process shows."""

from pathlib import Path

import pytest
from prometheus_client import REGISTRY, generate_latest

from nexus.planner.table import Mode, Row
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
