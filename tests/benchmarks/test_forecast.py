"""The simulator's word on where to search, and beside what was measured."""

import json
from dataclasses import replace
from pathlib import Path

import pytest

from nexus.benchmarks.forecast import Candidate, Forecast, Forecasts, met
from nexus.benchmarks.metrics import Objective
from nexus.benchmarks.predicted import Predictor, overloaded
from nexus.benchmarks.results import read_cells
from nexus.benchmarks.systems import SYSTEMS
from nexus.core.plan import read_plan
from nexus.profiles.schema import read_profile

ROOT = Path(__file__).parents[2]
PROFILE = ROOT / "profiles" / "h200" / "llama-3.1-8b.yaml"
RESULTS = ROOT / "evidence" / "results" / "h200"
PLAN = RESULTS / "azure_conv-500-15.plan.yaml"
MEASURED = RESULTS / "azure_conv-16.jsonl"
PLANNED = RESULTS / "llama-3.1-8b_nvidia-h200--gpu1.jsonl"


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
    assert overloaded(forecast.run(stock, "azure_conv", 4 * goodput))
    assert not overloaded(forecast.run(stock, "azure_conv", goodput / 2))


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


def test_stock_vllm_is_predicted() -> None:
    """Both stock runs on an H200, of which one was not fitted."""
    pairs = Predictor([PROFILE], [PLAN]).pairs(read_cells(MEASURED))
    errors = {pair.cell.key.system: pair for pair in pairs}
    assert len(pairs) == 2
    assert errors["vllm-512"].good, errors["vllm-512"].errors
    assert max(map(abs, errors["vllm-default"].errors.values())) < 0.25
    assert not any(pair.busy for pair in pairs)


def test_what_is_not_known_is_left_out() -> None:
    cells = [cell for cell in read_cells(PLANNED) if cell.key.system == "nexus-spf-plan"]
    plans = sorted((RESULTS / "plans" / "spf").glob("*.yaml"))
    assert len(Predictor([PROFILE], plans).pairs(cells[:2])) == 2
    assert Predictor([PROFILE], []).pairs(cells[:2]) == []  # each served with a plan
    assert Predictor([], plans).pairs(cells[:2]) == []
