"""Lengths of requests, given and drawn."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from nexus.core.plan import Workload
from nexus.core.slo import Bounds
from nexus.planner.report.verdict import describe
from nexus.planner.search.solve import make_plan
from nexus.planner.workload.requests import Lengths, lengths_of, poisson


@given(st.floats(20.0, 10_000.0), st.floats(20.0, 2000.0))
def test_lengths_have_the_means_asked_for(inputs, outputs):
    lengths = lengths_of(Workload("means", inputs, outputs))
    assert lengths.input_mean == pytest.approx(inputs, rel=0.03)
    assert lengths.output_mean == pytest.approx(outputs, rel=0.03)
    assert lengths.inputs.min() >= 1
    assert lengths.outputs.min() >= 1


@given(st.lists(st.tuples(st.integers(1, 9000), st.integers(1, 9000)), min_size=1))
def test_cut_lengths_fit_the_model(rows):
    inputs, outputs = np.array(rows).T
    cut = Lengths("drawn", inputs, outputs).cut_to(4096)
    assert (cut.inputs + cut.outputs <= 4096).all()
    assert cut.inputs.min() >= 1
    assert cut.outputs.min() >= 1


def test_random_requests_keep_the_workloads_means(h200_profile):
    lengths = lengths_of(Workload("means", 1000.0, 200.0))
    requests = poisson(lengths, 200)
    assert requests.lengths.input_mean == pytest.approx(1000.0, rel=0.05)
    assert (np.diff(requests.arrivals_s) > 0).all()
    scaled = requests.at_rate(8.0)
    assert (len(scaled.arrivals_s) - 1) / scaled.arrivals_s[-1] == pytest.approx(8.0)


@given(st.floats(1.0, 20.0))
def test_short_lengths_have_the_means_asked_for_too(mean):
    lengths = lengths_of(Workload("means", 100.0, mean))
    assert lengths.output_mean == pytest.approx(mean, rel=0.01)
    assert lengths.summary().output_tokens == lengths.output_mean


def test_a_mean_of_one_token_is_one_token():
    assert (lengths_of(Workload("means", 256.0, 1.0)).outputs == 1).all()


def test_of_outputs_of_one_token_no_gap_is_expected(exact_cpu_profile):
    """And no bound on TBT stands in their way, or limits what is sustained."""
    lengths = lengths_of(Workload("means", 100.0, 1.0))
    plan = make_plan(exact_cpu_profile, Bounds(4000.0, 1.0), lengths, policy="fixed")
    said = plan.prediction
    assert said.capacity_per_s > 0
    assert (said.tbt_ms, said.tbt_p99_ms) == (0.0, 0.0)
    assert said.binding != "TBT"
    assert plan.workload.output_tokens == 1.0
    assert "there is no TBT" in describe(plan, exact_cpu_profile)


def test_requests_that_are_cut_are_counted():
    lengths = Lengths("drawn", np.array([100, 4000, 4095, 9000]), np.array([10, 96, 2, 20]))
    assert lengths.told_of_cut(4096).startswith("50% of the requests (2 of 4) are longer")
    assert lengths.cut_to(4096).told_of_cut(4096) == ""
