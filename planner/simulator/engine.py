"""An imagined vLLM's batches: what is waiting, running and in the KV cache.

vLLM's rules: sequences that decode come first, then prompts in their order, within the
step's token budget, ``max_num_seqs`` and the KV cache; when the cache is full the sequence that
came last is preempted and computed again. When steps run is for those to say who inherit.
"""

from collections.abc import Hashable
from heapq import heappop, heappush

from nexus.core.machine import Engine
from nexus.core.plan import Mode
from nexus.core.policy import State
from nexus.core.prefill.ranking import PrefillRanker, Rank
from nexus.core.slo import LATE_GAPS
from nexus.planner.latency.steptimes import StepTimes
from nexus.planner.simulator.prefix_cache import PrefixCache
from nexus.planner.simulator.queue import SimQueue
from nexus.planner.simulator.sequence import EarlyStop, Event, Sequence

_FEW = 64  # sequences that have left may be among as many


class SimEngine:
    """Batches of ``sequences``, by arrival; ``step_ends`` has each step's end in seconds."""

    _coming: list[Sequence]
    _next: int

    def __init__(
        self,
        times: StepTimes,
        limits: Engine,
        *,
        ranker: PrefillRanker,
        stock: bool = False,
        record: bool = False,
        early_stop: EarlyStop | None = None,
        cache: PrefixCache | None = None,
        max_queued_tokens: int | None = None,
    ) -> None:
        """``stock``: decodes count towards the chunk, as in vLLM's own token budget.

        With a ``cache`` every sequence has a prefix. Who comes while prompts of
        ``max_queued_tokens`` have no first token yet is refused, as with vLLM's
        ``--max-num-queued-tokens``.
        """
        self._max_queued_tokens, self._queued_tokens = max_queued_tokens, 0
        self.early_stop, self._too_late, self._old = early_stop, 0, 0
        self._late_steps = [0]  # among the steps up to each one's end; as many as were looked at
        self.times, self.limits = times, limits
        self._serving = times.serving.as_stock if stock else times.serving
        self.stock = stock
        self.events: list[Event] | None = [] if record else None
        self.states: list[tuple[float, State]] | None = [] if record else None
        self.now = 0.0
        self.step_ends: list[float] = []
        self.preemptions = 0
        self._slack = limits.block_size / 2  # of a sequence's last KV block, on average empty
        self._waiting = SimQueue(ranker)
        self._cache = cache
        self._partial: list[Sequence] = []
        self._launched = 0  # steps
        self._in_flight = 0  # sequences whose prompt is done or being done, and do not decode yet
        self._backlog = 0
        self._batch = 0
        self._decode_kv = 0.0
        self._kv_used = 0.0
        self._last_in: list[Sequence] = []
        self._longest: list[tuple[float, int, Sequence]] = []  # decodes, longest context first
        self._finishing: dict[int, list[Sequence]] = {}

    def _admit(self, until_s: float) -> None:
        while self._next < len(self._coming) and self._coming[self._next].arrival_s <= until_s:
            sequence = self._coming[self._next]
            self._next += 1
            most = self._max_queued_tokens
            if most is not None and self._queued_tokens >= most:
                sequence.refused = True
                continue
            self._queued_tokens += sequence.prompt
            self._push(sequence)

    def _push(self, sequence: Sequence) -> None:
        if self._cache is not None:
            self._look_up(sequence, self._cache)
            self._cache.want(sequence)
        self._waiting.push(sequence)
        self._backlog += sequence.remaining

    def _look_up(self, sequence: Sequence, cache: PrefixCache) -> int:
        """What the cache has of a sequence that waits is not left; by how much more is left."""
        if sequence.computed:
            return 0
        before = sequence.cached
        sequence.cached = cache.hit(sequence)
        sequence.remaining += before - sequence.cached
        return before - sequence.cached

    def _first(self) -> Sequence | None:
        """Who is next, by what the cache has now."""
        first, cache = self._waiting.first, self._cache
        while cache is not None and first is not None and first.prefix is not None:
            if first.prefix.version == cache.version:
                break
            first.prefix.version = cache.version
            self._look_up_again(first, cache)
            first = self._waiting.first
        return first

    def _look_up_again(self, sequence: Sequence, cache: PrefixCache) -> None:
        more = self._look_up(sequence, cache)
        if more:
            cache.want(sequence)
            self._waiting.push(sequence)
            self._backlog += more

    def _take(self, budget: int) -> tuple[int, float, list[Sequence]]:
        """Prompt tokens for one step, their mean context, and the prompts they complete."""
        chunk, work = 0, 0.0
        completes: list[Sequence] = []
        computed: dict[Hashable, int] = {}
        while budget > 0 and (sequence := self._next_prompt()) is not None:
            tokens = min(budget, sequence.remaining)
            work += tokens * (sequence.computed + tokens / 2)
            chunk += tokens
            budget -= tokens
            sequence.computed += tokens
            sequence.remaining -= tokens
            computed[sequence.index] = tokens
            if self._cache is not None:
                self._share(sequence, self._cache)
            if sequence.remaining == 0:
                self._partial.remove(sequence)
                completes.append(sequence)
                self._in_flight += 1
        self._backlog -= chunk
        self._waiting.computed(computed)
        return chunk, (work / chunk - chunk / 2 if chunk else 0.0), completes

    def _next_prompt(self) -> Sequence | None:
        """The prompt to go on with; a waiting one is started when there is room for it."""
        partial = min(self._partial, key=rank_of, default=None)
        first = self._first()
        if first is None or not self._has_room_for(first):
            return partial
        if partial is not None and (self.stock or partial.rank <= first.rank):
            return partial
        self._start(self._waiting.pop())
        self._partial.append(first)
        return first

    def _start(self, sequence: Sequence) -> None:
        """It has the room that it needs, and what the cache has of it."""
        self._kv_used += self._room_for(sequence) + self._slack
        if sequence.computed:
            return
        sequence.computed = sequence.cached
        if self._cache is not None:
            self._cache.take(sequence)
            self._cache.keep(self.limits.kv_tokens - self._kv_used)

    def _room_for(self, sequence: Sequence) -> int:
        """KV tokens that it takes, beside what it has or shares."""
        if sequence.computed:
            return sequence.remaining
        tokens = sequence.cached + sequence.remaining
        return tokens if self._cache is None else tokens - self._cache.shared(sequence)

    def _share(self, sequence: Sequence, cache: PrefixCache) -> None:
        """What it has computed is in the cache; those that waited for it rank anew."""
        for each in cache.add(sequence):
            if each.waits:
                self._look_up_again(each, cache)

    def _has_room_for(self, sequence: Sequence) -> bool:
        running = self._batch + self._in_flight + len(self._partial)
        if running == 0:
            return True
        room = self.limits.kv_tokens - self._kv_used
        return running < self.limits.max_num_seqs and self._room_for(sequence) <= room

    def _finish_step(self, seconds: float, mode: Mode, chunk: int, new: list[Sequence]) -> None:
        """A step of ``seconds`` from now, for those whose steps follow one another."""
        start_s = self.now
        self.now += seconds
        self.step_ends.append(self.now)
        if self.events is not None:
            kind = "fused" if chunk else "decode"
            self._record(kind, mode, start_s, self.now, chunk, self._batch)
        self._account(new)

    def _account(self, new: list[Sequence]) -> None:
        """One more step: each decode has a token more, and ``new`` prompts their first."""
        batch, step = self._batch, self._launched
        self._decode_kv += batch
        self._kv_used += batch
        self._launched += 1
        if self._cache is not None:
            self._cache.keep(self.limits.kv_tokens - self._kv_used)
        for sequence in self._finishing.pop(step, ()):
            if sequence.decoding and sequence.spans[-1][1] == step:
                self._leave(sequence)
                if self.early_stop is not None:
                    late = self._has_late_gaps(sequence, self.early_stop.bounds.tbt_ms / 1e3)
                    self._count_late(sequence, late)
        for sequence in new:
            self._join(sequence, first_step=step)

    def _join(self, sequence: Sequence, first_step: int) -> None:
        """Decode so that the end of ``first_step`` gives the sequence's next token."""
        self._in_flight -= 1
        if not sequence.spans:
            self._queued_tokens -= sequence.prompt
            if self.early_stop is not None:
                self._count_late(sequence, self.early_stop.is_too_late(sequence, self.now))
        last_step = first_step + sequence.output - sequence.emitted - 1
        sequence.spans.append((first_step, last_step))
        sequence.joined = self._launched
        sequence.decoding = True
        self._batch += 1
        self._decode_kv += sequence.computed
        if last_step < sequence.joined:  # its only token came with its prompt
            self._leave(sequence)
            return
        if len(self._last_in) > 2 * self._batch + _FEW:
            self._last_in = [each for each in self._last_in if each.decoding]
        self._last_in.append(sequence)
        self._finishing.setdefault(last_step, []).append(sequence)
        start = float(sequence.joined - sequence.computed)
        heappush(self._longest, (start, sequence.index, sequence))

    def _too_many_late(self, early_stop: EarlyStop) -> bool:
        """Whether more are late for certain than may be, those without a first token too."""
        coming = self._coming
        while self._old < self._next:
            sequence = coming[self._old]
            if not sequence.spans:
                late = sequence.refused or early_stop.is_too_late(sequence, self.now)
                if not late and sequence.index >= early_stop.since:
                    break
                self._count_late(sequence, late)
            self._old += 1
        return self._too_late > early_stop.most

    def _count_late(self, sequence: Sequence, late: bool) -> None:
        """Each one once, from those on that count."""
        assert self.early_stop is not None
        if late and not sequence.is_counted and sequence.index >= self.early_stop.since:
            sequence.is_counted = True
            self._too_late += 1

    def _has_late_gaps(self, sequence: Sequence, tbt_s: float) -> bool:
        """Whether more gaps of one that ends were late than may be, in the steps that were seen."""
        ends, late = self.step_ends, self._late_steps
        for step in range(len(late), len(ends)):
            late.append(late[-1] + (ends[step] - ends[step - 1] > tbt_s))
        seen = len(late) - 1
        gaps = sum(late[min(last, seen)] - late[min(first, seen)] for first, last in sequence.spans)
        return gaps > LATE_GAPS * max(sequence.output - 1, 0)

    def _reply_s(self, tokens: int) -> float:
        """What the front end takes, going in and, with so many ``tokens``, out.

        The host's clock is behind the client's by as much, from a request's arrival on.
        """
        serving = self._serving
        return (serving.intake_ms + serving.reply_ms + serving.reply_token_ms * tokens) / 1e3

    def _uneven_ms(self, chunk: int = 0, context: float = 0.0) -> float:
        """What contexts of different lengths add to a step with ``chunk`` prompt tokens."""
        return self._serving.context_skew_ms(chunk, context, self._batch) * self._beyond() / 1e3

    def _uneven_beside_ms(self) -> float:
        """The same, of a decode step beside prompts on other SMs."""
        return self._serving.context_skew_fused_ms * self._beyond() / 1e3

    def _beyond(self) -> float:
        """Tokens by which the longest decode's context exceeds the mean."""
        longest = self._longest
        while longest and not longest[0][2].decoding:
            heappop(longest)
        if not longest or not self._batch:
            return 0.0
        return max(self._launched - longest[0][0] - self._decode_kv / self._batch, 0.0)

    def _leave(self, sequence: Sequence) -> None:
        held = sequence.computed + self._launched - sequence.joined
        sequence.decoding = False
        self._batch -= 1
        self._decode_kv -= held
        self._free(sequence, held)

    def _free(self, sequence: Sequence, tokens: float) -> None:
        """It has none of its KV ``tokens`` any more; those that others share stay in use."""
        self._kv_used -= tokens + self._slack
        if self._cache is not None:
            self._kv_used += self._cache.release(sequence)

    def _make_room(self) -> None:
        """Put back the sequences that came last until one more step fits in the cache."""
        while self._kv_used + self._batch > self.limits.kv_tokens and self._batch > 1:
            sequence = self._last_in.pop()
            if sequence.decoding:
                self._preempted(sequence)

    def _preempted(self, sequence: Sequence) -> None:
        self._leave(sequence)
        first, done = sequence.spans.pop()[0], self._launched
        if done > first:
            sequence.spans.append((first, done - 1))
            sequence.emitted += done - first
        sequence.remaining = sequence.prompt + sequence.emitted - sequence.cached
        sequence.computed = 0
        sequence.preempted = True
        self.preemptions += 1
        self._push(sequence)

    def _record(
        self, lane: str, mode: Mode, start_s: float, end_s: float, chunk: int, batch: int
    ) -> None:
        assert self.events is not None
        self.events.append(Event(lane, mode.name, start_s, end_s, chunk, batch))


def rank_of(sequence: Sequence) -> Rank:
    """Its rank: the lowest first."""
    return sequence.rank
