"""Timing points on a GPU, inside the worker that serves.

Decode steps are vLLM's own, input preparation and sampling included, as CUDA graphs on
the SMs that the point names. Prefill runs on the prefill lane. Steps are queued one
ahead, as the server does it, and a step's time is from the end of the step before it to
its own end on the device: the host's work counts exactly where it is not hidden.
"""

import statistics
import time
from collections import deque
from collections.abc import Callable
from itertools import pairwise
from typing import Any

import torch

from nexus.core.errors import PartitionError
from nexus.core.spread import percentile
from nexus.profiler.kernels import KernelRecorder, kernel_samples
from nexus.profiler.measure import all_ranks
from nexus.profiler.nvml import GpuCondition
from nexus.profiler.points import BATCHES, Point
from nexus.profiler.steps import StepDriver
from nexus.profiles.schema import KernelSample, Sample
from nexus.runtime.partition.green import GreenContexts, Lanes
from nexus.runtime.vllm.compat import AsyncModelRunnerOutput
from nexus.runtime.vllm.graphs.decode import DecodeLane
from nexus.runtime.vllm.graphs.mixed import MixedGraphs, most_tokens
from nexus.runtime.vllm.graphs.sizes import sizes_up_to
from nexus.runtime.vllm.lane import LanePass, PrefillLane, Row

WARM_UP = 3
MIN_REPEATS = 5
MAX_REPEATS = 48
SOLO_SECONDS = 0.25
CORUN_SECONDS = 0.8
CORUN_STEPS = 256
MIN_PASSES = 3
TRACED_STEPS = 3


class QueuedSteps(StepDriver):
    """A step driver that does not wait for the step it has launched."""

    def __init__(self, worker: Any) -> None:
        """``worker`` as for StepDriver."""
        super().__init__(worker)
        self._queued: deque[Any] = deque()

    def launch(self, chunk: int = 0, prefill_context: int = 0) -> torch.cuda.Event:
        """Launch a step on the current stream; the event is its end."""
        self.run(chunk, prefill_context)
        done = torch.cuda.Event(enable_timing=True)
        done.record()
        return done

    def settle(self, leave: int = 0) -> None:
        """Wait until at most ``leave`` steps are under way."""
        while len(self._queued) > leave:
            self._queued.popleft().get_output()

    def reserve(self, tokens: int) -> tuple[list[int], ...]:
        """KV blocks for ``tokens`` tokens, unused by the decodes that ``begin`` set up."""
        return self._sequence(0, tokens).blocks

    def _execute(self, step: Any) -> None:
        output = self._worker.execute_model(step)
        if output is None:
            output = self._worker.sample_tokens(None)
        if isinstance(output, AsyncModelRunnerOutput):
            self._queued.append(output)


class Meter:
    """Measures points in one worker; holds the partitions, lanes and graphs they need."""

    def __init__(self, worker: Any) -> None:
        """``worker`` is a vLLM worker after start-up, with no request of its own."""
        runner = worker.model_runner
        index = runner.device.index or 0
        self.contexts = GreenContexts(index)
        self._steps = QueuedSteps(worker)
        v2 = runner.vllm_config.use_v2_model_runner
        self._stock = runner.cudagraph_manager if v2 else None
        mixed = sizes_up_to(most_tokens(runner))
        if mixed:
            MixedGraphs(runner, mixed)  # steps of both phases as `nexus serve` runs them
        whole = self.contexts.alone(self.contexts.total_sms)
        self._lane = PrefillLane(runner, whole.prefill)
        # The lane is for one rank; on several a prompt's chunk is a whole step of vLLM's.
        self._has_lane = worker.vllm_config.parallel_config.world_size == 1
        self._decode = DecodeLane(runner)
        self._graphs: dict[int, Any] = {}
        self._sizes = _graph_sizes(worker.vllm_config)
        self._ahead = 1 if worker.vllm_config.max_concurrent_batches > 1 else 0
        self._gpu = GpuCondition(str(torch.cuda.get_device_properties(index).uuid))
        self._recorder: KernelRecorder | None = None

    def measure(self, point: Point) -> Sample:
        """Time ``point``; raises MemoryError or RuntimeError where it cannot run."""
        lanes = self._lanes(point)
        try:
            if point.mode in ("split", "overlap"):
                return self._together(point, lanes)
            return self._alone(point, lanes)
        finally:
            self._finish()

    def stock(self, point: Point) -> Sample:
        """Time the fused step of ``point`` with stock vLLM's graphs and attention."""
        assert point.mode == "fused"
        try:
            return self._alone(point, self._lanes(point), self._stock)
        finally:
            self._finish()

    def kernels(self, point: Point) -> list[KernelSample]:
        """Kernel times by class of one solo step of ``point``, a mean over a few."""
        assert point.mode in ("prefill", "decode")
        if self._recorder is None:
            self._recorder = KernelRecorder()
        lanes = self._lanes(point)
        launch, stream = self._launcher(point, lanes), self._stream(point, lanes)
        try:
            with self._on(point, lanes):
                for _ in range(WARM_UP):
                    launch().synchronize()
                with self._recorder.recording(stream.synchronize) as records:
                    for _ in range(TRACED_STEPS):
                        launch().synchronize()
        finally:
            self._finish()
        return kernel_samples(
            records,
            phase="prefill" if point.mode == "prefill" else "decode",
            sms=max(point.prefill_sms, point.decode_sms),
            steps=TRACED_STEPS,
            chunk=point.chunk,
            context=max(point.prefill_context, point.decode_context),
            batch=point.decode_batch,
        )

    def sizes(self) -> tuple[int, ...]:
        """Every number of SMs that a phase can be confined to, all of them last."""
        return self.contexts.sizes()

    def pairs(self) -> tuple[tuple[int, int], ...]:
        """Every split: SMs of prefill, and of decode."""
        return self.contexts.pairs()

    def _alone(self, point: Point, lanes: Lanes, graphs: Any = None) -> Sample:
        launch = self._launcher(point, lanes)
        with self._on(point, lanes, graphs):
            events = [launch() for _ in range(1 + self._ahead)]
            start = time.perf_counter()
            while len(events) < WARM_UP + MIN_REPEATS or all_ranks(
                time.perf_counter() - start < SOLO_SECONDS and len(events) < MAX_REPEATS
            ):
                events.append(launch())
                events[-1 - self._ahead].synchronize()
            condition = self._gpu.read()
            events[-1].synchronize()
        times = intervals_ms(events)[WARM_UP - 1 :]
        both = {"median": statistics.median(times), "p95": round(percentile(times, 95), 4)}
        return point.sample(
            prefill_ms=both["median"] if point.chunk else None,
            prefill_p95_ms=both["p95"] if point.chunk else None,
            decode_ms=both["median"] if point.decode_batch else None,
            decode_p95_ms=both["p95"] if point.decode_batch else None,
            repeats=len(times),
            **vars(condition),
        )

    def _together(self, point: Point, lanes: Lanes) -> Sample:
        """Both phases in steady state: a pass always queued, decode steps one ahead."""
        self._steps.begin(point.decode_batch, point.decode_context, CORUN_STEPS)
        row = self._row(point)
        self._move_lane(lanes, point.chunk)
        decodes: list[torch.cuda.Event] = []
        passes: list[LanePass] = []
        with self._on(point, lanes):
            decodes.append(self._steps.launch())  # decode first: it is quick to launch
            passes.append(self._lane.forward([row]))
            start = time.perf_counter()
            while len(decodes) < CORUN_STEPS and not (
                _enough(decodes, passes) and time.perf_counter() - start >= CORUN_SECONDS
            ):
                decodes.append(self._steps.launch())
                while not decodes[-1 - self._ahead].query():
                    self._top_up(passes, row)
                self._top_up(passes, row)
                self._steps.settle(self._ahead)
            condition = self._gpu.read()
            if not _enough(decodes, passes):
                raise RuntimeError("prefill is too slow beside these decodes")
            finished = [each.done for each in passes if each.finished() and each.done]
            decodes[-1].synchronize()
            passes[-1].wait()
        # The first pass on a stream also allocates memory.
        tbt = intervals_ms([each for each in decodes if finished[0].elapsed_time(each) > 0])
        chunks = intervals_ms(finished)
        return point.sample(
            prefill_ms=statistics.median(chunks),
            prefill_p95_ms=round(percentile(chunks, 95), 4),
            decode_ms=statistics.median(tbt),
            decode_p95_ms=round(percentile(tbt, 95), 4),
            repeats=len(tbt),
            **vars(condition),
        )

    def _top_up(self, passes: list[LanePass], row: Row) -> None:
        if len(passes) < 2 or passes[-2].finished():
            passes.append(self._lane.forward([row]))

    def _launcher(self, point: Point, lanes: Lanes) -> Callable[[], torch.cuda.Event]:
        """What launches one solo or fused step of ``point`` and returns its end."""
        self._steps.begin(point.decode_batch, point.decode_context, MAX_REPEATS + WARM_UP)
        if self._on_lane(point):
            row = self._row(point)
            self._move_lane(lanes, point.chunk)

            def run_pass() -> torch.cuda.Event:
                done = self._lane.forward([row]).done
                assert done is not None
                return done

            return run_pass

        def run_step() -> torch.cuda.Event:
            done = self._steps.launch(point.chunk, point.prefill_context)
            self._steps.settle(self._ahead)
            return done

        return run_step

    def _move_lane(self, lanes: Lanes, chunk: int) -> None:
        """Passes of ``chunk`` tokens on ``lanes``, as the graphs that the server has."""
        if lanes.prefill != self._lane.stream:
            self._lane.forget_graphs()
            torch.cuda.empty_cache()  # what one stream has freed, another cannot use
        self._lane.move_to(lanes.prefill, lanes.prefill_gemm_sms)
        self._lane.capture([chunk])

    def _row(self, point: Point) -> Row:
        blocks = self._steps.reserve(point.prefill_context + point.chunk)
        return Row(list(range(1, 1 + point.chunk)), point.prefill_context, blocks)

    def _lanes(self, point: Point) -> Lanes:
        """The partition of ``point``; raises PartitionError if the driver gives another."""
        contexts = self.contexts
        if point.mode == "split":
            lanes = contexts.split(point.prefill_sms, point.decode_sms)
        elif point.mode == "overlap":
            lanes = contexts.overlap(point.prefill_sms)
        else:
            lanes = contexts.alone(max(point.prefill_sms, point.decode_sms))
        given = (lanes.partition.prefill_sms, lanes.partition.decode_sms)
        for wanted, got in zip((point.prefill_sms, point.decode_sms), given, strict=True):
            if wanted not in (0, got):
                raise PartitionError(f"the driver gives {got} SMs, not {wanted}")
        return lanes

    def _stream(self, point: Point, lanes: Lanes) -> torch.cuda.Stream:
        return lanes.prefill if self._on_lane(point) else lanes.decode

    def _on_lane(self, point: Point) -> bool:
        return point.mode == "prefill" and self._has_lane

    def _on(self, point: Point, lanes: Lanes, graphs: Any = None) -> Any:
        """Run vLLM's steps where ``point`` decodes, with ``graphs`` or that partition's."""
        sms = lanes.partition.decode_sms
        if point.decode_batch and sms < self.contexts.total_sms:
            key = lanes.decode.cuda_stream
            if key not in self._graphs:
                self._graphs[key] = self._decode.capture(
                    lanes.decode, lanes.decode_gemm_sms, self._sizes
                )
            graphs = self._graphs[key]
        return self._decode.on(lanes.decode, graphs)

    def _finish(self) -> None:
        self._steps.settle()
        self._decode.leave()
        self._steps.end()
        self._steps.settle()


def intervals_ms(events: list[torch.cuda.Event]) -> list[float]:
    """Milliseconds between consecutive events, all of them over."""
    return [round(first.elapsed_time(second), 4) for first, second in pairwise(events)]


def _enough(decodes: list[torch.cuda.Event], passes: list[LanePass]) -> bool:
    """Whether enough was seen of both phases."""
    over = sum(each.finished() for each in passes[: MIN_PASSES + 1])
    return over > MIN_PASSES and len(decodes) >= WARM_UP + MIN_REPEATS


def _graph_sizes(config: Any) -> list[int]:
    """The batch sizes to capture: those that points have, as far as vLLM goes."""
    most = int(config.scheduler_config.max_num_seqs)
    captured = config.compilation_config.cudagraph_capture_sizes or []
    wanted = [size for size in BATCHES if size <= most]
    return wanted + [size for size in captured if size <= most and size > max(wanted)][-1:]
