"""Whether a request may wait at all: who would be far too late is better refused at once."""

from collections.abc import Iterable
from dataclasses import dataclass

from nexus.core.plan import Plan


@dataclass(frozen=True)
class LateRefusal:
    """Refuses prompts that cannot have their first token within ``factor`` times their bound.

    ``tokens_per_s`` is the rate at which a server under load computes prompts, in prompt tokens
    per second, cached ones included.
    """

    factor: float
    tokens_per_s: float

    @classmethod
    def of(cls, plan: Plan, factor: float) -> "LateRefusal":
        """At the rate that ``plan`` sustains; where it sustains none, at its fastest row's."""
        sustained = plan.prediction.capacity_per_s * plan.workload.input_tokens
        fastest = max(row.prefill_tokens_per_s for row in plan.rows)
        return cls(factor, sustained or fastest)

    def wait_s(self, tokens: int, waiting: Iterable[int]) -> float:
        """Seconds until a prompt of ``tokens`` is computed, if longer ones let it pass.

        ``waiting`` are the tokens of the prompts that have no first token yet. It is the least
        that the wait can be, as prompts of others arrive meanwhile.
        """
        ahead = sum(each for each in waiting if each <= tokens)
        return (ahead + tokens) / self.tokens_per_s

    def refuses(self, tokens: int, waiting: Iterable[int], ttft_s: float) -> bool:
        """Whether a prompt with the bound ``ttft_s`` would wait more than ``factor`` times that.

        A prompt that takes longer by itself is not refused on an idle server.
        """
        alone_s = tokens / self.tokens_per_s
        return self.wait_s(tokens, waiting) > max(self.factor * ttft_s, alone_s)

    def backlog_limit(self, ttft_s: float) -> int:
        """Waiting prompt tokens with which first come, first served has the same limit.

        What to give vLLM's ``--max-num-queued-tokens`` on a server without a plan.
        """
        return int(self.factor * ttft_s * self.tokens_per_s)
