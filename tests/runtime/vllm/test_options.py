"""vLLM's options: the user's win, Nexus's fill in, vLLM's refusals are one line."""

import json
from dataclasses import replace
from pathlib import Path

import pytest

from nexus.errors import EngineError
from nexus.profiles.schema import Engine, Model
from nexus.runtime.vllm.options import (
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


def test_a_config_file_is_not_overridden_in_silence() -> None:
    with pytest.raises(EngineError, match="--config"):
        with_defaults(["--config", "c.yaml"], on_cpu=False, model=MODEL, engine=ENGINE)
    assert with_defaults(["--config", "c.yaml"], on_cpu=False) == ["--config", "c.yaml"]


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


def test_the_gist_of_a_long_complaint() -> None:
    long = "1 validation error for X\n  Value error, too long [type=value_error, input]\n  see docs"
    assert one_line(ValueError(long)) == "too long"
    assert one_line(ValueError("plain\nmore")) == "plain"
    assert one_line(ValueError()) == "ValueError()"
