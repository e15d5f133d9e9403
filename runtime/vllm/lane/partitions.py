"""The plan's partitions on a GPU, all made at start, and the lane's and vLLM's steps in them.

Changing from one to another costs an event wait on the device and nothing on the host.
"""

import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch

from nexus.core.lane import MAX_PASSES, pass_sizes
from nexus.core.plan import Mode, Plan
from nexus.runtime.partition.green import GreenContexts, Lanes, lanes_of
from nexus.runtime.vllm.graphs.decode import DecodeLane
from nexus.runtime.vllm.graphs.sizes import graph_sizes
from nexus.runtime.vllm.lane.driver import Launcher
from nexus.runtime.vllm.lane.pass_end import PassEndPredictor, TimedPass, TimedStep
from nexus.runtime.vllm.lane.pass_inputs import Row, trace_arguments
from nexus.runtime.vllm.lane.prefill_lane import PrefillLane
from nexus.runtime.vllm.lane.queue import Pass
from nexus.runtime.vllm.trace import PASSES, ServeTrace


@dataclass(frozen=True)
class _Place:
    """Where a mode runs: its lanes, and decode graphs where vLLM's own would leave them."""

    lanes: Lanes
    graphs: Any | None
    most_decodes: int


class Fence:
    """An event that follows all that one stream was given so far."""

    def __init__(self, stream: torch.cuda.Stream) -> None:
        """Record it on ``stream``."""
        self._event = torch.cuda.Event()
        self._event.record(stream)

    def finished(self) -> bool:
        """Whether the stream came past it."""
        return bool(self._event.query())


class Partitions(Launcher):
    """Every split and overlap of a plan, realized in one worker."""

    max_passes = MAX_PASSES  # more than one: the device never waits for the host to launch the next

    def __init__(
        self, runner: Any, lane: PrefillLane, plan: Plan, trace: ServeTrace | None
    ) -> None:
        """Make partitions and capture graphs; passes go to ``trace`` if there is one.

        Raises PartitionError where the driver gives other SMs than the plan was made for.
        """
        self._lane = lane
        self._decode = DecodeLane(runner)
        self._contexts = GreenContexts(runner.device.index or 0)
        self._graphs: dict[int, tuple[Any, int]] = {}
        self._on: tuple[torch.cuda.Stream, Any | None] | None = None
        self._trace = trace
        self._predictor = PassEndPredictor()
        self._awaited: list[torch.cuda.Event] = []
        self._step_begun = torch.cuda.Event(enable_timing=True)
        free = torch.cuda.mem_get_info(runner.device)[0]
        start = time.perf_counter()
        modes = [mode for mode in plan.modes.values() if mode.mode != "fused"]
        self._places = {mode.name: self._place(mode, plan, runner) for mode in modes}
        self._decode_s = time.perf_counter() - start
        self._capture_passes(modes)
        self._total_s = time.perf_counter() - start
        self._bytes = free - torch.cuda.mem_get_info(runner.device)[0]
        self._zero = torch.cuda.Event(enable_timing=True)
        self._zero.record()
        self._zero.synchronize()
        self._zero_s = time.monotonic()

    def describe(self) -> str:
        """What was made, and what it cost."""
        graphs = sum(len(graphs.graphs) for graphs, _ in self._graphs.values() if graphs)
        return (
            f"{', '.join(self._places)}; partitions and {graphs} decode graphs took"
            f" {self._decode_s:.1f} s, {self._lane.num_graphs} prefill graphs"
            f" {self._total_s - self._decode_s:.1f} s; {self._bytes / 2**30:.2f} GiB"
        )

    def sms(self, mode: Mode) -> tuple[int, int]:
        """SMs of prefill and of decode, as realized."""
        partition = self._places[mode.name].lanes.partition
        return partition.prefill_sms, partition.decode_sms

    def launch(self, mode: Mode, rows: Sequence[Row], *, fresh_context: bool) -> Pass:
        """Launch a pass on the prefill SMs of ``mode``."""
        lanes = self._places[mode.name].lanes
        stream = lanes.prefill
        self._lane.move_to(stream, lanes.prefill_gemm_sms)
        after = None
        if fresh_context:
            after = torch.cuda.Event()
            after.record()
        begun = torch.cuda.Event(enable_timing=True)
        begun.record(stream)
        tokens = sum(len(row.tokens) for row in rows)
        key = (mode.name, self._lane.padded(tokens))
        over = partial(self._over, rows=rows)
        return TimedPass(key, begun, self._lane.forward(rows, after), over)

    def _over(self, work: TimedPass, *, rows: Sequence[Row]) -> None:
        self._predictor.pass_over(work)
        if self._trace is not None:
            start_s, end_s = (
                self._zero_s + self._zero.elapsed_time(event) / 1e3
                for event in (work.begun, work.done)
            )
            name, _ = work.key
            self._trace.span(PASSES, name, start_s, end_s, **trace_arguments(rows))

    def ends_in_time(self, work: Pass) -> bool:
        """As passes so far went; False where nothing can be told."""
        return isinstance(work, TimedPass) and self._predictor.ends_within(work) is True

    def should_prelaunch(self, work: Pass) -> bool:
        """As passes so far went; True where nothing can be told."""
        if not isinstance(work, TimedPass):
            return True
        # When this is asked again, the step now being launched will be under way.
        return self._predictor.ends_within(work, more_steps=1) is not False

    def next_step_waits(self, work: Pass) -> None:
        """By an event on the device."""
        assert isinstance(work, TimedPass)
        self._awaited.append(work.done)

    def fence(self) -> Fence:
        """Over when every pass launched so far is."""
        assert self._lane.stream is not None
        return Fence(self._lane.stream)

    @contextmanager
    def step(self, mode: Mode | None, scheduler_output: Any) -> Iterator[None]:
        """Run vLLM's step on the decode SMs of ``mode``."""
        if mode is None:
            self._decode.leave()
            self._on = None
            self._predictor.forget_steps()
        else:
            place = self._places[mode.name]
            self._on = (place.lanes.decode, _graphs_for(place, scheduler_output))
        with self._running():
            for done in self._awaited:
                torch.cuda.current_stream().wait_event(done)
            self._awaited.clear()
            if self._on is not None:
                # Behind what was awaited: a pass that a step waits for is no part of it.
                self._step_begun = torch.cuda.Event(enable_timing=True)
                self._step_begun.record()
            yield

    @contextmanager
    def same_step(self) -> Iterator[None]:
        """The second half of the step before."""
        with self._running():
            yield
            if self._on is not None:
                end = torch.cuda.Event(enable_timing=True)
                end.record()
                self._predictor.step_launched(TimedStep(self._step_begun, end))

    @contextmanager
    def _running(self) -> Iterator[None]:
        if self._on is None:
            yield
            return
        with self._decode.on(*self._on):
            yield

    def _place(self, mode: Mode, plan: Plan, runner: Any) -> _Place:
        lanes = lanes_of(self._contexts, mode)
        if mode.mode == "overlap":
            return _Place(lanes, None, 0)
        return _Place(lanes, *self._captured(mode, plan, lanes, runner))

    def _captured(self, mode: Mode, plan: Plan, lanes: Lanes, runner: Any) -> tuple[Any, int]:
        """Decode graphs on a split's decode SMs; splits with the same SMs share them."""
        key = lanes.decode.cuda_stream
        if key not in self._graphs:
            config = runner.vllm_config
            stock = config.compilation_config.cudagraph_capture_sizes or []
            names = {
                other.name
                for other in plan.modes.values()
                if other.mode == "split" and other.decode_sms == mode.decode_sms
            }
            most = int(config.scheduler_config.max_num_seqs)
            sizes = graph_sizes(plan, names, [size for size in stock if size <= most])
            graphs = None
            if sizes:
                graphs = self._decode.capture(lanes.decode, lanes.decode_gemm_sms, sizes)
            self._graphs[key] = (graphs, max(sizes, default=0))
        return self._graphs[key]

    def _capture_passes(self, modes: Sequence[Mode]) -> None:
        """Graphs of every pass; the first on a stream also allocates what libraries need."""
        for mode in modes:
            chunk = min(mode.chunk, self._lane.max_tokens)
            lanes = self._places[mode.name].lanes
            self._lane.move_to(lanes.prefill, lanes.prefill_gemm_sms)
            self._lane.capture(pass_sizes(chunk))


def _graphs_for(place: _Place, scheduler_output: Any) -> Any | None:
    """The partition's graphs for a step of decodes only; vLLM's own for any other."""
    counts = scheduler_output.num_scheduled_tokens
    decodes = scheduler_output.total_num_scheduled_tokens == len(counts)
    return place.graphs if decodes and len(counts) <= place.most_decodes else None
