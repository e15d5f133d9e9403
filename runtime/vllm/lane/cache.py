"""The KV cache that the prefill lane needs: in all layers, blocks for every token."""

from collections.abc import Collection, Mapping
from dataclasses import fields, replace
from typing import Any

from vllm.v1.kv_cache_interface import (
    AttentionSpec,
    FullAttentionSpec,
    KVQuantMode,
    SlidingWindowSpec,
)

from nexus.core.errors import EngineError


def served_block_size(spec: Any) -> int:
    """Tokens of a block in a cache of ``spec``; raises EngineError where no lane serves it."""
    if type(spec) not in (FullAttentionSpec, SlidingWindowSpec):  # subclasses are other caches
        raise _unsupported(f"a KV cache of kind {type(spec).__name__}")
    if spec.kv_quant_mode is not KVQuantMode.NONE:
        raise _unsupported(f"a KV cache of kind {spec.kv_quant_mode.name}")
    if getattr(spec, "non_causal", False):
        raise _unsupported("attention that is not causal")
    if getattr(spec, "attention_chunk_size", None) is not None:
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
