"""The attention groups of a model runner: layers of one kind, and what builds their metadata."""

from collections.abc import Sequence
from dataclasses import replace
from typing import Any

from nexus.runtime.vllm.compat import (
    AttentionCGSupport,
    prepare_kernel_block_sizes,
    set_current_vllm_config,
)


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
    from nexus.runtime.vllm.compat import FlashAttentionMetadataBuilder  # of a GPU's vLLM

    for builder in (group.get_metadata_builder(0) for each in groups for group in each):
        if isinstance(builder, FlashAttentionMetadataBuilder):  # others have no such limit
            builder.max_num_splits = 1
            builder.max_cudagraph_size = max(builder.max_cudagraph_size or 0, max_tokens)


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
