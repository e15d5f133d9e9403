"""Lengths and traces."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from nexus.errors import DocumentError
from nexus.planner.table import Workload
from nexus.planner.workload import Lengths, lengths_of, poisson, read_trace

HEADER = "TIMESTAMP,ContextTokens,GeneratedTokens\n"


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


def test_a_trace_is_read_in_order_of_arrival(tmp_path):
    path = tmp_path / "trace.csv"
    path.write_text(
        HEADER
        + "2023-11-16 18:15:50.5,10,2\n2023-11-16 18:15:46.0,30,4\n2023-11-16 18:15:47.0,5,0\n"
    )
    requests = read_trace(path)
    assert requests.arrivals_s.tolist() == [0.0, 4.5]
    assert requests.lengths.inputs.tolist() == [30, 10]
    assert requests.lengths.source == "trace.csv"


@pytest.mark.parametrize(
    "text",
    [
        "",
        HEADER,
        "a,b\n1,2\n",
        HEADER + "soon,1,2\n",
        HEADER + "NaT,1,2\n",
        HEADER + "2023-11-16 18:15:46,x,2\n",
    ],
)
def test_what_is_not_a_trace_is_one_line(tmp_path, text):
    path = tmp_path / "trace.csv"
    path.write_text(text)
    with pytest.raises(DocumentError) as error:
        read_trace(path)
    assert "\n" not in str(error.value)


def test_a_missing_trace_is_one_line(tmp_path):
    with pytest.raises(DocumentError, match="No such file"):
        read_trace(tmp_path / "none.csv")
