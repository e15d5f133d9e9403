"""``nexus bench`` as users start it."""

import os
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import pytest

from nexus.benchmarks.agenda import Grid, Job
from nexus.benchmarks.client import with_tokenizer
from nexus.benchmarks.command import shared_options
from nexus.benchmarks.machine import Here
from nexus.benchmarks.metrics import Metrics
from nexus.benchmarks.results import SCHEMA, Cell, Key, Setting, read_cells
from nexus.benchmarks.run import Bench
from nexus.benchmarks.systems import SYSTEMS, number_in
from nexus.benchmarks.workloads import requests_at
from nexus.core.errors import UserError
from nexus.core.machine import Machine
from nexus.profiles.schema import read_profile
from nexus.profiles.shipped import shipped_profiles


def bench(*words: str, cwd: Path) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-m", "nexus.cli", "bench", *words],
        capture_output=True,
        text=True,
        cwd=cwd,
        timeout=580,
        env={**os.environ, "HF_HUB_OFFLINE": "1", "COLUMNS": "100"},
        check=False,
    )


@pytest.mark.parametrize(
    ("words", "told"),
    [
        (("--systems", "vllm-513"), "no system"),
        (("--systems", "nexus-spf-plan"), "--profile or --table"),
        (("--bounds", "500"), "bounds"),
        (("--rates", "8,x"), "rates"),
        (("--workloads", "arxiv,nonsense"), "no workload"),
        (("--workloads", "arxiv@"), "no rate"),
        (("--part", "../gpu0"), "--part"),
        (("--profile", "nowhere.yaml"), "No such file"),
        (("--port", "8000"), "--port is set by the systems"),
        (("--max-num-batched-tokens=512",), "--max-num-batched-tokens is set by the systems"),
        (("--max_num_batched_tokens", "512"), "--max-num-batched-tokens is set by the systems"),
        (("--max-model-len", "16k"), "a plain number"),
    ],
)
def test_mistakes_are_told_in_one_line(
    tiny_model: Path, tmp_path: Path, words: tuple[str, ...], told: str
) -> None:
    result = bench(str(tiny_model), *words, cwd=tmp_path)
    assert result.returncode == 2, result.stderr
    assert result.stderr.splitlines()[-1].startswith("nexus: ")
    assert told in result.stderr.splitlines()[-1]
    assert not list(tmp_path.iterdir())


def test_what_a_profile_says_is_added_where_the_user_does_not_say_it() -> None:
    profile = read_profile(shipped_profiles()[0])
    where = Here(profile.machine, {}, "h", 4096)
    names = ("--max_num_seqs", "--max_model_len", "--enable_prefix_caching", "--dtype")
    own = tuple(word for name in names[:2] for word in (name, "64")) + names[2:] + ("float32",)
    assert (
        shared_options(own, where, profile.model, replace(profile.engine, enforce_eager=False))
        == own
    )
    added = shared_options((), where, profile.model, profile.engine)
    assert number_in(added, "--max-num-seqs") == profile.engine.max_num_seqs


def test_a_stock_system_keeps_to_the_smaller_limit() -> None:
    """vLLM refuses a token budget below --max-num-seqs, of which the last word counts."""
    small, large = SYSTEMS["vllm-256"], SYSTEMS["vllm-8192"]
    limits = {"64": 64, "512": 256}
    for given, counts in limits.items():
        for name in ("--max-num-seqs", "--max_num_seqs"):
            words = small.words("m", (name, given), None)
            assert number_in(words, "--max-num-batched-tokens") == 256
            assert number_in(words, "--max-num-seqs") == counts
    assert number_in(large.words("m", ("--max-num-seqs", "512"), None), "--max-num-seqs") == 512
    assert "--max-num-seqs" not in small.words("m", (), None)  # vLLM sees to it
    with pytest.raises(UserError, match="a plain number"):
        small.words("m", ("--max-num-seqs", "1k"), None)


def test_a_burst_counts_on_this_machine_with_this_model(tmp_path: Path) -> None:
    machine = Machine("cpu", "c", 2)
    where = Here(machine, {}, "this", 4096)
    grid = Grid((SYSTEMS["vllm-default"],), ("mixed",), ())
    bench = Bench(Job("m", where, (), grid, tmp_path, 4096, 8), tmp_path, print)
    setting = Setting("m", "another", machine, {}, "nexus serve m", 60.0, "r")
    metrics = Metrics(1, 0, 1.0, 7.0, 1.0, 1.0, 1.0, 0.0)
    burst = Cell(SCHEMA, Key("vllm-default", "mixed"), setting, "now", metrics)
    bench.store.add(burst)
    assert bench._burst_per_s("mixed") is None
    bench.store.add(replace(burst, setting=replace(setting, model_hash="this")))
    assert bench._burst_per_s("mixed") == 7.0


def test_a_shape_gets_a_tokenizer(tiny_model: Path, tmp_path: Path) -> None:
    assert with_tokenizer(str(tiny_model), tmp_path) == str(tiny_model)
    shape = tmp_path / "shape"
    shape.mkdir()
    (shape / "config.json").write_bytes((tiny_model / "config.json").read_bytes())
    (tmp_path / "into").mkdir()
    from transformers import AutoTokenizer

    tokenizer = AutoTokenizer.from_pretrained(with_tokenizer(str(shape), tmp_path / "into"))
    assert len(tokenizer.get_vocab()) == 512
    ids = [5, 77, 500, 3]
    assert tokenizer.encode(tokenizer.decode(ids), add_special_tokens=False) == ids


@pytest.mark.engine
def test_quick_compares_stock_vllm_with_nexus(tiny_model: Path, tmp_path: Path) -> None:
    result = bench(str(tiny_model), "--quick", "-o", "out", cwd=tmp_path)
    assert result.returncode == 0, result.stderr
    (results,) = (tmp_path / "out").glob("*.jsonl")
    stock, nexus = read_cells(results)
    assert (stock.key.system, nexus.key.system) == ("vllm-default", "nexus-deadline-plan")
    assert stock.setting.requests_hash == nexus.setting.requests_hash
    assert nexus.setting.plan is not None
    wanted = requests_at("random:64:8", 1.0, stock.setting.duration_s, 0, 1024).lengths
    for cell in (stock, nexus):
        assert cell.metrics is not None
        assert cell.per_request is not None
        assert cell.metrics.failed == 0
        assert cell.metrics.completed == len(cell.per_request.input_tokens)
        # Token ids are sent, not text: lengths are the workload's to the token.
        assert cell.per_request.input_tokens == tuple(wanted.inputs.tolist())
        assert cell.per_request.output_tokens == tuple(wanted.outputs.tolist())
    assert str(tiny_model) not in results.read_text()
    assert str(tmp_path) not in results.read_text()
    assert results.with_suffix(".html").exists()
