"""Whole engine steps of chosen shape, run in vLLM's own worker.

A step is what the scheduler would have sent: a ``SchedulerOutput`` with one prompt
chunk at some context, some decoding sequences at theirs, or both. The worker runs it
through its ordinary ``execute_model`` and ``sample_tokens``, so kernels, graphs,
input preparation and sampling are those of serving. The KV cache below a context
holds whatever it holds: values do not change the time of a dense step.
"""

import itertools
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

from nexus.runtime.vllm.compat import (
    NO_COMMON_PREFIXES,
    AsyncModelRunnerOutput,
    CachedRequestData,
    NewRequestData,
    SamplingParams,
    SchedulerOutput,
    since,
)

_NULL_BLOCK = 0  # vLLM keeps it for padding, and for what a sliding window has left behind


@dataclass
class _Sequence:
    """A request that the worker knows: its id, KV blocks and tokens computed."""

    req_id: str
    blocks: tuple[list[int], ...]
    computed: int
    generated: int = 0


class StepDriver:
    """Feeds one worker with steps; owns the KV blocks and requests that it made up."""

    def __init__(self, worker: Any) -> None:
        """``worker`` is a vLLM worker after start-up, with no request of its own."""
        self._worker = worker
        config = worker.model_runner.kv_cache_config
        parallel = worker.vllm_config.parallel_config
        ranks = parallel.decode_context_parallel_size * parallel.prefill_context_parallel_size
        # Of each KV cache group: its kind, and the tokens that a block is for, on all ranks.
        self._groups = [
            (group.kv_cache_spec, ranks * int(group.kv_cache_spec.block_size))
            for group in config.kv_cache_groups
        ]
        self._num_blocks = int(config.num_blocks)
        vocabulary = int(worker.model_config.get_vocab_size())
        longest = int(worker.model_config.max_model_len)
        self._prompt = [(7 * position + 11) % vocabulary for position in range(longest)]
        self._next_block = _NULL_BLOCK + 1
        self._names = (f"nexus-{number}" for number in itertools.count())
        self._decodes: list[_Sequence] = []
        self._stale: set[str] = set()

    def begin(self, decode_batch: int, decode_context: int, steps: int) -> None:
        """Start over with ``decode_batch`` sequences of ``decode_context`` tokens.

        They get blocks for ``steps`` more tokens. Raises MemoryError when the KV cache
        cannot hold them.
        """
        self._stale |= {sequence.req_id for sequence in self._decodes}
        self._next_block = _NULL_BLOCK + 1
        self._decodes = [
            self._sequence(decode_context, decode_context + steps + 1) for _ in range(decode_batch)
        ]

    def run(self, chunk: int = 0, prefill_context: int = 0) -> None:
        """One step: a token for each decode, and ``chunk`` prompt tokens if any.

        Returns when the step's tokens are sampled and on the host.
        """
        mark, stale = self._next_block, self._stale
        prefill = [self._sequence(prefill_context, prefill_context + chunk)] if chunk else []
        try:
            self._execute(self._step(prefill, chunk))
        except Exception:
            self._stale |= stale  # a step that failed may not have forgotten them
            raise
        finally:
            self._next_block = mark
            self._stale |= {sequence.req_id for sequence in prefill}

    def end(self) -> None:
        """Make the worker forget every request that the driver made up."""
        self._stale |= {sequence.req_id for sequence in self._decodes}
        self._decodes = []
        self._execute(_scheduler_output([], CachedRequestData.make_empty(), {}, self._stale))
        self._stale = set()

    def _sequence(self, computed: int, total: int) -> _Sequence:
        blocks = []
        for spec, size in self._groups:
            unseen = _tokens_out_of_window(spec, computed) // size
            count = -(-total // size) - unseen
            if self._next_block + count > self._num_blocks:
                raise MemoryError("the KV cache is too small for this point")
            used = range(self._next_block, self._next_block + count)
            blocks.append([_NULL_BLOCK] * unseen + list(used))
            self._next_block += count
        return _Sequence(next(self._names), tuple(blocks), computed)

    def _step(self, prefill: list[_Sequence], chunk: int) -> SchedulerOutput:
        fresh = [seq for seq in self._decodes if seq.generated == 0]
        known = [seq for seq in self._decodes if seq.generated > 0]
        tokens = {seq.req_id: 1 for seq in self._decodes} | {seq.req_id: chunk for seq in prefill}
        new = [self._new_request(seq, tokens[seq.req_id]) for seq in (*fresh, *prefill)]
        cached = CachedRequestData(
            req_ids=[seq.req_id for seq in known],
            resumed_req_ids=set(),
            new_token_ids=[],
            all_token_ids={},
            new_block_ids=[None for _ in known],
            num_computed_tokens=[seq.computed for seq in known],
            num_output_tokens=[seq.generated for seq in known],
        )
        step = _scheduler_output(new, cached, tokens, self._stale)
        self._stale = set()
        for seq in self._decodes:
            seq.computed += 1
            seq.generated += 1
        return step

    def _new_request(self, seq: _Sequence, tokens: int) -> NewRequestData:
        prompt = self._prompt[: seq.computed + tokens]
        return NewRequestData(
            req_id=seq.req_id,
            prompt_token_ids=prompt,
            prefill_token_ids=prompt,
            mm_features=[],
            sampling_params=SamplingParams(temperature=0.0, ignore_eos=True, max_tokens=1 << 20),
            pooling_params=None,
            block_ids=seq.blocks,
            num_computed_tokens=seq.computed,
            lora_request=None,
        )

    def _execute(self, step: SchedulerOutput) -> None:
        output = self._worker.execute_model(step)
        if output is None:
            output = self._worker.sample_tokens(None)
        if isinstance(output, AsyncModelRunnerOutput):  # wait for the tokens
            output.get_output()


def _tokens_out_of_window(spec: Any, computed: int) -> int:
    """How many tokens of a sequence no token after its first ``computed`` sees any more."""
    window = getattr(spec, "sliding_window", None)
    return max(0, computed - window + 1) if window else 0


def _scheduler_output(
    new: list[NewRequestData],
    cached: CachedRequestData,
    tokens: dict[str, int],
    finished: Iterable[str],
) -> SchedulerOutput:
    step = SchedulerOutput.make_empty()
    step.scheduled_new_reqs = new
    step.scheduled_cached_reqs = cached
    step.num_scheduled_tokens = tokens
    step.total_num_scheduled_tokens = sum(tokens.values())
    step.finished_req_ids = set(finished)
    if not since(NO_COMMON_PREFIXES):
        groups = len(new[0].block_ids) if new else 1
        step.num_common_prefix_blocks = [0] * groups
    return step
