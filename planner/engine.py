"""An imagined vLLM in virtual time: its batching rules, with steps that take predicted times.

vLLM's rules: sequences that decode come first, then prompts in their order, within the
step's token budget, ``max_num_seqs`` and the KV cache; when the cache is full the sequence that
came last is put back and computed again. A lane, in split and overlap, runs prefill chunks
beside decode steps.
"""

from collections.abc import Callable
from heapq import heappop, heappush

from nexus.planner.sequence import Event, LanePass, Patience, Sequence
from nexus.planner.steptimes import StepTimes
from nexus.planner.table import Mode
from nexus.profiles.schema import Engine
from nexus.runtime.policy import PrefillOrder, State, prefill_rank

Chooser = Callable[[State], Mode]
"""Which mode to run in a state; ``Policy.decide`` without its prediction."""

_FRONT = -1e12  # rank of a sequence that was put back: before all others


class ImaginedEngine:
    """Serves ``sequences`` (by arrival) to the end; ``step_ends`` has each step's end in s."""

    def __init__(
        self,
        times: StepTimes,
        limits: Engine,
        choose: Chooser,
        *,
        order: PrefillOrder,
        aging_tokens_per_s: float,
        stock: bool = False,
        record: bool = False,
        patience: Patience | None = None,
    ) -> None:
        """``stock``: decodes count towards the chunk, as in vLLM's own token budget."""
        self.patience, self._too_late = patience, 0
        self.times, self.limits, self.choose = times, limits, choose
        self.order, self.aging, self.stock = order, aging_tokens_per_s, stock
        self.events: list[Event] | None = [] if record else None
        self.states: list[tuple[float, State]] | None = [] if record else None
        self.now = 0.0
        self.step_ends: list[float] = []
        self.preemptions = 0
        self._slack = limits.block_size / 2  # of a sequence's last KV block, on average empty
        self._waiting: list[tuple[float, int, Sequence]] = []
        self._partial: list[Sequence] = []
        self._in_flight = 0  # sequences whose prompt is done or being done, and do not decode yet
        self._backlog = 0
        self._batch = 0
        self._decode_kv = 0.0
        self._kv_used = 0.0
        self._ready: list[Sequence] = []  # prefilled on the lane, first token still to come
        self._last_in: list[Sequence] = []
        self._finishing: dict[int, list[Sequence]] = {}
        self._lane: LanePass | None = None

    def run(self, sequences: list[Sequence]) -> bool:
        """Serve them all; False when patience ran out before."""
        self._coming, self._next = sequences, 0
        while self._next < len(sequences) or self._busy():
            if self.patience is not None and self._too_late > self.patience.most:
                return False
            self._admit(self.now)
            if not self._busy():
                self.now = sequences[self._next].arrival_s
                continue
            batch = self._batch + len(self._ready)
            state = State(batch, int(self._kv_used), self._backlog)
            mode = self.choose(state)
            if self.states is not None:
                self.states.append((self.now, state))
            if self._only_decodes():
                self._decode_until_something_happens(mode)
            elif mode.mode == "fused" and self._lane is None and not self._ready:
                self._fused_step(mode)
            else:
                self._lane_step(mode)
        return True

    def _busy(self) -> bool:
        return bool(self._batch or self._waiting or self._partial or self._lane or self._ready)

    def _only_decodes(self) -> bool:
        return not (self._backlog or self._lane or self._ready or self._partial)

    def _decode_until_something_happens(self, mode: Mode) -> None:
        """Decode steps up to the next arrival or the next sequence to finish."""
        self._make_room()
        coming = self._coming
        arrival_s = coming[self._next].arrival_s if self._next < len(coming) else float("inf")
        most = self.limits.kv_tokens
        batch = self._batch
        while self.now < arrival_s and self._batch == batch and self._kv_used + batch <= most:
            ms = self.times.batch_ms(0, 0.0, batch, self._decode_kv)
            self._finish_step(ms / 1e3, mode, 0, [])

    def _admit(self, until_s: float) -> None:
        while self._next < len(self._coming) and self._coming[self._next].arrival_s <= until_s:
            self._push(self._coming[self._next])
            self._next += 1

    def _push(self, sequence: Sequence) -> None:
        sequence.rank = self._rank(sequence)
        heappush(self._waiting, (sequence.rank, sequence.index, sequence))
        self._backlog += sequence.remaining

    def _fused_step(self, mode: Mode) -> None:
        limit = self.limits.max_num_batched_tokens
        budget = mode.chunk if self.stock else min(mode.chunk + self._batch, limit)
        self._make_room()
        chunk, context, completes = self._take(max(budget - self._batch, 0))
        batch = self._batch
        ms = self.times.batch_ms(chunk, context, batch, self._decode_kv)
        if batch > budget:  # not all decodes fit in one step
            ms *= batch / budget
        self._finish_step(ms / 1e3, mode, chunk, completes)

    def _lane_step(self, mode: Mode) -> None:
        ready, self._ready = self._ready, []
        for sequence in ready:
            self._join(sequence, first_step=len(self.step_ends))
        if self._lane is None and mode.mode != "fused":
            self._start_lane(mode)
        if not self._batch:
            assert self._lane is not None
            self.now = self._lane.end_s
            self._end_lane(mode)
            return
        self._make_room()
        lane = self._lane
        if lane is None:
            ms = self.times.batch_ms(0, 0.0, self._batch, self._decode_kv)
        else:
            beside = self.times.lane(lane.mode).decode
            ms = beside(lane.chunk, lane.context, self._batch, self._decode_kv)
        end_s = self.now + ms / 1e3
        while self._lane is not None and self._lane.end_s <= end_s:
            self._admit(self._lane.end_s)
            self._end_lane(mode)
        self._finish_step(ms / 1e3, mode, 0, [])

    def _start_lane(self, mode: Mode, at_s: float | None = None) -> None:
        chunk, context, completes = self._take(mode.chunk)
        if not chunk:
            return
        lane = self.times.lane(mode)
        if self._batch:
            ms = lane.prefill(chunk, context, self._batch, self._decode_kv)
        else:
            ms = lane.prefill_alone(chunk, context, 0, 0.0)
        start_s = self.now if at_s is None else at_s
        self._lane = LanePass(start_s + ms / 1e3, mode, chunk, context, completes)
        if self.events is not None:
            self._record("prefill", mode, start_s, self._lane.end_s, chunk)

    def _end_lane(self, mode: Mode) -> None:
        lane = self._lane
        assert lane is not None
        self._ready += lane.completes
        self._lane = None
        if mode.mode != "fused":
            self._start_lane(mode, lane.end_s)

    def _take(self, budget: int) -> tuple[int, float, list[Sequence]]:
        """Prompt tokens for one step, their mean context, and the prompts they complete."""
        chunk, work = 0, 0.0
        completes: list[Sequence] = []
        while budget > 0 and (sequence := self._next_prompt()) is not None:
            tokens = min(budget, sequence.remaining)
            work += tokens * (sequence.computed + tokens / 2)
            chunk += tokens
            budget -= tokens
            sequence.computed += tokens
            sequence.remaining -= tokens
            if sequence.remaining == 0:
                self._partial.remove(sequence)
                completes.append(sequence)
                self._in_flight += 1
            else:
                sequence.rank = self._rank(sequence)
        self._backlog -= chunk
        return chunk, (work / chunk - chunk / 2 if chunk else 0.0), completes

    def _next_prompt(self) -> Sequence | None:
        """The prompt to go on with; a waiting one is started when there is room for it."""
        partial = min(self._partial, key=_rank_of, default=None)
        if not self._waiting or not self._has_room_for(self._waiting[0][2]):
            return partial
        if partial is not None and (self.stock or partial.rank <= self._waiting[0][0]):
            return partial
        sequence = heappop(self._waiting)[2]
        self._kv_used += sequence.remaining + self._slack
        self._partial.append(sequence)
        return sequence

    def _has_room_for(self, sequence: Sequence) -> bool:
        running = self._batch + self._in_flight + len(self._partial)
        if running == 0:
            return True
        room = self.limits.kv_tokens - self._kv_used
        return running < self.limits.max_num_seqs and sequence.remaining <= room

    def _rank(self, sequence: Sequence) -> float:
        if sequence.put_back:
            return _FRONT + sequence.arrival_s
        return prefill_rank(sequence.remaining, sequence.arrival_s, self.order, self.aging)

    def _finish_step(self, seconds: float, mode: Mode, chunk: int, new: list[Sequence]) -> None:
        start_s, batch = self.now, self._batch
        self.now += seconds
        self._decode_kv += batch
        self._kv_used += batch
        step = len(self.step_ends)
        self.step_ends.append(self.now)
        if self.events is not None:
            self._record("fused" if chunk else "decode", mode, start_s, self.now, chunk)
        for sequence in self._finishing.pop(step, ()):
            if sequence.decoding and sequence.spans[-1][1] == step:
                self._leave(sequence)
        for sequence in new:
            self._join(sequence, first_step=step)

    def _join(self, sequence: Sequence, first_step: int) -> None:
        """Decode so that the end of ``first_step`` gives the sequence's next token."""
        self._in_flight -= 1
        patience = self.patience
        if patience is not None and not sequence.spans and sequence.index >= patience.since:
            self._too_late += self.now - sequence.arrival_s > patience.ttft_s
        last_step = first_step + sequence.output - sequence.emitted - 1
        sequence.spans.append((first_step, last_step))
        sequence.joined = len(self.step_ends)
        sequence.decoding = True
        self._batch += 1
        self._decode_kv += sequence.computed
        if last_step < sequence.joined:  # its only token came with its prompt
            self._leave(sequence)
            return
        self._last_in.append(sequence)
        self._finishing.setdefault(last_step, []).append(sequence)

    def _leave(self, sequence: Sequence) -> None:
        held = sequence.computed + len(self.step_ends) - sequence.joined
        sequence.decoding = False
        self._batch -= 1
        self._decode_kv -= held
        self._kv_used -= held + self._slack

    def _make_room(self) -> None:
        """Put back the sequences that came last until one more step fits in the cache."""
        while self._kv_used + self._batch > self.limits.kv_tokens and self._batch > 1:
            sequence = self._last_in.pop()
            if sequence.decoding:
                self._put_back(sequence)

    def _put_back(self, sequence: Sequence) -> None:
        self._leave(sequence)
        first, done = sequence.spans.pop()[0], len(self.step_ends)
        if done > first:
            sequence.spans.append((first, done - 1))
            sequence.emitted += done - first
        sequence.remaining, sequence.computed = sequence.prompt + sequence.emitted, 0
        sequence.put_back = True
        self.preemptions += 1
        self._push(sequence)

    def _record(self, lane: str, mode: Mode, start_s: float, end_s: float, chunk: int) -> None:
        assert self.events is not None
        self.events.append(Event(lane, mode.name, start_s, end_s, chunk, self._batch))


def _rank_of(sequence: Sequence) -> float:
    return sequence.rank
