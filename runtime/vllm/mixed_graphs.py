"""CUDA graphs of whole steps that hold prompts, for batches of a plan's fused modes.

vLLM replays such a step as one graph per piece between attention layers, and launches the
attention itself operator by operator: several milliseconds of host time, which a step of a
few hundred tokens does not last on the device. A backend whose attention can be captured for
any batch (FlashAttention 3) lets the whole step be one graph.
"""

from collections.abc import Callable, Sequence
from copy import copy
from dataclasses import fields, replace
from functools import wraps
from typing import Any

import numpy as np
import torch
from vllm.config.compilation import CUDAGraphMode

from nexus.errors import EngineError
from nexus.runtime.vllm.lane_attention import attention_in_graphs
from nexus.runtime.vllm.unsupported import refuse_unsupported


def new_graphs(runner: Any, sizes: Sequence[int], mode: CUDAGraphMode) -> Any:
    """A manager of vLLM's for graphs of each of ``sizes`` tokens, with none captured yet."""
    from vllm.v1.worker.gpu.cudagraph_utils import ModelCudaGraphManager

    config = copy(runner.vllm_config)
    config.compilation_config = copy(config.compilation_config)
    config.compilation_config.cudagraph_capture_sizes = sorted(set(sizes))
    config.compilation_config.max_cudagraph_capture_size = max(sizes)
    return ModelCudaGraphManager(
        config, runner.device, mode, decode_query_len=runner.decode_query_len
    )


def can_capture(runner: Any) -> bool:
    """Whether steps with prompts can be whole graphs with this model, backend and options."""
    try:
        refuse_unsupported(runner.vllm_config)
    except EngineError:
        return False
    return hasattr(runner, "cudagraph_manager") and attention_in_graphs(runner)


class MixedGraphs:
    """Takes the place of a runner's graph manager: its graphs, and those of mixed batches."""

    def __init__(self, runner: Any, sizes: Sequence[int]) -> None:
        """Capture graphs of ``sizes`` tokens and let ``runner`` use them from now on.

        ``runner`` is the worker's V2 model runner after start-up, one that ``can_capture``.
        """
        self._stock = runner.cudagraph_manager
        self._mixed = new_graphs(runner, sizes, CUDAGraphMode.FULL)
        runner.model_state.prepare_attn = self._longest_alike(runner.model_state.prepare_attn)
        self._in_use = True  # while capturing
        runner.cudagraph_manager = self._mixed
        try:
            runner.capture_model()
        finally:
            self._in_use = False
            runner.cudagraph_manager = self
        torch.cuda.synchronize(runner.device)

    @property
    def num_mixed(self) -> int:
        """Graphs of mixed batches."""
        return len(self._mixed.graphs)

    def dispatch(self, *batch: Any, **more: Any) -> Any:
        """As vLLM's; whole graphs where vLLM has only pieces."""
        found = self._stock.dispatch(*batch, **more)
        self._in_use = False
        if found.cg_mode is CUDAGraphMode.FULL:
            return found
        mixed = self._mixed.dispatch(*batch, **more)
        self._in_use = mixed.cg_mode is CUDAGraphMode.FULL
        return mixed if self._in_use else found

    def run_fullgraph(self, found: Any) -> Any:
        """Replay what ``dispatch`` found."""
        owner = self._mixed if self._in_use else self._stock
        self._in_use = False
        return owner.run_fullgraph(found)

    def __getattr__(self, name: str) -> Any:
        return getattr(self._stock, name)

    def _longest_alike(self, prepare: Callable[..., Any]) -> Callable[..., Any]:
        """``prepare``, told of mixed graphs that the longest query is of the whole batch.

        FlashAttention 3 takes another tile where the longest query is short, and plans a step
        for the tile: a graph has to be captured and replayed with the same one.
        """

        @wraps(prepare)
        def prepare_attn(input_batch: Any, *rest: Any, **more: Any) -> Any:
            if self._in_use:
                longest = input_batch.num_tokens_after_padding
                counts = np.full_like(input_batch.num_scheduled_tokens, longest)
                told = {"num_scheduled_tokens": counts, "max_query_len": longest}
                known = {field.name for field in fields(input_batch)}
                input_batch = replace(
                    input_batch, **{name: told[name] for name in told if name in known}
                )
            return prepare(input_batch, *rest, **more)

        return prepare_attn
