"""CUDA graphs of whole steps that hold prompts, for batches of a plan's fused modes.

vLLM replays such a step as one graph per piece between attention layers, and launches the
attention itself operator by operator: several milliseconds of host time, which a step of a
few hundred tokens does not last on the device. FlashAttention 3 can be captured for any
batch, so that the whole step is one graph.
"""

from bisect import bisect_left
from collections.abc import Callable, Mapping, Sequence
from copy import copy
from functools import wraps
from itertools import pairwise
from typing import Any

import torch

from nexus.core.attention import SPLIT_ATTENTION_MAX_CONTEXT
from nexus.core.errors import EngineError
from nexus.runtime.vllm.compat import CUDAGraphMode
from nexus.runtime.vllm.graphs.phase_attention import AttentionKind, PhaseAttention, can_split
from nexus.runtime.vllm.support.unsupported import refuse_unsupported

_KINDS: tuple[AttentionKind, ...] = ("joint", "per phase")
_REPLAYS = 3
_WORTH_IT = 1.03  # a size is padded to a larger one that is faster by so much


def new_graphs(runner: Any, sizes: Sequence[int], mode: CUDAGraphMode) -> Any:
    """A manager of vLLM's for graphs of each of ``sizes`` tokens, with none captured yet."""
    from nexus.runtime.vllm.compat import ModelCudaGraphManager  # of a GPU's vLLM

    config = copy(runner.vllm_config)
    config.compilation_config = copy(config.compilation_config)
    config.compilation_config.cudagraph_capture_sizes = sorted(set(sizes))
    config.compilation_config.max_cudagraph_capture_size = max(sizes)
    return ModelCudaGraphManager(
        config, runner.device, mode, decode_query_len=runner.decode_query_len
    )


def most_tokens(runner: Any) -> int:
    """The longest step with prompts that can be a whole graph with this model and these options.

    0 where none can.
    """
    config = runner.vllm_config
    try:
        refuse_unsupported(config)
    except EngineError:
        return 0
    if not config.use_v2_model_runner or not can_split(runner):
        return 0
    longest = config.compilation_config.max_cudagraph_capture_size or 0
    return min(int(longest), int(config.scheduler_config.max_num_batched_tokens))


class MixedGraphs:
    """Takes the place of a runner's graph manager: its graphs, and those of mixed batches."""

    def __init__(self, runner: Any, sizes: Sequence[int]) -> None:
        """Capture graphs of ``sizes`` tokens and let ``runner`` use them from now on.

        ``runner`` is the worker's V2 model runner after start-up, ``sizes`` are up to its
        ``most_tokens``.
        """
        self._stock = runner.cudagraph_manager
        self._attention = PhaseAttention(runner, max(sizes))
        self._managers = {kind: self._captured(runner, sizes, kind) for kind in _KINDS}
        runner.cudagraph_manager = self
        runner.execute_model = self._looked_at(runner.execute_model)
        self._sizes = sorted(sizes)
        graphs = self._managers["per phase"].graphs
        self._attention.forget()
        self._best = fastest({found.num_tokens: graph for found, graph in graphs.items()})
        self._context = 0

    @property
    def num_mixed(self) -> int:
        """Graphs of mixed batches."""
        return sum(len(manager.graphs) for manager in self._managers.values())

    def dispatch(self, num_reqs: int, num_tokens: int, *rest: Any, **more: Any) -> Any:
        """As vLLM's; whole graphs where vLLM has only pieces."""
        self._attention.kind = "stock"
        found = self._stock.dispatch(num_reqs, num_tokens, *rest, **more)
        if found.cg_mode is CUDAGraphMode.FULL or num_tokens > self._sizes[-1]:
            return found
        padded = self._best[self._sizes[bisect_left(self._sizes, num_tokens)]]
        kind = attention_for(self._context)
        mixed = self._managers[kind].dispatch(num_reqs, padded, *rest, **more)
        if mixed.cg_mode is not CUDAGraphMode.FULL:
            return found
        self._attention.kind = kind
        return mixed

    def run_fullgraph(self, found: Any) -> Any:
        """Replay what ``dispatch`` found."""
        kind, self._attention.kind = self._attention.kind, "stock"
        return self._managers.get(kind, self._stock).run_fullgraph(found)

    def __getattr__(self, name: str) -> Any:
        return getattr(self._stock, name)

    def _captured(self, runner: Any, sizes: Sequence[int], kind: AttentionKind) -> Any:
        manager = new_graphs(runner, sizes, CUDAGraphMode.FULL)
        runner.cudagraph_manager, self._attention.kind = manager, kind
        try:
            runner.capture_model()
        finally:
            runner.cudagraph_manager, self._attention.kind = self._stock, "stock"
        return manager

    def _looked_at(self, execute: Callable[..., Any]) -> Callable[..., Any]:
        @wraps(execute)
        def execute_model(scheduler_output: Any, *rest: Any, **more: Any) -> Any:
            self._context = longest_context(scheduler_output)
            try:
                return execute(scheduler_output, *rest, **more)
            finally:
                self._attention.kind = "stock"

        return execute_model


def longest_context(scheduler_output: Any) -> int:
    """Tokens before the prompt tokens of a step, of the prompt that has most; 0 without any."""
    counts = scheduler_output.num_scheduled_tokens
    if scheduler_output.total_num_scheduled_tokens == len(counts):
        return 0
    cached = scheduler_output.scheduled_cached_reqs
    known = zip(cached.req_ids, cached.num_computed_tokens, strict=True)
    new = ((r.req_id, r.num_computed_tokens) for r in scheduler_output.scheduled_new_reqs)
    prompts = (context for name, context in (*known, *new) if counts.get(name, 0) > 1)
    return max(prompts, default=0)


def attention_for(context: int) -> AttentionKind:
    """How attention runs in a step whose prompts have up to ``context`` tokens before them."""
    return "joint" if context > SPLIT_ATTENTION_MAX_CONTEXT else "per phase"


def fastest(graphs: Mapping[int, torch.cuda.CUDAGraph]) -> dict[int, int]:
    """For each size the one to pad to: itself, or a larger one that takes less time.

    For a few sizes the libraries choose kernels that are up to a fifth slower than those of
    the next size. Replays every graph, on whatever there is as inputs.
    """
    best: dict[int, int] = {}
    least, at = float("inf"), 0
    for size in sorted(graphs, reverse=True):
        ms = _replay_ms(graphs[size])
        best[size] = size if ms < least * _WORTH_IT else at
        if ms < least:
            least, at = ms, size
    return best


def _replay_ms(graph: torch.cuda.CUDAGraph) -> float:
    events = [torch.cuda.Event(enable_timing=True) for _ in range(_REPLAYS + 1)]
    for event in events:
        graph.replay()
        event.record()
    events[-1].synchronize()
    return min(first.elapsed_time(second) for first, second in pairwise(events))
