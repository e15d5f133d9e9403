"""The prefill lane: vLLM's model run beside vLLM's own steps, on a stream of its own.

A pass computes the keys and values of some prompt tokens into KV blocks that the
scheduler has set aside. It shares weights and KV cache with the decode lane and nothing
that is written per step: inputs, block tables, attention-metadata builders and the
workspace are the lane's. Memory that PyTorch hands out belongs to the stream that asked
for it, and so do cuBLAS workspaces; that of CUDA graphs is the lane's own pool. On a CPU,
where one forward pass at a time can run, a pass takes its turn and is finished when it
returns.
"""

from bisect import bisect_left, insort
from collections.abc import Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext
from dataclasses import dataclass
from typing import Any

import torch

from nexus.runtime.partition.gemms import sized_for
from nexus.runtime.vllm.compat import set_forward_context, workspace
from nexus.runtime.vllm.lane.attention import Attention, LaneAttention
from nexus.runtime.vllm.lane.pass_inputs import FlatRows, PassInputs, PassTensors, Row, flatten
from nexus.runtime.vllm.support.unsupported import refuse_unsupported

MAX_ROWS = 32
"""Prompts in one pass."""


@dataclass(frozen=True)
class LanePass:
    """A launched pass, over at ``done``, or when it was returned if that is None.

    ``hidden_states``: of an eager pass, ``[tokens, hidden_size]``.
    """

    done: torch.cuda.Event | None
    hidden_states: torch.Tensor | None = None

    def finished(self) -> bool:
        """Whether the pass is over; does not wait."""
        return self.done is None or bool(self.done.query())

    def wait(self) -> None:
        """Return once the pass is over."""
        if self.done is not None:
            self.done.synchronize()


class PrefillLane:
    """Forward passes over given rows, on one stream at a time.

    A pass is launched as a CUDA graph where ``capture`` made one that holds it, else
    operator by operator, which costs the host milliseconds.
    """

    def __init__(self, runner: Any, stream: torch.cuda.Stream | None = None) -> None:
        """``runner`` is the worker's model runner, with its KV cache in place.

        ``stream`` defaults to the current one, over all SMs. Raises EngineError for a model or
        option that the lane cannot serve.
        """
        refuse_unsupported(runner.vllm_config)
        self._model = runner.model
        self._config = runner.vllm_config
        self._device: torch.device = runner.device
        self._attention = LaneAttention(runner)
        self._workspace = (
            workspace.WorkspaceManager(self._device)
            if workspace.is_workspace_manager_initialized()
            else None
        )
        scheduling = self._config.scheduler_config
        self.max_rows = min(MAX_ROWS, int(scheduling.max_num_seqs))
        longest = self.max_rows * int(self._config.model_config.max_model_len)
        self.max_tokens = min(int(scheduling.max_num_batched_tokens), longest)
        self._inputs = PassInputs(
            self._device, self.max_tokens, self.max_rows, self._attention.columns
        )
        self._graphs: dict[torch.cuda.Stream, dict[int, torch.cuda.CUDAGraph]] = {}
        self._sizes: dict[torch.cuda.Stream, list[int]] = {}
        self._pool: Any = None
        self.stream = stream
        self._gemm_sms: int | None = None
        if stream is None and self._device.type == "cuda":
            self.stream = torch.cuda.current_stream(self._device)

    @property
    def uses_graphs(self) -> bool:
        """Whether the model, its attention and vLLM's options allow graphs of passes."""
        return self._device.type == "cuda" and self._attention.in_graphs

    @property
    def num_graphs(self) -> int:
        """Graphs made, on all streams."""
        return sum(map(len, self._graphs.values()))

    def move_to(self, stream: torch.cuda.Stream, gemm_sms: int | None) -> None:
        """Run later passes on ``stream``, after those already launched; does not wait.

        Matrix products are sized for ``gemm_sms``.
        """
        if self.stream is not None and self.stream != stream:
            stream.wait_stream(self.stream)
        self.stream, self._gemm_sms = stream, gemm_sms

    @torch.inference_mode()
    def capture(self, sizes: Sequence[int]) -> None:
        """Make graphs of passes of each of ``sizes`` tokens, padding included, on the stream.

        Nothing else may run on the device meanwhile. Sizes that there are are skipped. Where
        ``uses_graphs`` is false, the longest pass is run once instead.
        """
        assert self.stream is not None
        graphs = self._graphs.setdefault(self.stream, {})
        missing = set(sizes) - graphs.keys()
        if not missing:
            return
        if not self.uses_graphs:
            self.forward(self._null_rows(max(sizes))).wait()
            return
        torch.cuda.synchronize(self._device)
        if self._pool is None:
            self._pool = torch.cuda.graph_pool_handle()
            self._attention.one_split(self.max_tokens)
        with self._on_stream(), self._own_workspace(), sized_for(self._gemm_sms):
            for size in sorted(missing, reverse=True):  # smaller ones find room in its memory
                graphs[size] = self._captured(size)
                insort(self._sizes.setdefault(self.stream, []), size)
            self.stream.synchronize()
        torch.cuda.empty_cache()  # what the eager passes on this stream had

    def forget_graphs(self) -> None:
        """Free the graphs of all streams, once they have run."""
        if self._graphs:
            torch.cuda.synchronize(self._device)
        self._graphs.clear()
        self._sizes.clear()
        self._pool = None

    @torch.inference_mode()
    def forward(self, rows: Sequence[Row], after: torch.cuda.Event | None = None) -> LanePass:
        """Launch one pass, of at most ``max_rows`` rows and ``max_tokens`` tokens in all.

        ``after`` is waited for on the device: pass it with a row's first chunk, recorded
        on the decode lane, since that lane may still use what the row's blocks held.
        """
        tokens = sum(len(row.tokens) for row in rows)
        assert 0 < tokens <= self.max_tokens
        assert len(rows) <= self.max_rows
        batch = flatten(rows, self._attention.block_sizes, self._attention.splits)
        with self._on_stream(), self._own_workspace():
            if after is not None and self.stream is not None:
                self.stream.wait_event(after)
            hidden_states = self._run(batch, tokens)
            done = None
            if self.stream is not None:
                done = torch.cuda.Event(enable_timing=True)
                done.record(self.stream)
        return LanePass(done, hidden_states)

    def padded(self, tokens: int) -> int:
        """The tokens that a pass of ``tokens`` on the present stream computes."""
        sizes = [] if self.stream is None else self._sizes.get(self.stream, [])
        place = bisect_left(sizes, tokens)
        return tokens if place == len(sizes) else sizes[place]

    def _run(self, batch: FlatRows, tokens: int) -> torch.Tensor | None:
        size = self.padded(tokens)
        graphs = {} if self.stream is None else self._graphs.get(self.stream, {})
        if size not in graphs:
            tensors = self._inputs.write(batch, tokens, len(batch.seq_lens))
            with sized_for(self._gemm_sms):
                return self._compute(tensors, self._attention.build(batch, tensors))
        tensors = self._inputs.write(batch, size, self.max_rows)
        self._attention.build_for_graph(batch, tensors)  # into what the graph reads
        graphs[size].replay()
        return None

    def _captured(self, size: int) -> torch.cuda.CUDAGraph:
        rows = self._null_rows(size)
        batch = flatten(rows, self._attention.block_sizes, self._attention.splits)
        tensors = self._inputs.write(batch, size, self.max_rows)
        self._compute(tensors, self._attention.build_for_graph(batch, tensors, capture=True))
        attention = self._attention.build_for_graph(batch, tensors, capture=True)
        graph = torch.cuda.CUDAGraph()
        with torch.cuda.graph(graph, pool=self._pool, stream=self.stream):
            self._compute(tensors, attention)
        return graph

    def _null_rows(self, tokens: int) -> list[Row]:
        """Rows that write to vLLM's null block, which no request reads."""
        longest = int(self._config.model_config.max_model_len)
        lengths = [longest] * (tokens // longest) + [tokens % longest]
        sizes = self._attention.block_sizes
        return [
            Row([0] * length, 0, tuple([0] * -(-length // size) for size in sizes))
            for length in lengths
            if length
        ]

    def _compute(self, tensors: PassTensors, attention: Attention) -> torch.Tensor:
        with set_forward_context(
            attention.metadata,
            self._config,
            num_tokens=len(tensors.input_ids),
            slot_mapping=attention.slots,
        ):
            output = self._model(
                input_ids=tensors.input_ids,
                positions=tensors.positions,
                intermediate_tensors=None,
                inputs_embeds=None,
            )
        hidden_states: torch.Tensor = output[0] if isinstance(output, tuple) else output
        return hidden_states

    def _on_stream(self) -> AbstractContextManager[Any]:
        return nullcontext() if self.stream is None else torch.cuda.stream(self.stream)

    @contextmanager
    def _own_workspace(self) -> Iterator[None]:
        """Lend the lane its own of what vLLM keeps one of: a growing scratch tensor."""
        if self._workspace is None:
            yield
            return
        before = workspace._manager
        workspace._manager = self._workspace
        try:
            yield
        finally:
            workspace._manager = before
