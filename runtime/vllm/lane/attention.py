"""Attention metadata for passes on the prefill lane, from builders that are the lane's own."""

from collections.abc import Sequence
from dataclasses import dataclass, fields, replace
from typing import Any

import torch
from vllm.config import set_current_vllm_config
from vllm.v1.attention.backend import AttentionCGSupport, CommonAttentionMetadata
from vllm.v1.worker.utils import prepare_kernel_block_sizes

from nexus.runtime.vllm.lane.cache import served_block_size
from nexus.runtime.vllm.lane.pass_inputs import PassTensors
from nexus.runtime.vllm.lane.rows import BLOCK_COLUMNS, FlatRows


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
        "_seq_lens_cpu": seq_lens,
        "_num_computed_tokens_cpu": _padded(batch.contexts, rows, 0),
        "num_reqs": rows,
        "num_actual_tokens": len(tensors.input_ids),
        "max_query_len": max_query_len,
        "max_seq_len": max_seq_len,
        "causal": True,
        "positions": tensors.positions,
        "is_prefilling": torch.ones(rows, dtype=torch.bool),
    }
    known = {field.name for field in fields(CommonAttentionMetadata)}
    return {name: value for name, value in common.items() if name in known}


def _padded(values: Any, length: int, pad: int) -> torch.Tensor:
    tensor = torch.full((length,), pad, dtype=torch.int32)
    tensor[: len(values)] = torch.from_numpy(values)
    return tensor


def _built(group: Any, common: CommonAttentionMetadata, capture: bool) -> Any:
    if hasattr(group, "build_metadata"):  # newer releases map block tables here
        if capture:
            return group.build_metadata_for_cudagraph_capture(common)
        return group.build_metadata(common)
    builder = group.get_metadata_builder(0)
    if capture:
        return builder.build_for_cudagraph_capture(common)
    return builder.build(common_prefix_len=0, common_attn_metadata=common)


def attention_in_graphs(runner: Any) -> bool:
    """Whether CUDA graphs may hold the runner's attention for any batch."""
    config = runner.vllm_config
    mode = config.compilation_config.cudagraph_mode
    return bool(mode is not None and mode.has_full_cudagraphs()) and all(
        group.get_metadata_builder(0).get_cudagraph_support(config, group.kv_cache_spec)
        == AttentionCGSupport.ALWAYS
        for groups in runner.attn_groups
        for group in groups
    )


def one_split(groups: Sequence[Sequence[Any]], max_tokens: int) -> None:
    """Let builders plan batches of up to ``max_tokens`` without splits of a row's keys."""
    for builder in (group.get_metadata_builder(0) for each in groups for group in each):
        if hasattr(builder, "max_num_splits"):  # FlashAttention's
            builder.max_num_splits = 1
            builder.max_cudagraph_size = max(builder.max_cudagraph_size or 0, max_tokens)


def _cache_groups(runner: Any) -> list[Any]:
    return list(runner.kv_cache_config.kv_cache_groups)


def _kernel_blocks_per_block(runner: Any, block_sizes: Sequence[int]) -> list[int]:
    sizes = prepare_kernel_block_sizes(runner.kv_cache_config, runner.attn_groups)
    return [block // kernel for block, kernel in zip(block_sizes, sizes, strict=True)]


def own_groups(runner: Any) -> list[list[Any]]:
    """The runner's attention groups with metadata builders of their own."""
    sizes = prepare_kernel_block_sizes(runner.kv_cache_config, runner.attn_groups)
    copies = [
        [replace(group, metadata_builders=[]) for group in groups] for groups in runner.attn_groups
    ]
    with set_current_vllm_config(runner.vllm_config):
        for groups, size in zip(copies, sizes, strict=True):
            for group in groups:
                group.create_metadata_builders(
                    runner.vllm_config, runner.device, size, num_metadata_builders=1
                )
    return copies
