import json

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from nexus.benchmarks.workloads import (
    TRACES,
    WORKLOADS,
    as_timed_trace,
    digest,
    requests_at,
    workload,
)
from nexus.errors import UserError
from nexus.planner.traces import read_trace

NAMES = (*WORKLOADS, "random", "random:64:8")
RATES = st.floats(0.1, 40)


@given(st.sampled_from(NAMES), RATES, st.floats(1, 90), st.integers(0, 5))
def test_requests_arrive_in_order_within_the_duration(
    name: str, rate: float, duration: float, repeat: int
) -> None:
    requests = requests_at(name, rate, duration, repeat, 4096)
    count = max(round(rate * duration), 1)
    lengths = requests.lengths
    assert len(requests.arrivals_s) == len(lengths.inputs) == len(lengths.outputs) == count
    assert (np.diff(requests.arrivals_s) >= 0).all()
    assert requests.arrivals_s[0] >= 0
    assert requests.arrivals_s[-1] <= count / rate * (1 + 1e-9)
    assert (lengths.inputs >= 1).all()
    assert (lengths.outputs >= 1).all()
    assert (lengths.inputs + lengths.outputs <= 4096).all()


@given(st.sampled_from(NAMES), st.integers(0, 3))
def test_a_higher_rate_sends_the_same_requests_and_more(name: str, repeat: int) -> None:
    few = requests_at(name, 4, 30, repeat, 16384).lengths
    more = requests_at(name, 9, 30, repeat, 16384).lengths
    assert (more.inputs[: len(few.inputs)] == few.inputs).all()
    assert (more.outputs[: len(few.outputs)] == few.outputs).all()


@pytest.mark.parametrize("name", NAMES)
def test_repeats_differ_and_are_the_same_every_time(name: str) -> None:
    texts = [as_timed_trace(requests_at(name, 3, 20, repeat, 16384)) for repeat in (0, 1, 0)]
    assert texts[0] == texts[2] != texts[1]
    assert digest(texts[0]) == digest(texts[2]) != digest(texts[1])


def test_a_trace_keeps_its_bursts() -> None:
    whole = read_trace(TRACES / "azure_conv.csv")
    requests = requests_at("azure_conv", 5, 60, 0, 1 << 20)
    gaps, original = np.diff(requests.arrivals_s), np.diff(whole.arrivals_s[:300])
    assert gaps / gaps.sum() == pytest.approx(original / original.sum())
    assert (requests.lengths.inputs == whole.lengths.inputs[:300]).all()


def test_all_at_once() -> None:
    requests = requests_at("arxiv", float("inf"), 32, 0, 16384)
    assert (requests.arrivals_s == np.zeros(32)).all()


def test_the_file_is_what_vllm_reads() -> None:
    lines = as_timed_trace(requests_at("random:64:8", 2, 10, 0, 512)).splitlines()
    rows = [json.loads(line) for line in lines]
    assert len(rows) == 20
    assert all(
        row.keys() == {"timestamp", "input_length", "output_length", "hash_ids"} for row in rows
    )
    assert [row["hash_ids"] for row in rows] == [[number] for number in range(20)]


@pytest.mark.parametrize("name", ["nonsense", "random:0:8", "random:8", "random:a:b", ""])
def test_an_unknown_workload_is_refused(name: str) -> None:
    with pytest.raises(UserError, match="no workload"):
        workload(name)


def test_a_trace_has_an_end() -> None:
    with pytest.raises(UserError, match="shorten"):
        requests_at("azure_code", 1000, 60, 0, 16384)
