import json
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from nexus.benchmarks.command import Words, job_of
from nexus.benchmarks.machine import where_measured
from nexus.benchmarks.workloads import (
    TRACES,
    WORKLOADS,
    as_timed_trace,
    chunk_of,
    digest,
    has_prefixes,
    highest_rate,
    requests_at,
    to_plan_for,
    told,
    workload,
)
from nexus.core.errors import UserError
from nexus.planner.workload.requests import Requests
from nexus.planner.workload.traces import read_trace
from nexus.profiles.schema import read_profile
from nexus.profiles.shipped import shipped_profiles

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
    whole = read_trace(TRACES / "azure_conv.csv.gz")
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


def mooncake(path: Path) -> Path:
    """Ten minutes of prompts that share 1,024 tokens in pairs, and end in 40 of their own."""
    rows = [
        {
            "timestamp": 3000 * n,
            "input_length": 1064,
            "output_length": 9000 if n == 7 else 20,
            "hash_ids": [2 * (n // 2), 2 * (n // 2) + 1, 1000 + n],
        }
        for n in range(200)
    ]
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return path


def test_the_file_of_a_trace_is_a_workload(tmp_path: Path) -> None:
    name = str(mooncake(tmp_path / "own.jsonl"))
    requests = requests_at(name, 2, 10, 0, 4096)
    assert requests.lengths.source == name
    assert requests.arrivals_s == pytest.approx(np.arange(20) / 2)
    assert requests.prefixes is not None
    assert has_prefixes(name)
    assert not has_prefixes("azure_conv")
    known = to_plan_for(name, 4096)
    assert isinstance(known, Requests)
    assert (known.lengths.outputs[7], len(known.arrivals_s)) == (4096 - 1064, 200)
    line, cut = told(name, 4096)
    assert "Mooncake, 200 requests in 597.0 s" in line
    assert "0.5% of the requests (1 of 200)" in cut
    assert told("arxiv", 4096) == []
    assert highest_rate(name, 10) == 19.9
    with pytest.raises(UserError, match="shorten"):
        requests_at(name, 20, 10, 0, 4096)
    table = tmp_path / "own.csv"
    table.write_text("time,input,output,cached\n0,100,5,64\n1,100,5,64\n2,100,5,64\n")
    drawn = requests_at(str(table), 1, 1, 0, 4096)
    assert drawn.lengths.cached_mean == 0.0  # no server could tell what to find again
    with pytest.raises(UserError, match="no workload"):
        workload(str(tmp_path / "none.csv"))


def test_vllm_sends_prompts_that_begin_alike(tmp_path: Path, tiny_model: Path) -> None:
    from transformers import AutoTokenizer
    from vllm.benchmarks import serve
    from vllm.utils.argparse_utils import FlexibleArgumentParser

    parser = FlexibleArgumentParser()
    serve.add_cli_args(parser)
    tokenizer = AutoTokenizer.from_pretrained(tiny_model)
    requests = requests_at(str(mooncake(tmp_path / "own.jsonl")), 2, 10, 0, 4096)
    sent = []
    for run in (1, 2):
        path = tmp_path / f"{run}.jsonl"
        path.write_text(as_timed_trace(requests, run))
        words = ["--dataset-name", "timed_trace", "--dataset-path", str(path)]
        words += ["--timed-trace-chunk-hash-size", str(chunk_of(requests)), "--num-prompts", "20"]
        sent += [each.prompt for each in serve.get_samples(parser.parse_args(words), tokenizer)]
    assert {len(prompt) for prompt in sent} == {1064}
    begin = [tuple(prompt[:512]) for prompt in sent]
    assert all(begin[n] == begin[n + 1] for n in range(0, 40, 2))
    assert len(set(begin)) == 20  # ten pairs in each of two runs
    assert len({tuple(prompt[1024:]) for prompt in sent}) == 40


def test_servers_keep_what_prompts_share(tmp_path: Path) -> None:
    """Random prompts share nothing, so that caching is off for them."""
    where = where_measured(read_profile(shipped_profiles()[0]))
    name = str(mooncake(tmp_path / "own.jsonl"))
    for workloads, caches in ((name, True), ("arxiv", False), (f"arxiv,{name}", True)):
        words = Words("model", workloads=workloads, systems="stock")
        options = job_of(words, tmp_path, where).options
        assert ("--enable-prefix-caching" in options) == caches
        assert ("--no-enable-prefix-caching" in options) != caches
