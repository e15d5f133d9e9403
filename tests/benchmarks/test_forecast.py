"""The simulator's word on where to search."""

import json
from dataclasses import replace
from pathlib import Path

import pytest

from nexus.benchmarks.metrics import Objective
from nexus.benchmarks.search import Candidate, Forecast, Forecasts, met
from nexus.benchmarks.systems import SYSTEMS
from nexus.core.plan import read_plan
from nexus.profiles.schema import read_profile

ROOT = Path(__file__).parents[2]
PROFILE = ROOT / "evidence" / "results" / "h200" / "vllm-0.26" / "llama-3.1-8b.yaml"
RESULTS = ROOT / "evidence" / "results" / "h200"
PLAN = RESULTS / "azure_conv-500-15.plan.yaml"


@pytest.fixture(scope="module")
def forecast() -> Forecast:
    return Forecast(read_profile(PROFILE), 16384, 512, 20.0)


def test_a_forecast_is_a_crossing_of_the_very_requests(forecast: Forecast) -> None:
    stock = Candidate(SYSTEMS["vllm-512"])
    bounds = Objective.parse("1000/25")
    goodput = forecast.goodput(stock, "azure_conv", bounds)
    assert 8.0 < goodput < 40.0
    assert met(forecast.run(stock, "azure_conv", goodput), bounds) >= 0.9
    assert met(forecast.run(stock, "azure_conv", goodput * 1.06), bounds) < 0.9


def test_options_and_plans_count(forecast: Forecast) -> None:
    chunks = [Candidate(SYSTEMS[name]).imagined(8192).mode for name in ("vllm-default", "vllm-512")]
    assert [mode.chunk for mode in chunks if mode] == [8192, 512]
    small = Candidate(SYSTEMS["vllm-256"])
    assert small.imagined(8192).max_num_seqs == 256
    plan = read_plan(PLAN)
    imagined = Candidate(SYSTEMS["nexus-fcfs-plan"], plan).imagined(8192)
    assert (imagined.order, imagined.plan) == ("fcfs", plan)


def test_forecasts_are_kept(forecast: Forecast, tmp_path: Path) -> None:
    path = tmp_path / "forecast.json"
    who, bounds = Candidate(SYSTEMS["vllm-512"]), Objective.parse("500/30:tpot")
    found = Forecasts(forecast, path).of(who, "random:512:32", bounds)
    (known,) = json.loads(path.read_text()).values()
    assert known == found
    path.write_text(path.read_text().replace(f"{found}", "7.5"))
    assert Forecasts(forecast, path).of(who, "random:512:32", bounds) == 7.5
    longer = replace(forecast, max_model_len=32768)  # requests are cut to other lengths
    assert Forecasts(longer, path).of(who, "random:512:32", bounds) == found
    assert Forecasts(None, None).of(who, "random:512:32", bounds) is None
