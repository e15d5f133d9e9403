"""Two imagined vLLMs on one device, as MPS shares it: one prefills, the other decodes.

Both are stock, run all the time, and are confined for good: neither gets the other's SMs
when those are idle. A prompt is computed whole in the prefill engine, first come, first
served; then the decode engine reads its KV, computes the prompt's last token once more, and
so gives the request's first token, as a proxy before vLLM's NixlConnector has it.
"""

from collections import deque
from dataclasses import dataclass, replace
from math import inf

from nexus.core.machine import Engine
from nexus.core.plan import Mode, Shares
from nexus.core.policy import State
from nexus.core.prefill.ranking import PrefillRanker
from nexus.planner.latency.steptimes import StepTimes
from nexus.planner.simulator.engine import SimEngine
from nexus.planner.simulator.prefix_cache import PrefixCache
from nexus.planner.simulator.sequence import EarlyStop, Event, Sequence


@dataclass(frozen=True)
class Handover:
    """What lies between a prompt's end in one engine and its first step in the other.

    ``router_ms``: the answer goes back to the proxy, which asks the other engine;
    ``copy_ms_per_token``: reading its KV; ``steps``: decode steps that vLLM has already
    scheduled when it learns that the KV is there.
    """

    router_ms: float
    copy_ms_per_token: float
    steps: int


# The way through the router is fitted to one run on an H200. The copy is taken for granted: 25 GB/s
# for an 8B model's KV. vLLM schedules a step ahead, looks for KV at a step's end, and has by
# then scheduled the next.
HANDOVER = Handover(router_ms=20.0, copy_ms_per_token=0.005, steps=3)


_Pass = tuple[int, float, list[Sequence]]  # tokens, their mean context, prompts that it ends


@dataclass(slots=True)
class _Pull:
    """A prompt whose KV is being read: when it is there, and the step that can have it first."""

    sequence: Sequence
    at_s: float
    step: int


class PrefillEngine(SimEngine):
    """The engine that computes prompts; a pass of several ends for all of them at once."""

    def begin(self, sequences: list[Sequence], mode: Mode) -> None:
        """Await ``sequences``, in passes of at most ``mode.chunk`` tokens."""
        self._coming, self._next, self._mode = sequences, 0, mode
        self.chunk, self.context, self.started_s = 0, 0.0, 0.0
        self.full = False
        self._scheduled: _Pass = (0, 0.0, [])

    def advance(self, decode: "DecodeEngine") -> list[Sequence]:
        """One pass, beside what ``decode`` has; the prompts that it completes at ``now``."""
        self._admit(self.now)
        scheduled = self._scheduled if self._scheduled[0] else self._take(self._mode.chunk)
        self.chunk, self.context, completes = scheduled
        self.started_s = self.now
        if self.chunk:
            # What runs next is settled as this begins, where vLLM schedules ahead.
            ahead = self._serving.steps_in_flight
            self._scheduled = self._take(self._mode.chunk) if ahead else (0, 0.0, [])
            self.now += self._pass_ms(decode) / 1e3
            if self.events is not None:
                name = self._mode.name
                self.events.append(Event("prefill", name, self.started_s, self.now, self.chunk, 0))
        elif self._waiting:
            self.full = True
        else:
            coming = self._coming
            self.now = coming[self._next].arrival_s if self._next < len(coming) else inf
        return completes

    def _pass_ms(self, decode: "DecodeEngine") -> float:
        serving, lane = self._serving, self.times.lane(self._mode)
        batch, kv = decode.batch, decode.decode_kv
        ms = lane.prefill(self.chunk, self.context, batch, kv)
        if not batch:
            ms = min(ms, lane.prefill_alone(self.chunk, self.context, 0, 0.0))
        graphs = self.chunk <= serving.graph_tokens
        launch_ms = serving.launch_ms if graphs else serving.eager_ms
        return max(ms, serving.schedule_ms + launch_ms)

    def release(self, sequence: Sequence, at_s: float) -> None:
        """The other engine has read the sequence's KV."""
        self._in_flight -= 1
        self._free(sequence, sequence.prompt)
        if self.full:
            self.full, self.now = False, max(self.now, at_s)

    @property
    def backlog(self) -> int:
        """Prompt tokens that wait."""
        return self._backlog


class DecodeEngine(SimEngine):
    """The engine that decodes what the other hands over, and recomputes what it preempted."""

    def begin(self, mode: Mode, handover: Handover) -> None:
        """Wait for prompts."""
        self._mode, self._handover = mode, handover
        self._coming, self._next, self.now = [], 0, inf
        self._handed: deque[tuple[float, Sequence]] = deque()
        self._pulls: list[_Pull] = []

    def hand(self, sequences: list[Sequence], at_s: float) -> None:
        """Prompts that the other engine has computed at ``at_s``."""
        at_s += self._handover.router_ms / 1e3
        self._handed.extend((at_s, sequence) for sequence in sequences)
        if sequences and self.now == inf:
            self.now = at_s

    def advance(self, prefill: PrefillEngine) -> None:
        """One step beside what ``prefill`` runs, or the wait for a prompt."""
        self._land(prefill)
        self._pull()
        if self.states is not None:
            self.states.append((self.now, State(self._batch, int(self._kv_used), prefill.backlog)))
        extra_ms, again = self._recompute()
        if self._batch or again:
            self._make_room()
            ms = extra_ms + self._step_ms(prefill)
            self._finish_step(ms / 1e3, self._mode, 0, again)
            return
        coming = [pull.at_s for pull in self._pulls]
        if self._handed and self._handed[0][0] > self.now:  # else it waits for room
            coming.append(self._handed[0][0])
        self.now = min(coming, default=inf)

    @property
    def batch(self) -> int:
        """Sequences that decode."""
        return self._batch

    @property
    def decode_kv(self) -> float:
        """KV tokens that they read."""
        return self._decode_kv

    @property
    def too_late(self) -> int:
        """Requests whose first token came later than ``early_stop`` allows."""
        return self._too_late

    def _step_ms(self, prefill: PrefillEngine) -> float:
        serving, lane = self._serving, self.times.lane(self._mode)
        batch, kv = self._batch, self._decode_kv
        alone = lane.decode_alone(0, 0.0, batch, kv) if batch else 0.0
        beside = bool(prefill.chunk) and prefill.started_s <= self.now < prefill.now
        if batch and beside:
            alone = max(alone, lane.decode(prefill.chunk, prefill.context, batch, kv))
        host_ms = serving.schedule_ms + serving.launch_ms + serving.result_ms
        context_skew_ms = self._uneven_beside_ms() if beside else self._uneven_ms()
        return max(alone + context_skew_ms, host_ms)

    def _land(self, prefill: PrefillEngine) -> None:
        """Let those decode whose KV is there."""
        step = len(self.step_ends)
        for pull in self._pulls:
            if pull.at_s <= self.now and (pull.step <= step or not self._batch):
                prefill.release(pull.sequence, pull.at_s)
                pull.sequence.reply_s = self._reply_s(self._batch + 1)
                self._join(pull.sequence, first_step=step)
                pull.at_s = inf
        self._pulls = [pull for pull in self._pulls if pull.at_s < inf]

    def _pull(self) -> None:
        """Begin to read the prompts that are handed over, while there is room for them."""
        while self._handed and self._handed[0][0] <= self.now:
            sequence = self._handed[0][1]
            tokens = sequence.prompt
            running = self._batch + len(self._pulls)
            room = self.limits.kv_tokens - self._kv_used - self._batch
            if running and (running >= self.limits.max_num_seqs or tokens > room):
                return
            self._handed.popleft()
            self._kv_used += tokens + self._slack
            self._in_flight += 1
            at_s = self.now + self._handover.copy_ms_per_token * tokens / 1e3
            step = len(self.step_ends) + 1 + self._handover.steps
            self._pulls.append(_Pull(sequence, at_s, step))

    def _recompute(self) -> tuple[float, list[Sequence]]:
        """Time to compute a sequence again that was preempted, and that sequence."""
        sequence = self._waiting.first
        if sequence is None:
            return 0.0, []
        tokens = sequence.remaining
        running = self._batch + len(self._pulls)
        if running and tokens > self.limits.kv_tokens - self._kv_used - self._batch:
            return 0.0, []
        self._waiting.pop()
        self._kv_used += tokens + self._slack
        self._in_flight += 1
        sequence.computed, sequence.remaining = tokens, 0
        return self.times.lane(self._mode).recompute(tokens, 0.0, 0, 0.0), [sequence]

    def _preempted(self, sequence: Sequence) -> None:
        sequence.cached = 0  # in the other engine
        super()._preempted(sequence)

    def _push(self, sequence: Sequence) -> None:
        self._waiting.push(sequence)


class SimPair:
    """Serves ``sequences`` (by arrival) to the end; ``step_ends`` are the decode engine's."""

    def __init__(
        self,
        times: StepTimes,
        limits: Engine,
        mode: Mode,
        shares: Shares,
        *,
        handover: Handover = HANDOVER,
        record: bool = False,
        early_stop: EarlyStop | None = None,
        cache: PrefixCache | None = None,
    ) -> None:
        """``mode`` says how many SMs each engine is capped to, ``shares`` their KV caches.

        The ``cache`` is the prefill engine's.
        """
        self._mode, self._handover, self.early_stop = mode, handover, early_stop
        prefill = replace(limits, kv_tokens=shares.prefill_kv_tokens)
        decode = replace(limits, kv_tokens=shares.decode_kv_tokens)
        self._prefill = PrefillEngine(
            times, prefill, ranker=PrefillRanker("fcfs"), stock=True, record=record, cache=cache
        )
        self._decode = DecodeEngine(
            times, decode, ranker=PrefillRanker("fcfs"), record=record, early_stop=early_stop
        )

    def run(self, sequences: list[Sequence]) -> bool:
        """Serve them all; False when ``early_stop`` ended it before."""
        prefill, decode = self._prefill, self._decode
        prefill.begin(sequences, self._mode)
        decode.begin(self._mode, self._handover)
        # Each engine's clock is the end of what it last began: the one behind goes on.
        while prefill.now < inf or decode.now < inf:
            if self.early_stop is not None and decode.too_late > self.early_stop.most:
                return False
            if prefill.now <= decode.now and not prefill.full:
                completes = prefill.advance(decode)
                decode.hand(completes, prefill.now)
            else:
                decode.advance(prefill)
        return True

    @property
    def step_ends(self) -> list[float]:
        """The end of each decode step in seconds."""
        return self._decode.step_ends

    @property
    def now(self) -> float:
        """The end of the last step."""
        return self._decode.step_ends[-1]

    @property
    def preemptions(self) -> int:
        """How often the decode engine put a sequence back."""
        return self._decode.preemptions

    @property
    def events(self) -> list[Event]:
        """Passes and steps by time, if recorded."""
        both = [*(self._prefill.events or ()), *(self._decode.events or ())]
        return sorted(both, key=lambda event: event.start_s)

    @property
    def states(self) -> list[tuple[float, State]] | None:
        """The state before each decode step, if recorded."""
        return self._decode.states
