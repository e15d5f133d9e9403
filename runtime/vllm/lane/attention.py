"""What the lane needs of a model's attention: a KV cache that it can write, and metadata.

In all layers of the cache there are blocks for every token; attention metadata of a pass comes
from builders that are the lane's own.
"""

from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, fields, replace
from typing import Any

import torch

from nexus.core.errors import EngineError
from nexus.runtime.vllm.compat import (
    GROUPS_BUILD_METADATA,
    NO_LENGTHS_ON_HOST,
    AttentionSpec,
    CommonAttentionMetadata,
    FullAttentionSpec,
    KVQuantMode,
    SlidingWindowSpec,
    prepare_kernel_block_sizes,
    since,
)
from nexus.runtime.vllm.graphs.attention_groups import attention_in_graphs, one_split, own_groups
from nexus.runtime.vllm.lane.pass_inputs import BLOCK_COLUMNS, FlatRows, PassTensors


@dataclass(frozen=True)
class Attention:
    """What a forward pass finds in its context: by layer, metadata and KV cache slots."""

    metadata: dict[str, Any]
    slots: dict[str, torch.Tensor]


class LaneAttention:
    """The attention layers of one model runner, as the lane uses them."""

    def __init__(self, runner: Any) -> None:
        """``runner`` is the worker's model runner, with its KV cache in place.

        Raises EngineError for a KV cache that no lane serves.
        """
        self._config = runner.vllm_config
        self._groups = own_groups(runner)
        self._layers = [list(group.layer_names) for group in _cache_groups(runner)]
        self.block_sizes = [
            served_block_size(group.kv_cache_spec) for group in _cache_groups(runner)
        ]
        self.splits = _kernel_blocks_per_block(runner, self.block_sizes)
        self._max_seq_len = int(self._config.model_config.max_model_len)
        self.in_graphs = attention_in_graphs(runner)

    @property
    def columns(self) -> list[int]:
        """Of the block table of the longest request, per KV cache group."""
        blocks = [-(-self._max_seq_len // size) for size in self.block_sizes]
        counts = [count * split for count, split in zip(blocks, self.splits, strict=True)]
        return [-(-count // BLOCK_COLUMNS) * BLOCK_COLUMNS for count in counts]

    def one_split(self, max_tokens: int) -> None:
        """Let no pass of up to ``max_tokens`` split a row's keys over several thread blocks.

        How many splits pay depends on lengths that a graph does not know; the many queries
        of a chunk fill the SMs without any.
        """
        one_split(self._groups, max_tokens)

    def build(self, batch: FlatRows, tensors: PassTensors) -> Attention:
        """For an eager pass over ``batch``, which ``tensors`` hold without padding."""
        return self._build(batch, tensors, batch.max_query_len, batch.max_seq_len)

    def build_for_graph(
        self, batch: FlatRows, tensors: PassTensors, *, capture: bool = False
    ) -> Attention:
        """For a graph of the size of ``tensors``, which hold ``batch`` with padding.

        The longest row is said to be as long as any that the graph may ever run.
        """
        longest = len(tensors.input_ids)
        return self._build(batch, tensors, longest, self._max_seq_len, capture)

    def _build(
        self,
        batch: FlatRows,
        tensors: PassTensors,
        max_query_len: int,
        max_seq_len: int,
        capture: bool = False,
    ) -> Attention:
        common = _common(batch, tensors, max_query_len, max_seq_len)
        attention = Attention({}, {})
        for index, groups in enumerate(self._groups):
            shared = CommonAttentionMetadata(
                **common,
                block_table_tensor=tensors.block_tables[index],
                slot_mapping=tensors.slots[index],
            )
            for group in groups:
                built = _built(group, shared, capture)
                attention.metadata.update(dict.fromkeys(group.layer_names, built))
            attention.slots.update(dict.fromkeys(self._layers[index], tensors.slots[index]))
        return attention


def _common(
    batch: FlatRows, tensors: PassTensors, max_query_len: int, max_seq_len: int
) -> dict[str, Any]:
    rows = len(tensors.seq_lens)
    starts = _padded(batch.query_start_loc, rows + 1, int(batch.query_start_loc[-1]))
    seq_lens = _padded(batch.seq_lens, rows, 0)
    common = {
        "query_start_loc": tensors.query_start_loc,
        "query_start_loc_cpu": starts,
        "seq_lens": tensors.seq_lens,
        "seq_lens_cpu_upper_bound": seq_lens,
        "num_reqs": rows,
        "num_actual_tokens": len(tensors.input_ids),
        "max_query_len": max_query_len,
        "max_seq_len": max_seq_len,
        "causal": True,
        "positions": tensors.positions,
        "is_prefilling": torch.ones(rows, dtype=torch.bool),
    }
    if not since(NO_LENGTHS_ON_HOST):
        contexts = _padded(batch.contexts, rows, 0)
        common |= {"_seq_lens_cpu": seq_lens, "_num_computed_tokens_cpu": contexts}
    return common


def _padded(values: Any, length: int, pad: int) -> torch.Tensor:
    tensor = torch.full((length,), pad, dtype=torch.int32)
    tensor[: len(values)] = torch.from_numpy(values)
    return tensor


def _built(group: Any, common: CommonAttentionMetadata, capture: bool) -> Any:
    if since(GROUPS_BUILD_METADATA):
        if capture:
            return group.build_metadata_for_cudagraph_capture(common)
        return group.build_metadata(common)
    builder = group.get_metadata_builder(0)
    if capture:
        return builder.build_for_cudagraph_capture(common)
    return builder.build(common_prefix_len=0, common_attn_metadata=common)


def _cache_groups(runner: Any) -> list[Any]:
    return list(runner.kv_cache_config.kv_cache_groups)


def _kernel_blocks_per_block(runner: Any, block_sizes: Sequence[int]) -> list[int]:
    sizes = prepare_kernel_block_sizes(runner.kv_cache_config, runner.attn_groups)
    return [block // kernel for block, kernel in zip(block_sizes, sizes, strict=True)]


def served_block_size(spec: Any) -> int:
    """Tokens of a block in a cache of ``spec``; raises EngineError where no lane serves it."""
    if type(spec) not in (FullAttentionSpec, SlidingWindowSpec):  # subclasses are other caches
        raise _unsupported(f"a KV cache of kind {type(spec).__name__}")
    if spec.kv_quant_mode is not KVQuantMode.NONE:
        raise _unsupported(f"a KV cache of kind {spec.kv_quant_mode.name}")
    if type(spec) is FullAttentionSpec and spec.non_causal:
        raise _unsupported("attention that is not causal")
    if type(spec) is FullAttentionSpec and spec.attention_chunk_size is not None:
        raise _unsupported("chunked local attention")
    return int(spec.block_size)


def whole_cache(specs: Mapping[str, Any], layers: Collection[str]) -> dict[str, Any]:
    """What ``specs`` by layer say, with blocks for every token; ``layers`` are all that attend.

    vLLM gives a request whose KV is yet to be received no blocks for what a sliding window
    has left behind at its end. The lane computes those tokens too, into blocks of their own
    for later ones to read. So layers with a window are managed as those without, as vLLM does
    beside a KV connector where a model has both; they attend within their windows all the same.
    Raises EngineError for layers that the lane does not serve.
    """
    if set(layers) - specs.keys():
        raise _unsupported("layers that share a KV cache or have none")
    sizes = {name: served_block_size(spec) for name, spec in specs.items()}
    full = [sizes[name] for name, spec in specs.items() if type(spec) is FullAttentionSpec]
    whole = {
        name: _whole(spec, full[0] if full and type(spec) is SlidingWindowSpec else sizes[name])
        for name, spec in specs.items()
    }
    windows = {spec.sliding_window for spec in whole.values()} - {None}
    if len(windows) > 1 or len({replace(spec, sliding_window=None) for spec in whole.values()}) > 1:
        raise _unsupported("layers whose KV caches or sliding windows differ")
    return whole


def _whole(spec: Any, block_size: int) -> FullAttentionSpec:
    common = {each.name: getattr(spec, each.name) for each in fields(AttentionSpec) if each.init}
    window = spec.sliding_window
    return FullAttentionSpec(**common | {"block_size": block_size}, sliding_window=window)


def _unsupported(what: str) -> EngineError:
    return EngineError(f"the prefill lane does not support {what}")
