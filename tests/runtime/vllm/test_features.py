"""What users ask of vLLM: with a plan they get stock vLLM's answers."""

import json
from pathlib import Path
from typing import Any

import pytest

from nexus.core.plan import Mode

OVERLAP = Mode("overlap", 96, prefill_sms=1)
RANK = 4
STORED = {"kv_connector": "ExampleConnector", "kv_role": "kv_both"}


def prompt(length: int, start: int) -> dict[str, list[int]]:
    return {"prompt_token_ids": [3 + (start + 7 * place) % 500 for place in range(length)]}


def wanted() -> list[tuple[dict[str, list[int]], Any]]:
    """Two prompts, a short and a long one, for each kind of request."""
    from vllm import SamplingParams
    from vllm.sampling_params import StructuredOutputsParams

    kinds: list[dict[str, Any]] = [
        {},
        {"logprobs": 3},
        {"prompt_logprobs": 2},
        {"n": 3, "temperature": 1.0, "top_k": 1},
        {"stop": ["w7", "w17", "w27"]},
        {"structured_outputs": StructuredOutputsParams(choice=["w5 w6", "w8"])},
        {"repetition_penalty": 1.3, "presence_penalty": 0.4},
        {"min_tokens": 9, "max_tokens": 12},
        {"max_tokens": 1},
    ]
    return [
        (
            prompt(length, number),
            SamplingParams(**{"temperature": 0, "max_tokens": 10, **kind}),
        )
        for number, kind in enumerate(kinds)
        for length in (20, 300)
    ]


def plain_tokens(llm: Any, **options: Any) -> list[list[int]]:
    from vllm import SamplingParams

    prompts = [prompt(length, length) for length in (20, 300, 500, 40, 100)]
    params = SamplingParams(temperature=0, max_tokens=10)
    outputs = llm.generate(prompts, params, use_tqdm=False, **options)
    return [list(output.outputs[0].token_ids) for output in outputs]


def answers(llm: Any, **options: Any) -> list[Any]:
    prompts, params = zip(*wanted(), strict=True)
    outputs = llm.generate(list(prompts), list(params), use_tqdm=False, **options)
    return [
        [(list(made.token_ids), made.finish_reason, seen(made.logprobs)) for made in output.outputs]
        + [seen(output.prompt_logprobs)]
        for output in outputs
    ]


def seen(logprobs: Any) -> list[dict[int, float]]:
    """Rounded: batches of other sizes add up in another order."""
    return [
        {token: round(each.logprob, 3) for token, each in place.items()} if place else {}
        for place in logprobs or ()
    ]


@pytest.fixture(scope="module")
def adapter(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A LoRA adapter of ``tiny_model`` that changes its answers."""
    import torch
    from safetensors.torch import save_file

    folder = tmp_path_factory.mktemp("adapter")
    generator = torch.Generator().manual_seed(4)
    tensors = {
        f"base_model.model.model.layers.{layer}.self_attn.q_proj.lora_{name}.weight": torch.randn(
            shape, generator=generator
        )
        for layer in range(2)
        for name, shape in (("A", (RANK, 64)), ("B", (64, RANK)))
    }
    save_file(tensors, folder / "adapter_model.safetensors")
    config = {"peft_type": "LORA", "r": RANK, "lora_alpha": RANK, "target_modules": ["q_proj"]}
    (folder / "adapter_config.json").write_text(json.dumps(config))
    return folder


@pytest.fixture(scope="module")
def stock() -> dict[str, Any]:
    """Filled by the first test that runs stock vLLM, read by the others."""
    return {}


def stock_answers(stock: dict[str, Any], open_engine: Any) -> list[Any]:
    if "answers" not in stock:
        with open_engine() as llm:
            stock["answers"] = answers(llm)
    return stock["answers"]


@pytest.mark.engine
def test_requests_of_every_kind_beside_a_fused_plan(
    open_engine: Any, make_plan: Any, stock: Any
) -> None:
    expected = stock_answers(stock, open_engine)
    with open_engine(make_plan((64,))) as llm:
        assert answers(llm) == expected
    with open_engine(make_plan((64,)), "fcfs", scheduling_policy="priority") as llm:
        assert answers(llm, priority=list(range(len(expected), 0, -1))) == expected


@pytest.mark.engine
def test_requests_of_every_kind_on_the_lane(open_engine: Any, lane_plan: Any, stock: Any) -> None:
    expected = stock_answers(stock, open_engine)
    with open_engine(lane_plan((OVERLAP,)), lane=True) as llm:
        assert answers(llm) == expected


@pytest.mark.engine
def test_adapters_beside_a_fused_plan(open_engine: Any, make_plan: Any, adapter: Path) -> None:
    from vllm.lora.request import LoRARequest

    lora = {"enable_lora": True, "max_lora_rank": 8, "max_loras": 2}
    asked = {"lora_request": LoRARequest("one", 1, str(adapter))}
    with open_engine(**lora) as llm:
        expected, plain = plain_tokens(llm, **asked), plain_tokens(llm)
    with open_engine(make_plan((64,)), **lora) as llm:
        assert plain_tokens(llm, **asked) == expected != plain
        assert plain_tokens(llm) == plain


@pytest.mark.engine
def test_a_connector_beside_a_fused_plan(open_engine: Any, make_plan: Any, tmp_path: Path) -> None:
    """With whole prompts: that connector stores no others."""
    from vllm.config import KVTransferConfig

    kept = {"kv_connector_extra_config": {"shared_storage_path": str(tmp_path / "kv")}}
    connector = {"kv_transfer_config": KVTransferConfig(**STORED, **kept)}
    with open_engine() as llm:
        expected = plain_tokens(llm)
    for _ in range(2):  # the second finds what the first stored
        with open_engine(make_plan((2048,)), **connector) as llm:
            assert plain_tokens(llm) == expected
    assert list((tmp_path / "kv").iterdir())


@pytest.mark.engine
def test_embeddings_beside_a_fused_plan(open_engine: Any, make_plan: Any) -> None:
    import torch

    prompts = [prompt(length, 1) for length in (5, 100, 700)]

    def embedded(llm: Any) -> Any:
        made = llm.embed(prompts, use_tqdm=False)
        return torch.tensor([each.outputs.embedding for each in made])

    pooling = {"runner": "pooling", "enable_chunked_prefill": True}
    with open_engine(**pooling) as llm:
        expected = embedded(llm)
    with open_engine(make_plan((64,)), **pooling) as llm:
        torch.testing.assert_close(embedded(llm), expected, rtol=1e-3, atol=1e-3)
