"""The prefill lane in virtual time: prompts by rank, and passes on the device beside the steps."""

from bisect import bisect_left, insort
from collections import deque
from dataclasses import dataclass

from nexus.core.lane import MAX_PASSES, PASSES_AHEAD, pass_sizes
from nexus.core.plan import Mode
from nexus.core.prefill.ranking import Rank
from nexus.planner.latency.steptimes import StepTimes
from nexus.planner.simulator.sequence import Sequence


@dataclass(slots=True)
class Pass:
    """A chunk on the lane, when it runs in seconds, and the prompts that end with it."""

    start_s: float
    end_s: float
    mode: Mode
    chunk: int
    context: float
    parts: list[Sequence]
    completes: list[Sequence]


class SimLane:
    """Up to ``MAX_PASSES`` passes at once, first in, first out."""

    def __init__(self, times: StepTimes, *, padded: bool) -> None:
        """Nothing on it; ``padded``: passes are CUDA graphs, each of some size."""
        self._times = times
        self._padded = padded
        self._sizes: dict[int, list[int]] = {}
        self._queue: list[Sequence] = []
        self._returning: list[Sequence] = []
        self.passes: deque[Pass] = deque()
        self.past: deque[Pass] = deque()  # over for the host, maybe not for a step's duration
        self.free_s = self.left_s = 0.0
        self.num_prompts = 0

    @property
    def waits(self) -> bool:
        """Whether there are tokens to launch."""
        return bool(self._queue)

    @property
    def full(self) -> bool:
        """Whether no further pass may be launched."""
        return len(self.passes) >= MAX_PASSES

    @property
    def completing(self) -> bool:
        """Whether the pass that is next to end completes a prompt."""
        return bool(self.passes and self.passes[0].completes)

    def has_room(self, rank: Rank, chunk: int) -> bool:
        """Whether few enough tokens go before a prompt of ``rank``."""
        ahead = sum(prompt.remaining - 1 for prompt in self._queue if prompt.rank <= rank)
        return ahead < PASSES_AHEAD * chunk

    def add(self, sequence: Sequence) -> None:
        """All but the sequence's last prompt token are to be computed."""
        insort(self._queue, sequence, key=_rank_of)
        self.num_prompts += 1

    def launch(self, mode: Mode, at_s: float, launched_s: float, batch: int, kv: float) -> Pass:
        """The next pass, whose first kernel may start ``at_s`` and whose last ``launched_s``."""
        chunk, work = 0, 0.0
        parts: list[Sequence] = []
        completes: list[Sequence] = []
        while chunk < mode.chunk and self._queue:
            sequence = self._queue[0]
            tokens = min(mode.chunk - chunk, sequence.remaining - 1)
            work += tokens * (sequence.computed + tokens / 2)
            chunk += tokens
            sequence.computed += tokens
            sequence.remaining -= tokens
            parts.append(sequence)
            if sequence.remaining == 1:
                completes.append(self._queue.pop(0))
        context = work / chunk - chunk / 2
        lane = self._times.lane(mode)
        timer = lane.prefill if batch else lane.prefill_alone
        start_s = max(at_s, self.free_s)
        ms = self._times.serving.begin_ms + timer(self._computed(chunk, mode), context, batch, kv)
        self.free_s = max(start_s + ms / 1e3, launched_s)
        made = Pass(start_s, self.free_s, mode, chunk, context, parts, completes)
        self.passes.append(made)
        return made

    def _computed(self, tokens: int, mode: Mode) -> int:
        """What a pass of so many tokens computes, its padding included."""
        if not self._padded:
            return tokens
        if mode.chunk not in self._sizes:
            self._sizes[mode.chunk] = pass_sizes(mode.chunk)
        sizes = self._sizes[mode.chunk]
        return sizes[bisect_left(sizes, tokens)]

    def over(self, by_s: float) -> list[Sequence]:
        """Take the passes that end ``by_s`` away; the prompts that end with them."""
        done: list[Sequence] = []
        while self.passes and self.passes[0].end_s <= by_s:
            self.past.append(self.passes.popleft())
            done += self.past[-1].completes
        self.num_prompts -= len(done)
        return done

    def leaving(self, by_s: float) -> list[Sequence]:
        """The prompts of the pass that is next to end, if it ends ``by_s``; ``left_s`` is when."""
        first = self.passes[0]
        if first.end_s > by_s:
            return []
        done, first.completes, self.left_s = first.completes, [], first.end_s
        self.num_prompts -= len(done)
        return done

    def withdraw(self, last_tokens: int) -> None:
        """Give up all prompts but those begun with at most ``last_tokens`` to go.

        They leave by ``given_up``, those in a pass when it is over.
        """

        def ends(prompt: Sequence) -> bool:
            return prompt.computed > prompt.cached and prompt.remaining <= last_tokens

        self._returning += [prompt for prompt in self._queue if not ends(prompt)]
        self._queue = [prompt for prompt in self._queue if ends(prompt)]

    def given_up(self) -> list[Sequence]:
        """Take the prompts that were given up and are in no pass any more."""
        if not self._returning:
            return []
        running = {id(part) for each in self.passes for part in each.parts}
        back = [prompt for prompt in self._returning if id(prompt) not in running]
        self._returning = [prompt for prompt in self._returning if id(prompt) in running]
        self.num_prompts -= len(back)
        return back

    def end_of(
        self, start_s: float, alone_s: float, whole_s: float, base_s: float, batch: int, kv: float
    ) -> float:
        """When a step ends that takes ``alone_s`` with no pass beside it.

        ``whole_s`` is what it takes with all SMs, ``base_s`` what its decodes alone take there:
        slowdowns are relative to that.
        """
        now, left = start_s, 1.0
        past = self.past
        while past and past[0].end_s <= start_s:
            past.popleft()
        for each in (*past, *self.passes):
            if each.start_s > now:
                before = (each.start_s - now) / alone_s
                if before >= left:
                    break
                left, now = left - before, each.start_s
            beside_s = alone_s
            if batch:
                decode = self._times.lane(each.mode).decode
                beside_s = whole_s * decode(each.chunk, each.context, batch, kv) / 1e3 / base_s
            during = (each.end_s - now) / beside_s
            if during >= left:
                return now + left * beside_s
            left, now = left - during, each.end_s
        return now + left * alone_s


def _rank_of(sequence: Sequence) -> Rank:
    return sequence.rank
