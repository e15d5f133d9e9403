"""Attention of a batch with both phases in it, for CUDA graphs of whole steps.

FlashAttention 3 chooses its tile by the longest query of a batch. Beside a prompt, decodes
run in a prompt's tile and with fewer splits of their keys, and take a quarter longer. In two
calls, decodes first, each phase has the kernel that it has alone: both calls see the whole
batch, and the rows of the other phase have no queries. Prompts then have no splits, which
costs them more the longer the context before them is, up to where one call is better.
"""

from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import wraps
from typing import Any, Literal

import numpy as np
import torch

from nexus.runtime.vllm.compat import RUNNER_TAKES_LONGEST_QUERY, since
from nexus.runtime.vllm.graphs.attention_groups import attention_in_graphs, one_split, own_groups

AttentionKind = Literal["stock", "joint", "per phase"]

_FEW_DECODES = 64


@dataclass(frozen=True)
class Phases:
    """Attention metadata of a layer, for each phase."""

    decode: Any
    prompts: Any


class PhaseAttention:
    """Lets a runner's attention run any ``way``; one instance per worker.

    A graph is captured and replayed the same kind. In ``joint`` the longest query is said to
    be of the whole batch, as the kernel depends on it; ``stock`` says what is.
    """

    def __init__(self, runner: Any, max_tokens: int) -> None:
        """``runner`` is one whose attention ``can_split``; batches have up to ``max_tokens``."""
        self.kind: AttentionKind = "stock"
        self._stock_groups = runner.attn_groups
        self._groups = own_groups(runner)
        one_split(self._groups, max_tokens)
        rows = int(runner.vllm_config.scheduler_config.max_num_seqs)
        self._starts = torch.zeros(2, rows + 1, dtype=torch.int32, device=runner.device)
        runner.model_state.prepare_attn = self._prepared(runner.model_state.prepare_attn)
        layers = runner.compilation_config.static_forward_context
        for groups in self._groups:
            for name in (name for group in groups for name in group.layer_names):
                layers[name].impl.forward = _in_phases(layers[name].impl.forward)

    def forget(self) -> None:
        """Leave no attention to compute for a graph that is replayed before the next step."""
        self._starts.zero_()
        for groups in (*self._groups, *self._stock_groups):
            for group in groups:
                builder = group.get_metadata_builder(0)
                if builder.aot_schedule:
                    builder.scheduler_metadata.zero_()

    def _prepared(self, prepare: Callable[..., Any]) -> Callable[..., Any]:
        @wraps(prepare)
        def prepare_attn(
            batch: Any, mode: Any, tables: Any, slots: Any, groups: Any, cache: Any, **more: Any
        ) -> Any:
            def prepared(starts: torch.Tensor, longest: int, built_by: Any) -> Any:
                told = _with_queries(batch, starts, longest)
                return prepare(told, mode, tables, slots, built_by, cache, **more)

            longest = batch.num_tokens_after_padding
            if self.kind == "stock":
                return prepare(batch, mode, tables, slots, groups, cache, **more)
            if self.kind == "joint":
                return prepared(batch.query_start_loc, longest, groups)
            few = most_decodes(longest)
            decodes, prompts = self._parted(batch, few)
            of_decodes = prepared(decodes, 1, groups)
            of_prompts = prepared(prompts, longest, self._groups)
            return {
                name: Phases(replace(of_decodes[name], num_actual_tokens=few), of_prompts[name])
                for name in of_decodes
            }

        return prepare_attn

    def _parted(self, batch: Any, most: int) -> tuple[torch.Tensor, torch.Tensor]:
        """Where queries start and end for each phase, ``most`` decodes at most."""
        rows = batch.num_reqs_after_padding
        # The runner puts rows of one token first.
        count = min(int((batch.num_scheduled_tokens == 1).sum()), most)
        starts, parted = batch.query_start_loc[: rows + 1], self._starts[:, : rows + 1]
        torch.clamp(starts, max=count, out=parted[0])
        torch.clamp(starts, min=count, out=parted[1])
        return parted[0], parted[1]


def most_decodes(tokens: int) -> int:
    """Sequences that decode with their own kernel in a batch of ``tokens``; others go with prompts.

    What splits of their keys gave is put together for so many, whether they are there or not.
    """
    return min(tokens, max(_FEW_DECODES, tokens // 2))


def can_split(runner: Any) -> bool:
    """Whether the runner's attention is FlashAttention 3, in CUDA graphs of any batch."""
    if not attention_in_graphs(runner):
        return False
    from nexus.runtime.vllm.compat import FlashAttentionImpl, FlashAttentionMetadataBuilder

    def is_version_3(attention: Any) -> bool:
        of_kind = isinstance(attention, FlashAttentionImpl)
        return of_kind and attention.vllm_flash_attn_version == 3

    layers = runner.compilation_config.static_forward_context
    return all(
        isinstance(group.get_metadata_builder(0), FlashAttentionMetadataBuilder)
        and all(is_version_3(layers[name].impl) for name in group.layer_names)
        for groups in runner.attn_groups
        for group in groups
    )


def _with_queries(batch: Any, starts: torch.Tensor, longest: int) -> Any:
    """The batch with its queries at ``starts``, the longest said to have ``longest`` tokens."""
    changed = {
        "query_start_loc": starts,
        "num_scheduled_tokens": np.full_like(batch.num_scheduled_tokens, longest),
    }
    if since(RUNNER_TAKES_LONGEST_QUERY):
        changed["max_query_len"] = longest
    return replace(batch, **changed)


def _in_phases(forward: Callable[..., Any]) -> Callable[..., Any]:
    @wraps(forward)
    def both(
        layer: Any,
        query: torch.Tensor,
        key: torch.Tensor,
        value: torch.Tensor,
        kv_cache: torch.Tensor,
        attn_metadata: Any,
        **more: Any,
    ) -> Any:
        tensors = (layer, query, key, value, kv_cache)
        if not isinstance(attn_metadata, Phases):
            return forward(*tensors, attn_metadata, **more)
        # What decodes' splits leave in prompts' rows is overwritten.
        forward(*tensors, attn_metadata.decode, **more)
        return forward(*tensors, attn_metadata.prompts, **more)

    return both
