"""vLLM's options: the user's win, Nexus's fill in, vLLM's refusals are one line."""

import json
import re
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from nexus.commands.common import model_and_options
from nexus.core.errors import DocumentError, EngineError
from nexus.core.machine import Engine, Model
from nexus.runtime.vllm.front_end.server import serve
from nexus.runtime.vllm.options import (
    from_file,
    given,
    one_line,
    parse_engine,
    parse_serve,
    spelled,
    value_of,
    with_defaults,
    with_needed_type,
)

MODEL = Model("m", "0" * 16, "bfloat16", 2, 64, 2, 1, 32, 4096)
ENGINE = Engine(1024, 64, 16, 100_000, enforce_eager=True)
_GRAPHS = "--max-cudagraph-capture-size"


def value(options: list[str], name: str) -> str | None:
    """What a command line says, the last word winning."""
    found = None
    for index, option in enumerate(options):
        if option == name:
            found = options[index + 1]
        elif option.startswith(f"{name}="):
            found = option.partition("=")[2]
    return found


def test_a_plan_brings_the_limits_it_was_measured_with() -> None:
    options = with_defaults([], on_cpu=False, model=MODEL, engine=ENGINE)
    assert value(options, "--max-num-batched-tokens") == "1024"
    assert value(options, "--max-num-seqs") == "64"
    assert value(options, "--dtype") == "bfloat16"
    assert value(options, "--max-model-len") == "4096"
    assert "--enforce-eager" in options
    assert value(options, "--kv-cache-memory-bytes") is None


@pytest.mark.parametrize("given", [["--dtype", "float16"], ["--dtype=float16"]])
def test_what_the_user_gives_wins(given: list[str]) -> None:
    options = with_defaults(
        [*given, "--max_num_seqs", "8"], on_cpu=True, model=MODEL, engine=ENGINE
    )
    assert value(options, "--dtype") == "float16"
    assert value(options, "--max-num-seqs") is None
    assert parse_serve("m", options).max_num_seqs == 8


@pytest.mark.parametrize(
    ("options", "batches", "graphs"),
    [
        ([], [256, 640], "640"),
        ([], [256, 640, 8192], "1024"),
        ([], [256, 512], None),
        (["-O2"], [640], None),
        (["--compilation-config.cudagraph_mode=FULL"], [640], None),
        (["--cudagraph_capture_sizes", "1", "2"], [640], None),
    ],
)
def test_a_plan_s_batches_have_graphs(
    options: list[str], batches: list[int], graphs: str | None
) -> None:
    usual = Engine(8192, 64, 16, 100_000)
    words = with_defaults(options, on_cpu=False, model=MODEL, engine=usual, batches=batches)
    assert value(words, _GRAPHS) == graphs
    if graphs:
        assert parse_serve("m", words).max_cudagraph_capture_size == int(graphs)


def test_no_graphs_are_asked_for_where_there_are_none() -> None:
    usual = Engine(8192, 64, 16, 100_000)
    on_cpu = with_defaults([], on_cpu=True, model=MODEL, engine=usual, batches=[640])
    eager = with_defaults([], on_cpu=False, model=MODEL, engine=ENGINE, batches=[640])
    assert value(on_cpu, _GRAPHS) is value(eager, _GRAPHS) is None


def test_an_option_is_known_in_any_spelling() -> None:
    assert spelled("--max_num-seqs=8") == "--max-num-seqs"
    assert spelled("-tp=2") == "-tp"
    assert spelled("a_value") == "a_value"
    options = ["--max_num_seqs", "8", "--dtype=float32", "--max-num-seqs=4", "--enforce_eager"]
    assert given(options, "--max-num-seqs")
    assert given(options, "--no-enforce-eager", "--enforce-eager")
    assert not given(options, "--max-num-batched-tokens")
    assert value_of(options, "--max-num-seqs") == "4"  # the last counts, as to vLLM
    assert parse_serve("m", options).max_num_seqs == 4
    assert value_of(options, "--dtype") == "float32"
    assert value_of(options, "--port") is None


CONFIG = """
model: of-the-file
dtype: float16
port: 1
max-num-seqs: 8
enable-prefix-caching: false
enforce-eager: false
kv-cache-memory-bytes: 64M
compilation-config: {cudagraph_capture_sizes: [1, 2]}
served-model-name: [one, other]
"""


def test_a_config_file_is_below_the_command_line_and_above_defaults(tmp_path: Path) -> None:
    path = tmp_path / "options.yaml"
    path.write_text(CONFIG)
    for named in (["--config", str(path)], [f"--config={path}"]):
        model, options = model_and_options([*named, "--port", "2"])
        assert model == "of-the-file"
        words = with_defaults(options, on_cpu=True, model=MODEL, engine=ENGINE)
        found = parse_serve(model, words)
        assert (found.model, found.port, found.max_num_seqs, found.dtype) == (
            model,
            2,
            8,
            "float16",
        )
        assert (found.enable_prefix_caching, found.enforce_eager) == (False, False)
        assert found.served_model_name == ["one", "other"]
        assert found.compilation_config.cudagraph_capture_sizes == [1, 2]
        assert found.kv_cache_memory_bytes == 64 << 20
        assert (found.max_num_batched_tokens, found.max_model_len) == (1024, 4096)
    assert model_and_options(["mine", "--config", str(path), "--model", "late"])[0] == "mine"
    assert model_and_options(["--config", str(path), "--model", "late"])[0] == "late"
    assert "--model" not in model_and_options(["mine", "--config", str(path)])[1]


@pytest.mark.parametrize(
    ("name", "text", "told"),
    [
        ("options.yaml", "port: [", "while parsing"),
        ("options.yaml", "just words", "no options and their values"),
        ("options.yaml", "", "no options and their values"),
        ("options.txt", "port: 1", "yaml/yml"),
        ("none.yaml", None, "No such file"),
    ],
)
def test_a_config_file_that_is_none_is_one_line(
    tmp_path: Path, capfd: pytest.CaptureFixture[str], name: str, text: str | None, told: str
) -> None:
    path = tmp_path / name
    if text is not None:
        path.write_text(text)
    with pytest.raises(EngineError, match=rf"--config .*{told}") as caught:
        from_file(["--config", str(path)])
    assert "\n" not in str(caught.value)
    assert "ERROR" not in "".join(capfd.readouterr())
    with pytest.raises(EngineError, match="more than once"):
        from_file(["--config", str(path), "--config=other.yaml"])


def test_no_output_takes_the_place_of_a_config_file(tmp_path: Path) -> None:
    path = tmp_path / "options.yaml"
    path.write_text(CONFIG)
    with pytest.raises(DocumentError, match="would overwrite"):
        model_and_options(["mine", f"--config={path}"], path)
    assert path.read_text() == CONFIG


def test_a_cpu_gets_a_bounded_kv_cache_and_one_process() -> None:
    options = with_defaults([], on_cpu=True)
    assert value(options, "--kv-cache-memory-bytes") == str(1 << 30)
    assert value(options, "--distributed-executor-backend") == "uni"
    assert with_defaults([], on_cpu=False) == []


def test_a_plan_brings_its_parallel_sizes() -> None:
    two = replace(ENGINE, tensor_parallel_size=2)
    for on_cpu in (False, True):
        words = with_defaults([], on_cpu=on_cpu, model=MODEL, engine=two)
        parsed = parse_serve("m", words)
        assert (parsed.tensor_parallel_size, parsed.pipeline_parallel_size) == (2, 1)
        assert value(words, "--distributed-executor-backend") is None
        for own in (["-tp", "4"], ["-tp=4"], ["--tensor_parallel_size=4"]):
            words = with_defaults(own, on_cpu=on_cpu, model=MODEL, engine=two)
            assert parse_serve("m", words).tensor_parallel_size == 4
    assert "--tensor-parallel-size" not in with_defaults([], on_cpu=True, engine=ENGINE)


def test_a_model_that_a_cpu_computes_in_bfloat16_alone_keeps_its_type(tmp_path: Path) -> None:
    for name, config, typed in (
        ("plain", {"n_layer": 2}, []),
        ("gated", {"linear_num_value_heads": 2}, ["--dtype", "auto"]),
        ("nested", {"text_config": {"linear_num_value_heads": 2}}, ["--dtype", "auto"]),
    ):
        (tmp_path / name).mkdir()
        (tmp_path / name / "config.json").write_text(json.dumps(config))
        assert with_needed_type(str(tmp_path / name), ["-x"]) == ["-x", *typed]
        assert with_needed_type(str(tmp_path / name), []) == typed
        told = ["--dtype=float32"]
        assert with_needed_type(str(tmp_path / name), told) == told


def test_refusals_name_the_option() -> None:
    with pytest.raises(EngineError, match="--colour"):
        parse_serve("m", ["--colour", "red"])
    with pytest.raises(EngineError, match="--colour"):
        parse_engine("m", ["--colour", "red"])
    with pytest.raises(EngineError, match="max-model-len"):
        parse_serve("m", ["--max-model-len", "far"])


@pytest.mark.parametrize(
    ("words", "told"),
    [
        ("--max-num-seqs 0", "max_num_seqs: Input should be greater than or equal to 1"),
        ("--gpu-memory-utilization 3", "gpu_memory_utilization: Input should be less than"),
        ("--pipeline-parallel-size 0", "pipeline_parallel_size: Input should be greater than"),
        ("--max-logprobs -7", "max_logprobs: Input should be greater than or equal to -1"),
        ("--hf-overrides 3", r"Input should be .* \(and 1 more\)"),
        ("--max-model-len 9999", "is greater than the derived max_model_len"),
        ('--compilation-config {"foo":7}', "--compilation-config.* foo Unexpected keyword"),
        ('--kv-transfer-config {"kv_connector":"x"}', "Please specify kv_role"),
        (
            "--no-enable-chunked-prefill --max-model-len 4096",
            "chunked-prefill cannot be combined with",
        ),
    ],
)
def test_vllm_s_reasons_are_told_in_one_line(
    tiny_model: Path, make_plan: Any, words: str, told: str
) -> None:
    options = ["--dtype", "float32", "--max-model-len", "512", "--port", "0", *words.split()]
    with pytest.raises(EngineError, match=told) as caught:
        serve(str(tiny_model), options, make_plan((64,)), "deadline", 500.0, force=True)
    assert not re.search(r"\n|pydantic|\[type=|validation error for \w+$", str(caught.value))


def test_the_gist_of_a_long_complaint() -> None:
    long = "1 validation error for X\n  Value error, too long [type=value_error, input]\n  see docs"
    assert one_line(ValueError(long)) == "1 validation error for X Value error, too long"
    assert one_line(ValueError("plain\n\tmore")) == "plain more"
    assert one_line(ValueError()) == "ValueError()"
    frames = "CUDA error: " + "x" * 500 + "\n" + "frame\n" * 500
    assert one_line(RuntimeError("failed\n" + frames)) == "failed CUDA error: ..."
    assert one_line(RuntimeError(frames)) == f"CUDA error: {'x' * 500} ..."
