"""Which graph a step with prompts runs as. The graphs themselves need a GPU."""

from itertools import pairwise
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from vllm.v1.core.sched.output import CachedRequestData, NewRequestData, SchedulerOutput

from nexus.core.attention import SPLIT_ATTENTION_MAX_CONTEXT
from nexus.runtime.vllm.graphs import mixed
from nexus.runtime.vllm.graphs.mixed import attention_for, longest_context
from nexus.runtime.vllm.graphs.phase_attention import most_decodes
from nexus.runtime.vllm.graphs.sizes import MOST_MIXED_TOKENS, sizes_up_to


def step(computed: dict[str, int], tokens: dict[str, int]) -> SchedulerOutput:
    """A step of requests that the worker knows."""
    names = list(computed)
    made = SchedulerOutput.make_empty()
    made.scheduled_cached_reqs = CachedRequestData(
        req_ids=names,
        resumed_req_ids=set(),
        new_token_ids=[],
        all_token_ids={},
        new_block_ids=[None for _ in names],
        num_computed_tokens=[computed[name] for name in names],
        num_output_tokens=[0 for _ in names],
    )
    made.num_scheduled_tokens = tokens
    made.total_num_scheduled_tokens = sum(tokens.values())
    return made


@pytest.mark.parametrize(
    ("computed", "tokens", "context"),
    [
        ({"decode": 9000, "prompt": 100}, {"decode": 1, "prompt": 64}, 100),
        ({"decode": 9000}, {"decode": 1}, 0),
        ({"first": 5000, "second": 70, "decode": 20}, {"first": 8, "second": 8, "decode": 1}, 5000),
        ({"decode": 9000}, {"decode": 1, "new": 50}, 0),
    ],
)
def test_the_longest_context_is_that_of_prompts(
    computed: dict[str, int], tokens: dict[str, int], context: int
) -> None:
    assert longest_context(step(computed, tokens)) == context


@pytest.mark.parametrize(("tokens", "context"), [(50, 4000), (1, 0)])
def test_a_new_prompt_may_begin_in_the_prefix_cache(tokens: int, context: int) -> None:
    made = step({"decode": 9, "known": 3}, {"decode": 1, "known": 2, "new": tokens})
    made.scheduled_new_reqs = [
        NewRequestData(
            req_id="new",
            prompt_token_ids=[0] * 4050,
            mm_features=[],
            sampling_params=None,
            pooling_params=None,
            block_ids=([],),
            num_computed_tokens=4000,
            lora_request=None,
        )
    ]
    assert longest_context(made) == max(context, 3)


def test_long_contexts_are_one_call() -> None:
    assert attention_for(0) == attention_for(SPLIT_ATTENTION_MAX_CONTEXT) == "per phase"
    assert attention_for(SPLIT_ATTENTION_MAX_CONTEXT + 1) == "joint"


@given(st.integers(1, 4096))
def test_sizes_hold_every_batch_and_decodes_fit_in_them(tokens: int) -> None:
    sizes = sizes_up_to(tokens)
    assert sizes == sorted(set(sizes))
    assert sizes[-1] == min(tokens, MOST_MIXED_TOKENS)
    assert all(0 < most_decodes(size) <= size for size in sizes)
    assert all(later - size <= 32 for size, later in pairwise(sizes))


@pytest.mark.parametrize(
    ("ms", "best"),
    [
        ({448: 17.2, 480: 14.4, 512: 14.7}, {448: 480, 480: 480, 512: 512}),
        ({32: 10.58, 64: 10.29, 96: 10.0}, {32: 96, 64: 64, 96: 96}),
        ({32: 6.8, 64: 7.1}, {32: 32, 64: 64}),
    ],
)
def test_a_slow_size_is_padded_to_a_faster_one(
    ms: dict[int, float], best: dict[int, int], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(mixed, "_replay_ms", lambda graph: graph)
    graphs: dict[int, Any] = dict(ms)
    assert mixed.fastest(graphs) == best
