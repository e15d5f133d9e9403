"""``nexus bench`` as users start it."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

from nexus.benchmarks.results import read_cells
from nexus.benchmarks.shapes import with_tokenizer
from nexus.benchmarks.workloads import requests_at


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
    assert (stock.key.system, nexus.key.system) == ("vllm-default", "nexus-spf-plan")
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
