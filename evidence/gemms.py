"""A layer's matrix products by number of tokens, and on part of the SMs, sized for it or not.

``python -m nexus.evidence.gemms OUT.json``, on a GPU with green contexts. Shapes are Llama 3.1
8B's, in bfloat16; times are in ms a layer, over CUDA graphs of four layers.
"""

import json
import sys
from pathlib import Path
from typing import Any

from nexus.core.io.outputs import check_writable, write_atomically
from nexus.core.io.terminal import now
from nexus.runtime.machine import this_machine

SHAPES = ((6144, 4096), (4096, 4096), (28672, 4096), (4096, 14336))
TOKENS = (*range(64, 1089, 16), 1152, 1280, 1408, 1536, 1600, 1792, 2048)
PASSES = (512, 1024, 2048)
BEYOND = (0, 8, 16, 24)  # SMs fewer than there are to size for
_REPLAYS = 5


class Layers:
    """Two layers' weights, and graphs of them on any SMs."""

    def __init__(self) -> None:
        """On the current device."""
        import torch

        from nexus.runtime.partition.green import GreenContexts

        self._torch = torch
        self.contexts = GreenContexts()
        self._weights = [
            [torch.randn(n, k, device="cuda", dtype=torch.bfloat16) * 0.02 for n, k in SHAPES]
            for _ in range(2)
        ]

    def ms(self, sms: int, tokens: int, sized: int | None) -> float:
        """Of one layer on ``sms`` SMs, with products sized for ``sized``."""
        from nexus.runtime.partition.gemms import sized_for

        torch, stream = self._torch, self.contexts.alone(sms).prefill
        hidden = torch.randn(tokens, 4096, device="cuda", dtype=torch.bfloat16)
        with torch.cuda.stream(stream), sized_for(sized):
            self._run(hidden)
            stream.synchronize()
            graph = torch.cuda.CUDAGraph()
            with torch.cuda.graph(graph, stream=stream):
                self._run(hidden)
                self._run(hidden)
            graph.replay()
            begin, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
            begin.record()
            for _ in range(_REPLAYS):
                graph.replay()
            end.record()
            end.synchronize()
        return round(float(begin.elapsed_time(end)) / _REPLAYS / 4, 4)

    def _run(self, hidden: Any) -> None:
        linear = self._torch.nn.functional.linear
        for qkv, output, gate_up, down in self._weights:
            linear(hidden, qkv)
            linear(linear(linear(hidden, output), gate_up)[:, :14336], down)


def main(path: str) -> None:
    """Measure, and write ``path``."""
    output = Path(path)
    check_writable(output)
    layers = Layers()
    total = layers.contexts.total_sms
    found = {
        "created": now(),
        "command": "python -m nexus.evidence.gemms " + output.name,
        "machine": vars(this_machine()),
        "by_tokens": {tokens: layers.ms(total, tokens, None) for tokens in TOKENS},
        "by_sms": {
            sms: {
                tokens: {
                    "unsized": layers.ms(sms, tokens, None),
                    **{str(sms - less): layers.ms(sms, tokens, sms - less) for less in BEYOND},
                }
                for tokens in PASSES
            }
            for sms in layers.contexts.sizes()
            if sms >= total // 2 - 2
        },
    }
    write_atomically(output, json.dumps(found, indent=1) + "\n")


if __name__ == "__main__":
    main(sys.argv[1])
