"""From a plan to three command lines."""

import json
from dataclasses import replace
from pathlib import Path

import pytest

from nexus.core.errors import EngineError, MismatchError, UserError
from nexus.core.io.documents import Provenance
from nexus.core.machine import Engine, Machine, Model
from nexus.core.plan import Axes, Mode, Plan, Prediction, Row, Shares, Workload, write_plan
from nexus.core.slo import Bounds
from nexus.runtime.mps.part import Recipe
from nexus.runtime.mps.recipes import Address, Programs, check_options, kv_bytes, make_recipes
from nexus.runtime.mps.serve import serve

MODE = Mode("split", 2048, 84, 48)
PLAN = Plan(
    provenance=Provenance("now", "nexus plan", {}),
    profile_hash="0",
    machine=Machine("cuda", "H200", 132),
    model=Model("llama", "0", "bfloat16", 32, 4096, 32, 8, 128, 8192),
    engine=Engine(8192, 256, 16, 400_000),
    bounds=Bounds(1000.0, 25.0),
    workload=Workload("stated", 1000.0, 200.0),
    policy="fixed",
    prediction=Prediction(1.0, "stock", 1.0, 1.0, 1.0, "tbt"),
    axes=Axes((0,), (1,), (0,)),
    modes={MODE.name: MODE},
    rows=(Row(0, 1, 0, MODE.name),),
    partitioner="mps",
    shares=Shares(64, 37, 16_384, 300_000),
)


def _options(recipe: Recipe) -> dict[str, str]:
    """Each option's last value."""
    words = recipe.command
    pairs = zip(words, [*words[1:], "--"], strict=True)
    return {name: "" if value.startswith("--") else value for name, value in pairs if "--" in name}


def test_two_engines_and_a_router() -> None:
    given = ["--load-format", "dummy", "--max-num-seqs=64", "--port", "8123"]
    recipes = make_recipes("llama", given, PLAN, Address(None, 8123, "llama"), Programs())
    prefill, decode, router = map(_options, (recipes.prefill, recipes.decode, recipes.router))
    for engine, role in ((prefill, "kv_producer"), (decode, "kv_consumer")):
        transfer = json.loads(engine["--kv-transfer-config"])
        assert transfer["kv_connector"] == "NixlConnector"
        assert transfer["kv_role"] == role
        assert engine["--load-format"] == "dummy"
        assert engine["--max-model-len"] == "8192"
        assert engine["--host"] == "127.0.0.1"
        assert "--max-num-seqs" not in engine  # given by the user, with its value attached
    assert prefill["--max-num-batched-tokens"] == "2048"
    assert decode["--max-num-batched-tokens"] == "8192"
    token = 2 * 32 * 8 * 128 * 2
    assert int(prefill["--kv-cache-memory-bytes"]) == (16_384 + 16) * token
    assert int(decode["--kv-cache-memory-bytes"]) == (300_000 + 16) * token
    assert router["--prefill"] == f"http://127.0.0.1:{prefill['--port']}" == recipes.prefill.url
    assert router["--decode"] == f"http://127.0.0.1:{decode['--port']}" == recipes.decode.url
    assert (router["--host"], router["--port"]) == ("0.0.0.0", "8123")
    first = json.loads(recipes.first_request)
    assert (first["model"], len(first["prompt"])) == ("llama", 33)


def test_side_channels_are_private_to_each_engine() -> None:
    recipes = make_recipes("llama", [], PLAN, Address("127.0.0.1", 1, "llama"), Programs())
    sides = [each.environment for each in (recipes.prefill, recipes.decode)]
    assert {side["VLLM_NIXL_SIDE_CHANNEL_HOST"] for side in sides} == {"127.0.0.1"}
    ports = {side["VLLM_NIXL_SIDE_CHANNEL_PORT"] for side in sides}
    ports |= {str(each.port) for each in (recipes.prefill, recipes.decode)}
    assert len(ports | {str(recipes.metrics_port)}) == 5


@pytest.mark.parametrize(
    ("host", "asked"), [(None, "127.0.0.1"), ("0.0.0.0", "127.0.0.1"), ("10.1.2.3", "10.1.2.3")]
)
def test_the_router_is_asked_where_it_listens(host: str | None, asked: str) -> None:
    router = make_recipes("llama", [], PLAN, Address(host, 8123, "llama"), Programs()).router
    assert _options(router)["--host"] == (host or "0.0.0.0")
    assert router.url == f"http://{asked}:8123"


def test_a_small_chunk_bounds_the_prefill_engines_requests() -> None:
    mode = replace(MODE, chunk=128)
    plan = replace(PLAN, modes={mode.name: mode})
    recipes = make_recipes("llama", [], plan, Address(None, 1, "llama"), Programs())
    assert _options(recipes.prefill)["--max-num-seqs"] == "128"
    assert _options(recipes.decode)["--max-num-seqs"] == "256"


def test_memory_of_other_data_types() -> None:
    assert kv_bytes(replace(PLAN.model, dtype="float32"), 1) == 2 * kv_bytes(PLAN.model, 1)
    with pytest.raises(UserError, match="int3"):
        kv_bytes(replace(PLAN.model, dtype="int3"), 1)


@pytest.mark.parametrize(
    "option",
    ["--kv_transfer_config", "--gpu-memory-utilization=0.5", "-tp", "-tp=2", "--uds", "--api-key"],
)
def test_what_cannot_be_given_is_refused(option: str) -> None:
    with pytest.raises(EngineError, match="cannot be combined with --partitioner mps"):
        check_options(["--dtype", "auto", option, "2"])
    check_options(["--dtype", "auto", "--max-model-len=2048"])


def test_a_plan_for_green_contexts_is_refused(tmp_path: Path) -> None:
    table = tmp_path / "plan.yaml"
    write_plan(table, replace(PLAN, partitioner="green", shares=None))
    with pytest.raises(MismatchError, match="make one for MPS with `nexus plan --partitioner mps`"):
        serve("llama", [], table, print)
    unshared = replace(PLAN, partitioner="green", shares=None)
    with pytest.raises(UserError, match="no shares"):
        make_recipes("llama", [], unshared, Address(None, 1, "llama"), Programs())


def test_a_plan_of_another_machine_is_refused(tmp_path: Path) -> None:
    table = tmp_path / "plan.yaml"
    write_plan(table, replace(PLAN, machine=Machine("cuda", "another GPU", 132)))
    with pytest.raises(MismatchError, match="was made for another GPU"):
        serve("llama", [], table, print)
