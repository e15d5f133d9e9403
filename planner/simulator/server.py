"""vLLM's engine loop in virtual time: a host that schedules steps ahead of a device that runs them.

The host takes requests in, looks at the lane, asks the policy for a mode, schedules and
launches a step, launches passes, and then waits for the oldest step that is under way.
With asynchronous scheduling there is always one more: what arrives during a step is first
scheduled in the next but one. A token is out when the host has seen its step's end.
"""

from collections.abc import Callable
from math import inf

import numpy as np

from nexus.core.lane import MIN_LANE_TOKENS
from nexus.core.machine import Engine
from nexus.core.plan import Mode, Plan
from nexus.core.policy import State
from nexus.core.prefill.ranking import PrefillRanker
from nexus.core.slo import has_late_budget
from nexus.core.tbt import TbtController
from nexus.planner.latency.steptimes import StepTimes
from nexus.planner.simulator.engine import SimEngine, rank_of
from nexus.planner.simulator.flight import Flight, Step
from nexus.planner.simulator.lane import SimLane
from nexus.planner.simulator.prefix_cache import PrefixCache
from nexus.planner.simulator.sequence import EarlyStop, Sequence

Chooser = Callable[[State, Callable[[], bool]], tuple[Mode, float]]
"""Which mode to run in a state, as ``Policy.decide``, and how fast prompts are computed then.

In tokens per second; 0 where that is not known.
"""

_ALIKE = 64  # steps whose times are taken to grow evenly, as they do where they were measured
_NOISE = np.random.default_rng(0).standard_normal(4096).tolist()  # how steps of a size differ
_IDLE_S = 1e-3  # vLLM sleeps as long between steps in which nothing runs


class SimServer(SimEngine):
    """Serves ``sequences`` (by arrival) to the end; ``now`` is the host's clock."""

    def __init__(
        self,
        times: StepTimes,
        limits: Engine,
        choose: Chooser,
        *,
        ranker: PrefillRanker,
        controller: TbtController | None = None,
        stock: bool = False,
        plan: Plan | None = None,
        record: bool = False,
        early_stop: EarlyStop | None = None,
        cache: PrefixCache | None = None,
        max_queued_tokens: int | None = None,
    ) -> None:
        """As SimEngine; ``plan`` says which chunk runs beside the lane.

        ``controller`` is told of the gaps, if what chooses has one.
        """
        super().__init__(
            times,
            limits,
            ranker=ranker,
            stock=stock,
            record=record,
            early_stop=early_stop,
            cache=cache,
            max_queued_tokens=max_queued_tokens,
        )
        self.choose, self._controller = choose, controller
        self._lane = SimLane(times, padded=self._serving.pads)
        self._flight = Flight(self._serving, self._lane)
        self._beside = plan.beside_lane if plan is not None else None
        self._lane_mode: Mode | None = None  # the last that was not fused
        self._lane_only = False  # prompts that suit the lane are not for the step
        self._after_s = 0.0  # the next step waits for a pass on the device until then

    def run(self, sequences: list[Sequence]) -> bool:
        """Serve them all; False when ``early_stop`` ended it before."""
        self._coming, self._next = sequences, 0
        while self._next < len(sequences) or self._busy() or self._flight.steps:
            if self.early_stop is not None and self._too_many_late(self.early_stop):
                return False
            self._admit(self.now)
            if self._busy():
                self._turn()
            elif self._flight.steps:
                self._see()
            elif self._next < len(sequences):
                self.now = max(self.now, sequences[self._next].arrival_s)
        return True

    def _busy(self) -> bool:
        return bool(self._batch or self._waiting or self._partial or self._lane.num_prompts)

    def _turn(self) -> None:
        """One round of the engine's loop."""
        self._hand_over()
        state = State(self._batch, self._kv_of_running(), self._backlog)
        mode, tokens_per_s = self.choose(state, self._all_afford_a_late_gap)
        self._waiting.step(self.now, self._partial, tokens_per_s)
        if self.states is not None:
            self.states.append((self.now, state))
        if not (self._backlog or self._lane.num_prompts or self._lane.passes):
            self._decode_until_something_happens(mode)
            return
        chunk = self._prompts_for(mode)
        self._make_room()
        most = max(self.limits.max_num_batched_tokens - self._batch, 0)
        taken = self._take(min(chunk, most))
        runs = bool(self._batch or taken[0])
        if runs:
            self._launch(mode, *taken)
        if not self._launch_passes() and not runs:
            self._wait()
        while self._flight.full:
            self._see()

    def _all_afford_a_late_gap(self) -> bool:
        launched = self._launched
        return all(
            has_late_budget(each.emitted + launched - each.spans[-1][0], each.late)
            for each in reversed(self._last_in)
            if each.decoding
        )

    def _note_gap(self, controller: TbtController, step: Step) -> None:
        """The step that was just seen has ended."""
        seen = len(self.step_ends) - 1
        gap_ms = 1e3 * (self.step_ends[-1] - self.step_ends[-2]) if seen else 0.0
        if controller.is_late(gap_ms):
            for each in self._last_in:
                each.late += each.decoding and each.spans[-1][0] < seen
        if step.chunk:
            controller.ended(step.mode, gap_ms)

    def _kv_of_running(self) -> int:
        return int(self._decode_kv) + sum(sequence.computed for sequence in self._partial)

    def _decode_until_something_happens(self, mode: Mode) -> None:
        """Decode steps up to the next arrival or the next sequence to finish."""
        self._make_room()
        coming, batch, most = self._coming, self._batch, self.limits.kv_tokens
        arrival_s = coming[self._next].arrival_s if self._next < len(coming) else inf
        while True:
            self._launch(mode, 0, 0.0, [])
            while self._flight.full:
                self._see()
            full = self._kv_used + batch > most and batch > 1
            if self.now >= arrival_s or self._batch != batch or full:
                return
            if self.events is None and not self._lane.past:
                self._decode_alike(mode, arrival_s)
                if self.now >= arrival_s:
                    return

    def _decode_alike(self, mode: Mode, until_s: float) -> None:
        """Decode steps that end no sequence and leave room: only KV tokens tell them apart."""
        batch, kv = self._batch, self._decode_kv
        room = int((self.limits.kv_tokens - self._kv_used) / batch) - 1
        count = min(room, min(self._finishing) - self._launched, _ALIKE)
        if count < 2 or batch > self.limits.max_num_batched_tokens:
            return
        first_s, last_s = (
            self.times.step_ms(0, 0.0, batch, kv + steps * batch) / 1e3 for steps in (0, count - 1)
        )
        if self._controller is not None and self._controller.is_late(1e3 * last_s):
            return  # each of their gaps is to be counted
        alone_s = first_s + self._uneven_ms() / 1e3  # of contexts that grow alike
        like = Step(0.0, 0.0, alone_s, alone_s, first_s, 0, batch, kv, mode)
        more_s = (last_s - first_s) / (count - 1)
        ends = self._flight.go_on(self.now, like, more_s, count, until_s)
        self.now = ends[-1]
        self.step_ends += ends
        self._decode_kv += len(ends) * batch
        self._kv_used += len(ends) * batch
        self._launched += len(ends)

    def _prompts_for(self, mode: Mode) -> int:
        """Let prompts go to the lane or come back; how many prompt tokens a step may have."""
        self._lane_only = mode.mode != "fused"
        if self._lane_only:
            self._lane_mode = mode
            return self._fill_lane(mode)
        if self._lane.waits:
            assert self._lane_mode is not None
            self._lane.withdraw(self._lane_mode.chunk)
            self._take_back()
        return mode.chunk - self._batch if self.stock else mode.prompt_tokens(self._batch)

    def _take_back(self) -> None:
        """Prompts that the lane gave up wait again, with what it computed of them."""
        for sequence in self._lane.given_up():
            self._in_flight -= 1
            self._kv_used -= sequence.remaining + self._slack
            self._backlog -= sequence.remaining
            self._push(sequence)

    def _fill_lane(self, mode: Mode) -> int:
        """Give prompts to the lane while it has room; the chunk for those that do not suit it."""
        beside = self._beside or mode
        chunk = left = min(beside.prompt_tokens(self._batch), mode.chunk)
        while (sequence := self._first()) and self._has_room_for(sequence):
            suits = sequence.remaining > MIN_LANE_TOKENS and not sequence.computed
            if left <= 0 or (suits and not self._lane.has_room(sequence.rank, mode.chunk)):
                break
            self._start(self._waiting.pop())
            if suits:
                self._in_flight += 1
                sequence.rank = self._waiting.handed_over(sequence)
                self._lane.add(sequence)
            else:
                self._partial.append(sequence)
                left -= sequence.remaining
        return chunk

    def _next_prompt(self) -> Sequence | None:
        if self._lane_only:
            return min(self._partial, key=rank_of, default=None)
        return super()._next_prompt()

    def _hand_over(self) -> None:
        """Prompts whose passes are over, or will be when the next step can begin, decode."""
        lane = self._lane
        if not lane.passes:
            return
        done = lane.over(self.now)
        self._take_back()
        if self._serving.prelaunches and lane.completing and self._flight.steps:
            begins_s = self._flight.expected_end()
            done += lane.leaving(begins_s)
            self._after_s = max(self._after_s, lane.left_s)
        for sequence in done:
            sequence.computed += 1
            sequence.remaining = 0
            self._backlog -= 1
            if self._cache is not None:
                self._share(sequence, self._cache)
            sequence.reply_s = self._reply_s(self._batch + len(done))
            self._join(sequence, first_step=self._launched)

    def _launch(self, mode: Mode, chunk: int, context: float, completes: list[Sequence]) -> None:
        serving, times, batch, kv = self._serving, self.times, self._batch, self._decode_kv
        base_ms = times.step_ms(chunk, context, batch, kv)
        if chunk:
            base_ms *= serving.sustained * (
                1.0 + serving.step_cv * _NOISE[self._launched % len(_NOISE)]
            )
        whole_ms = base_ms + self._uneven_ms(chunk, context)
        limit = self.limits.max_num_batched_tokens
        if batch > limit:  # not all decodes fit in one step
            whole_ms *= batch / limit
        alone_ms = whole_ms
        if self._lane.num_prompts or self._lane.passes:
            base_ms = times.step_ms(0, 0.0, batch, kv) if chunk else base_ms
            # Beside a pass the longest context costs more.
            whole_ms += self._uneven_beside_ms() - self._uneven_ms(chunk, context)
            in_force = self._lane_mode
            if in_force is not None and in_force.mode == "split" and batch and not chunk:
                alone_ms += times.lane(in_force).decode_alone(0, 0.0, batch, kv) - base_ms
        ready_s = self.now + serving.schedule_ms / 1e3
        graphs = chunk + batch <= serving.graph_tokens or not chunk
        launch_ms = serving.launch_ms if graphs else serving.eager_ms
        self.now = ready_s + launch_ms / 1e3
        ready_s, self._after_s = max(ready_s, self._after_s), 0.0
        parts = (alone_ms / 1e3, whole_ms / 1e3, base_ms / 1e3)
        self._flight.steps.append(Step(ready_s, self.now, *parts, chunk, batch, kv, mode))
        for sequence in completes:
            sequence.reply_s = self._reply_s(batch + len(completes))
        self._account(completes)

    def _launch_passes(self) -> bool:
        """Keep the lane's passes coming; whether one was launched."""
        lane, serving, launched = self._lane, self._serving, False
        while lane.waits and not lane.full:
            mode = self._lane_mode
            assert mode is not None
            at_s = self.now
            self.now += serving.pass_ms / 1e3
            made = lane.launch(mode, at_s, self.now, self._batch, self._decode_kv)
            self._backlog -= made.chunk
            launched = True
            if self.events is not None:
                each = (made.mode, made.start_s, made.end_s, made.chunk, self._batch)
                self._record("prefill", *each)
        return launched

    def _wait(self) -> None:
        """Nothing can be launched: until a step or a pass ends, or a request comes."""
        if self._flight.steps:
            self._see()
            return
        next_s = self._lane.passes[0].end_s
        if self._next < len(self._coming):
            next_s = min(next_s, self._coming[self._next].arrival_s)
        self.now = max(self.now, next_s) + _IDLE_S / 2

    def _see(self) -> None:
        """Wait for the end of the oldest step under way."""
        step, start_s, self.now = self._flight.see(self.now)
        self.step_ends.append(self.now)
        if self._controller is not None and step.batch:
            self._note_gap(self._controller, step)
        if self.events is not None:
            kind, end_s = "fused" if step.chunk else "decode", self._flight.device_s
            self._record(kind, step.mode, start_s, end_s, step.chunk, step.batch)
