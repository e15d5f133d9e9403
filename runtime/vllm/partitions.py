"""The plan's partitions on a GPU, all made at start, and the lane's and vLLM's steps in them.

Changing from one to another costs an event wait on the device and nothing on the host.
"""

import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch

from nexus.errors import PartitionError
from nexus.planner.table import Mode, Plan
from nexus.runtime.partition.green import GreenContexts, Lanes
from nexus.runtime.vllm.decode import DecodeLane
from nexus.runtime.vllm.driver import Launcher
from nexus.runtime.vllm.graph_sizes import graph_sizes
from nexus.runtime.vllm.lane import LanePass, PrefillLane
from nexus.runtime.vllm.lane_queue import Pass
from nexus.runtime.vllm.rows import Row
from nexus.runtime.vllm.trace import PASSES, ServeTrace

_Tell = Callable[[torch.cuda.Event, torch.cuda.Event], None]


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


class TracedPass:
    """A pass that goes to a trace when it is over, with the device's own times."""

    def __init__(self, begun: torch.cuda.Event, work: LanePass, tell: _Tell) -> None:
        """``begun`` was recorded before ``work``; ``tell`` gets both when they are over."""
        self._begun = begun
        self._work = work
        self._tell: _Tell | None = tell

    def finished(self) -> bool:
        """Whether the pass is over."""
        if not self._work.finished():
            return False
        if self._tell is not None and self._work.done is not None:
            self._tell(self._begun, self._work.done)
        self._tell = None
        return True


class Partitions(Launcher):
    """Every split and overlap of a plan, realized in one worker."""

    def __init__(
        self, runner: Any, lane: PrefillLane, plan: Plan, trace: ServeTrace | None
    ) -> None:
        """Make partitions, capture graphs, and run each once; passes go to ``trace`` if any.

        Raises PartitionError where the driver gives other SMs than the plan was made for.
        """
        self._lane = lane
        self._decode = DecodeLane(runner)
        self._contexts = GreenContexts(runner.device.index or 0)
        self._graphs: dict[int, tuple[Any, int]] = {}
        self._on: tuple[torch.cuda.Stream, Any | None] | None = None
        self._trace: ServeTrace | None = None  # the warm-up is not traced
        free = torch.cuda.mem_get_info(runner.device)[0]
        start = time.perf_counter()
        modes = [mode for mode in plan.modes.values() if mode.mode != "fused"]
        self._places = {mode.name: self._place(mode, plan, runner) for mode in modes}
        self._capture_s = time.perf_counter() - start
        self._warm_up(modes, runner)
        self._total_s = time.perf_counter() - start
        self._bytes = free - torch.cuda.mem_get_info(runner.device)[0]
        self._trace = trace
        self._zero = torch.cuda.Event(enable_timing=True)
        self._zero.record()
        self._zero.synchronize()
        self._zero_s = time.monotonic()

    def describe(self) -> str:
        """What was made, and what it cost."""
        graphs = sum(len(graphs.graphs) for graphs, _ in self._graphs.values())
        return (
            f"{', '.join(self._places)}; {graphs} decode graphs; partitions and graphs took"
            f" {self._capture_s:.1f} s, warm-up {self._total_s - self._capture_s:.1f} s,"
            f" {self._bytes / 2**30:.2f} GiB"
        )

    def sms(self, mode: Mode) -> tuple[int, int]:
        """SMs of prefill and of decode, as realized."""
        partition = self._places[mode.name].lanes.partition
        return partition.prefill_sms, partition.decode_sms

    def launch(self, mode: Mode, rows: Sequence[Row], *, fresh_context: bool) -> Pass:
        """Launch a pass on the prefill SMs of ``mode``."""
        stream = self._places[mode.name].lanes.prefill
        self._lane.move_to(stream)
        after = None
        if fresh_context:
            after = torch.cuda.Event()
            after.record()
        if self._trace is None:
            return self._lane.forward(rows, after)
        begun = torch.cuda.Event(enable_timing=True)
        begun.record(stream)
        return TracedPass(begun, self._lane.forward(rows, after), partial(self._tell, mode, rows))

    def _tell(
        self, mode: Mode, rows: Sequence[Row], begun: torch.cuda.Event, done: torch.cuda.Event
    ) -> None:
        assert self._trace is not None
        start_s, end_s = (
            self._zero_s + self._zero.elapsed_time(event) / 1e3 for event in (begun, done)
        )
        tokens = sum(len(row.tokens) for row in rows)
        self._trace.span(PASSES, mode.name, start_s, end_s, prompts=len(rows), tokens=tokens)

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
        else:
            place = self._places[mode.name]
            self._on = (place.lanes.decode, _graphs_for(place, scheduler_output))
        with self.same_step():
            yield

    @contextmanager
    def same_step(self) -> Iterator[None]:
        """The second half of the step before."""
        if self._on is None:
            yield
            return
        with self._decode.on(*self._on):
            yield

    def _place(self, mode: Mode, plan: Plan, runner: Any) -> _Place:
        contexts = self._contexts
        if mode.mode == "overlap":
            lanes = contexts.overlap(mode.prefill_sms)
            wanted = (mode.prefill_sms, contexts.total_sms)
        else:
            lanes = contexts.split(mode.prefill_sms, mode.decode_sms)
            wanted = (mode.prefill_sms, mode.decode_sms)
        given = (lanes.partition.prefill_sms, lanes.partition.decode_sms)
        if given != wanted:
            raise PartitionError(f"{mode.name}: the driver gives {given[0]} + {given[1]} SMs")
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
            graphs = self._decode.capture(lanes.decode, sizes) if sizes else None
            self._graphs[key] = (graphs, max(sizes, default=0))
        return self._graphs[key]

    def _warm_up(self, modes: Sequence[Mode], runner: Any) -> None:
        """One pass in each partition: the first on a stream allocates its memory."""
        longest = int(runner.vllm_config.model_config.max_model_len) - 1
        for mode in modes:
            chunk = min(mode.chunk, self._lane.max_tokens)
            lengths = [longest] * (chunk // longest) + [chunk % longest]
            rows = [self._null_row(length, runner) for length in lengths if length]
            self.launch(mode, rows, fresh_context=False)
            self._places[mode.name].lanes.prefill.synchronize()

    def _null_row(self, length: int, runner: Any) -> Row:
        """A row that writes to vLLM's null block, which no request reads."""
        groups = runner.kv_cache_config.kv_cache_groups
        sizes = [group.kv_cache_spec.block_size for group in groups]
        return Row([0] * length, 0, tuple([0] * -(-length // size) for size in sizes))


def _graphs_for(place: _Place, scheduler_output: Any) -> Any | None:
    """The partition's graphs for a step of decodes only; vLLM's own for any other."""
    counts = scheduler_output.num_scheduled_tokens
    decodes = scheduler_output.total_num_scheduled_tokens == len(counts)
    return place.graphs if decodes and len(counts) <= place.most_decodes else None
