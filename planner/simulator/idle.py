"""How long prompts take on an idle server: what slowdown is measured against."""

from dataclasses import dataclass

import numpy as np

from nexus.core.arrays import Floats
from nexus.core.machine import Engine
from nexus.planner.latency.steptimes import StepTimes
from nexus.planner.simulator.simulate import simulate, stock_system
from nexus.planner.workload.requests import Lengths, Requests

_PROMPTS = 64
_APART_S = 1e4  # more than any prompt takes


@dataclass(frozen=True)
class IdleServer:
    """TTFT in ms of prompts that have an idle server to themselves, in steps as long as it takes.

    ``tokens`` increase, ``ttft_ms`` is theirs, both of shape (n,).
    """

    tokens: Floats
    ttft_ms: Floats

    @classmethod
    def of(cls, times: StepTimes, limits: Engine, longest: int) -> "IdleServer":
        """For prompts of up to ``longest`` tokens."""
        tokens = np.unique(np.geomspace(1, max(longest, 2), _PROMPTS).astype(np.int64))
        arrivals = _APART_S * np.arange(len(tokens), dtype=np.float64)
        alone = Requests(arrivals, Lengths("alone", tokens, np.ones_like(tokens)))
        chunk = min(limits.max_num_batched_tokens, times.max_chunk)
        run = simulate(times, limits, alone, stock_system(chunk))
        # Steps of a size differ; a longer prompt takes no less than a shorter one.
        return cls(tokens.astype(np.float64), np.maximum.accumulate(run.ttft_ms))

    def ttft_of(self, tokens: Floats) -> Floats:
        """TTFT in ms of prompts of which so many ``tokens`` are not cached; of their shape."""
        return np.interp(tokens, self.tokens, self.ttft_ms)

    def ms_per_1k_tokens(self) -> float:
        """How much longer a prompt takes for each 1,000 tokens more, over all lengths."""
        span = max(float(self.tokens[-1] - self.tokens[0]), 1.0)
        return 1e3 * float(self.ttft_ms[-1] - self.ttft_ms[0]) / span
