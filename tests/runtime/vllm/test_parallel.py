"""One engine on two ranks (on a CPU: two processes): it is profiled, and serves a plan."""

import random
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch

from nexus.profiles.schema import read_profile

CHUNK = 96


@pytest.fixture
def same_threads() -> Iterator[None]:
    """vLLM leaves a process that has workers with a single thread of its own."""
    before = torch.get_num_threads()
    yield
    torch._C.set_num_threads(before)


@pytest.mark.engine
@pytest.mark.usefixtures("same_threads")
def test_two_ranks_are_profiled_and_have_stock_s_tokens_and_the_plan_s_batches(
    open_engine: Any,
    make_plan: Any,
    tiny_model: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    from nexus.profiler import session

    path = tmp_path / "profile.yaml"
    asked = (str(tiny_model), ["--tensor-parallel-size", "2"], path, "nexus profile", "2026-01-01")
    generator = random.Random(1)
    lengths = [generator.choice((5, 20, 60, 200, 600, 1500)) for _ in range(50)]
    prompts = [[generator.randrange(3, 500) for _ in range(length)] for length in lengths]
    with open_engine() as llm:
        expected = generated(llm, prompts)
    two = {"tensor_parallel_size": 2, "worker_extension_cls": session.WORKER_EXTENSION}
    with open_engine(make_plan((CHUNK,)), **two) as llm:
        monkeypatch.setattr(session, "start_engine", lambda *_: llm.llm_engine)
        with session.open_session(*asked, fresh=True) as run:
            run.measure(0.01, lambda *_: None)
            steps = recorded(llm)
            assert generated(llm, prompts) == expected
    # Decodes and prompts fill the batch, as long as there are prompts.
    assert max(steps) == CHUNK
    assert sum(step == CHUNK for step in steps) >= sum(lengths) // CHUNK - len(prompts)

    profile = read_profile(path)
    assert profile.engine.tensor_parallel_size == 2
    assert (profile.model.num_heads, profile.model.num_kv_heads) == (2, 1)  # not a rank's
    assert {sample.mode for sample in profile.measured} == {"prefill", "decode", "fused"}
    for sample in profile.samples:
        assert sample.error is None
        assert sample.repeats >= 3
        assert max(sample.prefill_sms, sample.decode_sms) == profile.machine.sms
        assert sample.rank_spread_ms is not None


def generated(llm: Any, prompts: list[list[int]]) -> list[list[int]]:
    from vllm import SamplingParams

    params = SamplingParams(temperature=0, max_tokens=8, ignore_eos=True)
    wanted = [{"prompt_token_ids": prompt} for prompt in prompts]
    return [list(out.outputs[0].token_ids) for out in llm.generate(wanted, params, use_tqdm=False)]


def recorded(llm: Any) -> list[int]:
    """The tokens of each step from now on."""
    scheduler = llm.llm_engine.engine_core.engine_core.scheduler
    schedule, steps = scheduler.schedule, []

    def scheduled(*args: Any, **kwargs: Any) -> Any:
        output = schedule(*args, **kwargs)
        steps.append(output.total_num_scheduled_tokens)
        return output

    scheduler.schedule = scheduled
    return steps
