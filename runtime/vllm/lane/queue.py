"""Which prompt tokens run next on the prefill lane, and which prompts are done there.

Knows no engine and no clock: a pass is anything that can say whether it is over.
"""

from bisect import insort
from collections import deque
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Protocol

from nexus.core.prefill.ranking import Rank
from nexus.runtime.vllm.lane.pass_inputs import Row


class Pass(Protocol):
    """A launched forward pass."""

    def finished(self) -> bool:
        """Whether it is over; does not wait."""
        ...


@dataclass(frozen=True)
class LanePrompt:
    """A prompt for the lane.

    ``tokens``: the token ids to compute; ``context``: the request's tokens that are in the
    KV cache already; ``blocks``: per KV cache group, the ids of all the request's blocks.
    The lowest ``rank`` runs first.
    """

    req_id: str
    rank: Rank
    tokens: Sequence[int]
    context: int
    blocks: tuple[Sequence[int], ...]


@dataclass(eq=False)
class Job:
    """A prompt's state on the lane: how many of its tokens were launched, and how it ends."""

    prompt: LanePrompt
    launched: int = 0
    passes: int = 0
    cancelled: bool = False
    returned: bool = False

    @property
    def left(self) -> int:
        """Tokens still to be launched."""
        return len(self.prompt.tokens) - self.launched

    @property
    def over(self) -> bool:
        """Whether nothing of it runs, or will."""
        return self.passes == 0 and (self.cancelled or self.returned or self.left == 0)


@dataclass(frozen=True)
class Share:
    """What one job contributes to a pass."""

    job: Job
    tokens: int

    @property
    def row(self) -> Row:
        """The share as a row of the forward pass."""
        prompt, start = self.job.prompt, self.job.launched
        tokens = prompt.tokens[start : start + self.tokens]
        ends = prompt.req_id if self.tokens == self.job.left else None
        return Row(tokens, prompt.context + start, prompt.blocks, ends)


@dataclass(frozen=True)
class Reaped:
    """Prompts that left the lane.

    ``finished``: ids of all of them, the cancelled included. ``returned``: of those that the
    lane gave up, the number of the request's tokens that are in the KV cache. ``under_way``:
    the pass that some left before its end, if any did.
    """

    finished: set[str] = field(default_factory=set)
    returned: dict[str, int] = field(default_factory=dict)
    under_way: Pass | None = None


class LaneQueue:
    """Prompts by rank; passes first in, first out."""

    def __init__(self, max_passes: int) -> None:
        """``max_passes`` may be under way at once."""
        self.max_passes = max_passes
        self._jobs: dict[str, Job] = {}
        self._waiting: list[Job] = []
        self._passes: deque[tuple[Pass, list[Job]]] = deque()

    def __len__(self) -> int:
        """Prompts on the lane."""
        return len(self._jobs)

    @property
    def passes_under_way(self) -> int:
        """Launched and not yet reaped."""
        return len(self._passes)

    @property
    def running(self) -> Pass | None:
        """The first of the passes under way."""
        return self._passes[0][0] if self._passes else None

    def add(self, prompt: LanePrompt) -> None:
        """Queue ``prompt`` at its rank, behind its equals."""
        assert prompt.req_id not in self._jobs
        job = Job(prompt)
        self._jobs[prompt.req_id] = job
        if job.left:
            insort(self._waiting, job, key=_rank)

    def cancel(self, req_id: str) -> None:
        """Launch nothing more of a request; one that is no longer here is ignored."""
        job = self._jobs.get(req_id)
        if job is not None:
            job.cancelled = True
            self._drop(job)

    def withdraw(self, last_tokens: int = 0) -> None:
        """Give up every prompt that is not launched to its end.

        But for those begun with at most ``last_tokens`` to go: for them, one more pass is
        shorter than another place to end in.
        """
        ending = [job for job in self._waiting if job.launched and job.left <= last_tokens]
        for job in self._waiting:
            job.returned = job not in ending
        self._waiting = ending

    def stranded(self) -> set[str]:
        """Ids of the requests in passes under way."""
        jobs = [job for _, passed in self._passes for job in passed]
        return {job.prompt.req_id for job in jobs if self._jobs.get(job.prompt.req_id) is job}

    def take(self, chunk: int, max_rows: int) -> list[Share]:
        """The next pass: up to ``chunk`` tokens of ``max_rows`` prompts, by rank.

        Empty if none may be launched.
        """
        shares: list[Share] = []
        if len(self._passes) >= self.max_passes:
            return shares
        for job in self._waiting[:max_rows]:
            if chunk <= 0:
                break
            shares.append(Share(job, min(job.left, chunk)))
            chunk -= shares[-1].tokens
        return shares

    def launched(self, shares: Sequence[Share], work: Pass) -> None:
        """``work`` computes ``shares``."""
        for share in shares:
            share.job.launched += share.tokens
            if share.job.left == 0:
                self._drop(share.job)
        self._run(shares, work)

    def failed(self, shares: Sequence[Share], work: Pass) -> None:
        """``shares`` could not be launched; when ``work`` is over, nothing of them runs."""
        for share in shares:
            share.job.returned = True
            self._drop(share.job)
        self._run(shares, work)

    def settle(self) -> None:
        """Forget the passes that are over."""
        while self._passes and self._passes[0][0].finished():
            for job in self._passes.popleft()[1]:
                job.passes -= 1

    def reap(self, ends_in_time: Callable[[Pass], bool] | None = None) -> Reaped:
        """What left the lane since the last call.

        With ``ends_in_time``, prompts leave during their last pass where that holds of it:
        who takes them up then waits for the pass.
        """
        self.settle()
        over = [job for job in self._jobs.values() if job.over]
        under_way = None
        if ends_in_time is not None and self._passes:
            work, jobs = self._passes[0]
            ending = [job for job in jobs if self._ends_with_its_pass(job)]
            if ending and ends_in_time(work):
                over, under_way = over + ending, work
        reaped = Reaped(under_way=under_way)
        for job in over:
            prompt = job.prompt
            del self._jobs[prompt.req_id]
            reaped.finished.add(prompt.req_id)
            if job.returned and not job.cancelled:
                reaped.returned[prompt.req_id] = prompt.context + job.launched
        return reaped

    def _ends_with_its_pass(self, job: Job) -> bool:
        here = self._jobs.get(job.prompt.req_id) is job
        return here and job.passes == 1 and job.left == 0 and not (job.cancelled or job.returned)

    def _run(self, shares: Sequence[Share], work: Pass) -> None:
        for share in shares:
            share.job.passes += 1
        self._passes.append((work, [share.job for share in shares]))

    def _drop(self, job: Job) -> None:
        if job in self._waiting:
            self._waiting.remove(job)


def _rank(job: Job) -> Rank:
    return job.prompt.rank
