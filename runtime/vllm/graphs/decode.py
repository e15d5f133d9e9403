"""The decode lane: vLLM's own step on a chosen stream, with graphs captured there.

A CUDA graph keeps the SMs of the stream it was captured on. Where decode is confined to
some SMs, its graphs are therefore captured once more on those SMs' stream; on a stream
over all SMs vLLM's own graphs do.
"""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import torch

from nexus.core.errors import EngineError
from nexus.runtime.partition.gemms import sized_for
from nexus.runtime.vllm.compat import GRAPHS_NAME_THEIR_STREAM, CUDAGraphMode, since
from nexus.runtime.vllm.graphs.mixed import new_graphs


class DecodeLane:
    """Where the steps of one model runner run; one instance per worker."""

    def __init__(self, runner: Any) -> None:
        """``runner`` is the worker's model runner after start-up.

        Raises EngineError for a runner whose steps cannot be moved.
        """
        if not runner.vllm_config.use_v2_model_runner:
            raise EngineError("confining decode needs vLLM's V2 model runner; this engine runs V1")
        self._runner = runner
        self._stock_stream: torch.cuda.Stream = runner.main_stream
        self._stock_graphs = runner.cudagraph_manager
        self._last = self._stock_stream

    def capture(
        self, stream: torch.cuda.Stream, gemm_sms: int | None, batch_sizes: Sequence[int]
    ) -> Any:
        """Decode graphs for ``stream``, padded to each of ``batch_sizes``.

        Matrix products are sized for ``gemm_sms``. A new set: hand it to ``on``. Takes about as
        long as vLLM's own capture of as many sizes.
        """
        runner = self._runner
        graphs = new_graphs(runner, batch_sizes, CUDAGraphMode.FULL_DECODE_ONLY)
        before = torch.cuda.graph.default_capture_stream
        torch.cuda.graph.default_capture_stream = stream
        if since(GRAPHS_NAME_THEIR_STREAM):
            graphs._capture_stream = lambda _desc: stream
        runner.cudagraph_manager = graphs
        self._last.synchronize()
        try:
            with sized_for(gemm_sms):
                runner.capture_model()
        finally:
            torch.cuda.graph.default_capture_stream = before
            runner.cudagraph_manager = self._stock_graphs
        stream.synchronize()
        return graphs

    @contextmanager
    def on(self, stream: torch.cuda.Stream, graphs: Any | None = None) -> Iterator[None]:
        """Run vLLM's steps inside the block on ``stream``, with ``graphs`` or vLLM's own.

        Steps already launched elsewhere come first, on the device; nothing waits here.
        """
        runner = self._runner
        if stream != self._last:
            stream.wait_stream(self._last)
        runner.main_stream = stream
        runner.cudagraph_manager = graphs if graphs is not None else self._stock_graphs
        try:
            with torch.cuda.stream(stream):
                yield
        finally:
            self._last = stream
            runner.main_stream = self._stock_stream
            runner.cudagraph_manager = self._stock_graphs

    def leave(self) -> None:
        """Let the stream that vLLM started with follow what was launched elsewhere."""
        if self._last != self._stock_stream:
            self._stock_stream.wait_stream(self._last)
            self._last = self._stock_stream
