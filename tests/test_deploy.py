"""The examples in ``deploy/`` are what the programs that read them take."""

import json
import re
import shutil
import subprocess
from pathlib import Path
from typing import Any

import pytest
import yaml

from nexus.runtime.vllm.front_end.plugin import Settings
from nexus.runtime.vllm.metrics import COUNTERS, GAUGES

ROOT = Path(__file__).resolve().parents[1]
DEPLOY = ROOT / "deploy"
VARIABLES = {f"NEXUS_{name.upper()}" for name in Settings.model_fields}
METRICS = {f"{name}_total" for name in COUNTERS} | GAUGES.keys()
# What of Compose's format the example uses; the rest of it is refused here.
SERVICE = {
    *("image", "build", "command", "volumes", "ipc", "restart", "stop_grace_period"),
    *("healthcheck", "environment", "deploy", "ports", "depends_on"),
}


def load(name: str) -> Any:
    return yaml.safe_load((DEPLOY / name).read_text())


def test_compose_s_services_go_together() -> None:
    found = load("compose.yaml")
    services = found["services"]
    for service in services.values():
        assert service.keys() <= SERVICE
        assert set(service.get("depends_on", ())) <= services.keys()
        named = {volume.split(":")[0] for volume in service.get("volumes", ())}
        assert {each for each in named if not each.startswith(".")} <= found["volumes"].keys()
    assert services.keys() - {"router"} == services["router"]["depends_on"].keys()
    for replica in services["router"]["depends_on"]:
        assert f"http://{replica}:8000" in services["router"]["command"][-1]
        assert "NEXUS_TABLE" in services[replica]["environment"]
    build = services["replica-0"]["build"]
    assert (DEPLOY / build["context"] / build["dockerfile"]).exists()


@pytest.mark.skipif(
    subprocess.run(["docker", "compose", "version"], capture_output=True).returncode != 0
    if shutil.which("docker")
    else True,
    reason="no docker compose",
)
def test_compose_takes_its_file() -> None:
    subprocess.run(["docker", "compose", "-f", DEPLOY / "compose.yaml", "config", "-q"], check=True)


def test_the_chart_s_values_mount_the_plan_that_they_name() -> None:
    spec = load("production-stack.yaml")["servingEngineSpec"]
    mounts = {each["name"]: each["mountPath"] for each in spec["extraVolumeMounts"]}
    assert mounts.keys() == {each["name"] for each in spec["extraVolumes"]}
    for model in spec["modelSpec"]:
        given = {each["name"]: each["value"] for each in model["env"]}
        assert given.keys() <= VARIABLES
        assert str(Path(given["NEXUS_TABLE"]).parent) in mounts.values()


@pytest.mark.skipif(shutil.which("systemd-analyze") is None, reason="no systemd")
def test_systemd_takes_the_unit(tmp_path: Path) -> None:
    unit = (DEPLOY / "vllm.service").read_text()
    unit, count = re.subn("(?m)^ExecStart=[^ ]+", "ExecStart=/bin/true", unit)
    assert count == 1
    (tmp_path / "vllm.service").write_text(unit)
    verified = subprocess.run(
        ["systemd-analyze", "verify", tmp_path / "vllm.service"], capture_output=True, text=True
    )
    assert (verified.returncode, verified.stderr) == (0, "")
    assert set(re.findall(r"NEXUS_\w+", unit)) <= VARIABLES


def test_the_dashboard_shows_every_metric_of_nexus() -> None:
    dashboard = json.loads((DEPLOY / "grafana.json").read_text())
    queries = " ".join(each["expr"] for panel in dashboard["panels"] for each in panel["targets"])
    assert set(re.findall(r"nexus_\w+", queries)) == METRICS
    places = [(panel["gridPos"]["x"], panel["gridPos"]["y"]) for panel in dashboard["panels"]]
    assert len(set(places)) == len(places)
    assert len({panel["id"] for panel in dashboard["panels"]}) == len(places)


def test_the_page_for_operators_tells_of_every_metric_and_variable() -> None:
    page = (ROOT / "docs" / "operations.md").read_text()
    assert set(re.findall(r"nexus_\w+", page)) >= METRICS
    assert set(re.findall(r"NEXUS_\w+", page)) >= VARIABLES
