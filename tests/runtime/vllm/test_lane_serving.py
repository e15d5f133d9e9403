"""Serving through the prefill lane on real vLLM: same tokens, nothing lost."""

import random
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest

from nexus.planner.table import Mode, read_plan, write_plan

pytestmark = pytest.mark.engine

OVERLAP = Mode("overlap", 256, prefill_sms=1)
SPLIT = Mode("split", 96, prefill_sms=1, decode_sms=1)
FUSED = Mode("fused", 64)


@pytest.fixture
def lane_plan(make_plan: Any, tmp_path: Path) -> Any:
    """Writes a plan whose states take the given modes in turn."""

    def make(modes: Sequence[Mode]) -> Path:
        from dataclasses import replace

        plan = read_plan(make_plan((64,)))
        names = [mode.name for mode in modes]
        rows = tuple(
            replace(row, mode=names[index % len(names)]) for index, row in enumerate(plan.rows)
        )
        path = tmp_path / f"{'-'.join(names)}.yaml"
        write_plan(path, replace(plan, modes=dict(zip(names, modes, strict=True)), rows=rows))
        return path

    return make


def mixed_prompts(count: int, seed: int = 1) -> list[list[int]]:
    """Prompts of many lengths, a third of them with a beginning in common."""
    generator = random.Random(seed)
    start = [generator.randrange(3, 500) for _ in range(150)]
    prompts = []
    for index in range(count):
        length = generator.choice((2, 20, 33, 60, 200, 600, 1500))
        prompt = [generator.randrange(3, 500) for _ in range(length)]
        prompts.append(start + prompt if index % 3 == 0 else prompt)
    return prompts


def generate(llm: Any, wanted: list[list[int]], max_tokens: int = 8) -> list[tuple[int, ...]]:
    from vllm import SamplingParams

    params = SamplingParams(temperature=0, max_tokens=max_tokens, ignore_eos=True)
    outputs = llm.generate(
        [{"prompt_token_ids": prompt} for prompt in wanted], params, use_tqdm=False
    )
    return [tuple(output.outputs[0].token_ids) for output in outputs]


@pytest.fixture(scope="module")
def stock_tokens() -> dict[str, list[tuple[int, ...]]]:
    """Filled by the first test that runs stock vLLM, read by the others."""
    return {}


@pytest.mark.parametrize("caching", [True, False], ids=["prefix caching", "no prefix caching"])
@pytest.mark.parametrize("modes", [(OVERLAP,), (SPLIT, FUSED)], ids=["overlap", "split and fused"])
def test_same_tokens_as_stock_vllm(
    open_engine: Any, lane_plan: Any, stock_tokens: Any, modes: tuple[Mode, ...], caching: bool
) -> None:
    wanted = mixed_prompts(200)
    if not stock_tokens:
        with open_engine(enable_prefix_caching=False) as llm:
            stock_tokens["tokens"] = generate(llm, wanted)
    with open_engine(lane_plan(modes), lane=True, enable_prefix_caching=caching) as llm:
        assert generate(llm, wanted) == stock_tokens["tokens"]
