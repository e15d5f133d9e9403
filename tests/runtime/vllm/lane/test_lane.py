"""The prefill lane against vLLM's own prefill, in a real engine (on a GPU if there is one)."""

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

pytestmark = pytest.mark.engine

PROMPT = [(31 * position + 7) % 500 for position in range(75)]


@pytest.fixture(scope="module")
def llm(tiny_model: Path) -> Iterator[Any]:
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("VLLM_ENABLE_V1_MULTIPROCESSING", "0")
        import torch
        from vllm import LLM
        from vllm.distributed import cleanup_dist_env_and_memory

        engine = LLM(
            model=str(tiny_model),
            dtype="bfloat16" if torch.cuda.is_available() else "float32",
            enable_prefix_caching=False,
            enforce_eager=True,
            kv_cache_memory_bytes=1 << 26,
            max_model_len=2048,
            max_num_batched_tokens=2048,
        )
        yield engine
        engine.llm_engine.engine_core.shutdown()
        del engine
        cleanup_dist_env_and_memory()


def _tolerance() -> float:
    import torch

    return 0.02 if torch.cuda.is_available() else 1e-4


def _first_token_logprobs(llm: Any) -> dict[int, float]:
    from vllm import SamplingParams

    params = SamplingParams(temperature=0.0, max_tokens=1, logprobs=20, detokenize=False)
    (output,) = llm.generate({"prompt_token_ids": PROMPT}, params, use_tqdm=False)
    return {token: entry.logprob for token, entry in output.outputs[0].logprobs[0].items()}


def _lane_logprobs(worker: Any, chunks: list[int], block: int) -> dict[int, float]:
    import torch

    from nexus.runtime.vllm.lane.pass_inputs import Row
    from nexus.runtime.vllm.lane.prefill_lane import PrefillLane

    lane = PrefillLane(worker.model_runner)
    size = worker.model_runner.kv_cache_config.kv_cache_groups[0].kv_cache_spec.block_size
    blocks = (list(range(block, block - len(PROMPT) // size - 1, -1)),)  # in no easy order
    done = 0
    for chunk in chunks:
        passed = lane.forward([Row(PROMPT[done : done + chunk], done, blocks)])
        passed.wait()
        assert passed.finished()
        done += chunk
    with torch.inference_mode():
        logits = worker.model_runner.model.compute_logits(passed.hidden_states[-1:])
    values = torch.log_softmax(logits.float(), dim=-1)[0].tolist()
    return dict(enumerate(values))


@pytest.mark.parametrize("chunks", [[75], [32, 43], [1, 16, 17, 41]])
def test_lane_computes_what_vllm_computes(llm: Any, chunks: list[int]) -> None:
    expected = _first_token_logprobs(llm)
    (found,) = llm.collective_rpc(_lane_logprobs, args=(chunks, 40))
    for token, logprob in expected.items():
        assert found[token] == pytest.approx(logprob, abs=_tolerance())


def _two_rows(worker: Any) -> bool:
    import torch

    from nexus.runtime.vllm.lane.pass_inputs import Row
    from nexus.runtime.vllm.lane.prefill_lane import PrefillLane

    lane = PrefillLane(worker.model_runner)
    first = Row(PROMPT[:40], 0, (list(range(1, 5)),))
    second = Row(PROMPT[5:60], 0, (list(range(11, 16)),))
    alone = torch.cat([lane.forward([row]).hidden_states for row in (first, second)])
    together = lane.forward([first, second]).hidden_states
    return bool(torch.allclose(alone, together, atol=_tolerance()))


def test_rows_do_not_see_each_other(llm: Any) -> None:
    assert llm.collective_rpc(_two_rows) == [True]


def _limits_of_one_sequence(worker: Any) -> tuple[int, int]:
    from nexus.runtime.vllm.lane.prefill_lane import PrefillLane

    config = worker.model_runner.vllm_config
    scheduling = config.scheduler_config
    before = scheduling.max_num_seqs, scheduling.max_num_batched_tokens
    scheduling.max_num_seqs, scheduling.max_num_batched_tokens = 1, 5000
    try:
        return PrefillLane(worker.model_runner).max_tokens, config.model_config.max_model_len
    finally:
        scheduling.max_num_seqs, scheduling.max_num_batched_tokens = before


def test_a_pass_is_no_longer_than_its_rows_can_be(llm: Any) -> None:
    ((max_tokens, max_model_len),) = llm.collective_rpc(_limits_of_one_sequence)
    assert max_tokens == max_model_len < 5000


def _steps_after_lane(worker: Any) -> None:
    from nexus.runtime.vllm.lane.pass_inputs import Row
    from nexus.runtime.vllm.lane.prefill_lane import PrefillLane

    PrefillLane(worker.model_runner).forward([Row(PROMPT, 0, (list(range(50, 60)),))])


def test_lane_leaves_vllm_as_it_was(llm: Any) -> None:
    before = _first_token_logprobs(llm)
    llm.collective_rpc(_steps_after_lane)
    assert _first_token_logprobs(llm) == pytest.approx(before, abs=_tolerance())
