"""One run of the profiler: an engine, the points, and a file that is always whole.

The engine runs in this process, so that a point costs no more than its own steps.
The profile is written after every point; a run that was cut short is resumed by the
next one on the same model, machine and engine.
"""

import logging
import os
import time
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

from nexus.core.errors import EngineError, MismatchError, UserError
from nexus.core.io.documents import Provenance
from nexus.core.io.outputs import check_writable
from nexus.core.machine import PARALLEL_SIZES, Engine, Machine, Model, PartitionerName
from nexus.profiler.adaptive import WorstFirst
from nexus.profiler.clocks import other_clock
from nexus.profiler.points import (
    Grid,
    Limits,
    Point,
    core_points,
    gpu_points,
    kernel_points,
    stock_points,
)
from nexus.profiler.worker import reason
from nexus.profiles.schema import KernelSample, Profile, Sample, read_profile, write_profile
from nexus.runtime.machine import config_hash, software, this_machine
from nexus.runtime.vllm.compat import Room, check_installed
from nexus.runtime.vllm.graphs.sizes import MOST_MIXED_TOKENS
from nexus.runtime.vllm.options import (
    files_of,
    given,
    one_line,
    parse_engine,
    parse_profile,
    use_every_core,
    with_defaults,
    with_needed_type,
)
from nexus.runtime.vllm.support.unsupported import refuse_whole_prompts

WORKER_EXTENSION = "nexus.profiler.worker.ProfilerExtension"
CPU_MAX_CHUNK = 512
CPU_MAX_BATCH = 32
_GIVE_UP_AFTER = 5  # points that fail, where none has succeeded
_SAYS_ITSELF = (ValueError, TypeError, OSError, RuntimeError, NotImplementedError)

log = logging.getLogger("nexus")


class Session:
    """A running engine and the profile being filled."""

    def __init__(self, engine: Any, profile: Profile, path: Path) -> None:
        """``engine`` is a vLLM ``LLMEngine`` with the profiler's worker extension."""
        self._engine = engine
        self.profile = profile
        self._path = path
        self._has_one_rank = max(profile.engine.parallel.values()) == 1
        self._sizes: list[int] = self._call("nexus_sizes")

    def grid(self) -> Grid:
        """Every point of this machine's grid, measured or not.

        With several ranks, only steps on whole devices.
        """
        limits, total = self._limits(), self.profile.machine.sms
        if self.profile.machine.device == "cpu":
            grid = core_points(total, limits, CPU_MAX_CHUNK, CPU_MAX_BATCH)
        else:
            grid = gpu_points(self._sizes, [(p, d) for p, d in self._call("nexus_pairs")], limits)
        return grid if self._has_one_rank else grid.on_whole(total)

    def measure(self, minutes: float, progress: Callable[[int, int, Sample], None]) -> None:
        """Measure what is missing until it is predicted well or ``minutes`` are over.

        What a plan cannot do without is measured however long it takes.
        The coarse grid comes first, then the points of those curves that are predicted
        worst, then stock vLLM's steps and kernels. ``progress(done, total, sample)`` is called
        after each point, when the sample is already on disk. Raises EngineError when nothing
        could be measured.
        """
        deadline = time.monotonic() + minutes * 60
        known = {sample.key for sample in self.profile.samples if sample.error is None}
        grid = self.grid()
        coarse = [point for point in grid.coarse if point.key not in known]
        finer = [point for point in grid.finer if point.key not in known]
        total = len(grid.points)
        done = total - len(coarse) - len(finer)
        tried, worst_first = 0, WorstFirst()
        while (coarse or finer) and (
            time.monotonic() < deadline or (coarse and not self._can_be_planned())
        ):
            point = coarse.pop(0) if coarse else worst_first.pick(finer)
            if point is None:
                break
            if point in finer:
                finer.remove(point)
            sample = self._sample(point)
            worst_first.saw(self.profile, sample)
            self._keep(sample)
            done += 1
            progress(done, total, sample)
            tried += 1
            if tried == _GIVE_UP_AFTER and not self.profile.measured:
                break
        check_measured(self.profile)
        self._measure_again(deadline)
        self._measure_stock()
        self._measure_kernels()

    def _can_be_planned(self) -> bool:
        """Whether there are two samples of each phase and of fused steps on the whole device."""
        whole = Counter(
            sample.mode
            for sample in self.profile.measured
            if max(sample.prefill_sms, sample.decode_sms) == self.profile.machine.sms
        )
        return min(whole[mode] for mode in ("prefill", "decode", "fused")) >= 2

    def _measure_again(self, deadline: float) -> None:
        """Once more, each sample whose clock was not that of the samples around it."""
        points = {point.key: point for point in self.grid().points}
        for sample in other_clock(self.profile.measured):
            if time.monotonic() > deadline:
                return
            point = points.get(sample.key)
            if point is None:  # of an older grid
                continue
            again = self._sample(point)
            if again.error is None:
                self._keep(again)

    def _measure_stock(self) -> None:
        """Stock vLLM's own steps of both phases, beside the decodes of what shares the device."""
        shared = [s for s in self.profile.measured if s.mode in ("split", "overlap")]
        if self.profile.stock or not shared:
            return
        points = stock_points(self.profile.machine.sms, shared, self._limits())
        stock = [Sample(**self._call("nexus_measure", asdict(point), "stock")) for point in points]
        self.profile = replace(self.profile, stock=tuple(stock))
        write_profile(self._path, self.profile)

    def _measure_kernels(self) -> None:
        """Kernel times by class; last, because CUPTI slows down what runs after it."""
        if self.profile.machine.device == "cpu" or self.profile.kernels:
            return
        sizes = self._sizes if self._has_one_rank else self._sizes[-1:]
        kernels = [
            KernelSample(**raw)
            for point in kernel_points(sizes, self._limits())
            for raw in self._call("nexus_kernels", asdict(point))
        ]
        self.profile = replace(self.profile, kernels=tuple(kernels))
        write_profile(self._path, self.profile)

    def _limits(self) -> Limits:
        return Limits.of(self.profile.engine, self.profile.model.max_model_len)

    def _sample(self, point: Point) -> Sample:
        answers = self._engine.collective_rpc("nexus_measure", args=(asdict(point),))
        return slowest([Sample(**answer) for answer in answers])

    def _call(self, method: str, *arguments: Any) -> Any:
        """What the first rank answers."""
        return self._engine.collective_rpc(method, args=arguments)[0]

    def _keep(self, sample: Sample) -> None:
        others = [old for old in self.profile.samples if old.key != sample.key]
        self.profile = replace(self.profile, samples=(*others, sample))
        write_profile(self._path, self.profile)


def slowest(samples: Sequence[Sample]) -> Sample:
    """Of each rank's sample of one point, that of the slowest, with the spread of all of them."""
    failed = [sample for sample in samples if sample.error is not None]
    if failed or len(samples) == 1:
        return [*failed, *samples][0]
    times = [sample.decode_ms or sample.prefill_ms or 0.0 for sample in samples]
    last = samples[times.index(max(times))]
    return replace(last, rank_spread_ms=round(max(times) - min(times), 4))


@contextmanager
def open_session(
    model: str, options: Sequence[str], path: Path, command: str, created: str, fresh: bool
) -> Iterator[Session]:
    """Start vLLM with ``model`` and yield a session that writes to ``path``.

    An existing profile at ``path`` is resumed; one of another model, machine or engine
    raises MismatchError unless ``fresh``. Raises EngineError when vLLM cannot start.
    """
    check_writable(path, *files_of(model, options))
    machine = this_machine()
    before = read_profile(path) if path.is_file() and not fresh else None
    check_vllm(machine)
    origin = Origin.of(model, options, machine)
    if before is not None:
        check_origin(before, origin, path)
    on_cpu = machine.device == "cpu"
    typed = with_needed_type(model, options) if on_cpu else options
    engine = start_engine(model, typed, on_cpu)
    try:
        with in_one_line():
            facts, *_ = engine.collective_rpc("nexus_describe")
            profile = Profile(
                provenance=Provenance(created=created, command=command, software=software()),
                machine=machine,
                model=only(Model, facts, name=model, config_hash=origin.fingerprint),
                engine=only(Engine, facts),
                samples=(),
            )
            if before is not None:
                profile = resumed(before, profile, path)
            session = Session(engine, profile, path)
        yield session
    finally:
        engine.engine_core.shutdown()


def check_vllm(machine: Machine) -> None:
    """Raise EngineError, in one line, where the installed vLLM lacks what a profiler needs."""
    lane: tuple[Room, ...] = ("graphs", "lane") if machine.device == "cuda" else ()
    check_installed("options", "worker", "profiler", *lane, device=machine.device)


@contextmanager
def in_one_line() -> Iterator[None]:
    """Whatever vLLM raises inside the block becomes an EngineError."""
    try:
        yield
    except UserError:
        raise
    except Exception as error:
        log.debug("vLLM did not start", exc_info=True)
        told = one_line(error) if isinstance(error, _SAYS_ITSELF) else reason(error)
        raise EngineError(f"vLLM: {told}") from error


def start_engine(
    model: str, options: Sequence[str], on_cpu: bool, extension: str = WORKER_EXTENSION
) -> Any:
    """An ``LLMEngine`` of vLLM in this process, its worker extended; raises EngineError."""
    # In one process: no serialization between the points and the worker.
    os.environ["VLLM_ENABLE_V1_MULTIPROCESSING"] = "0"
    if on_cpu:
        use_every_core()
    from nexus.runtime.vllm.compat import LLMEngine, UsageContext

    # With graphs of all the steps that `nexus serve` has them for.
    words = with_defaults(_with_room(options, on_cpu), on_cpu, batches=[MOST_MIXED_TOKENS])
    with in_one_line():
        arguments = parse_engine(model, words)
        if arguments.worker_extension_cls:
            raise EngineError("--worker-extension-cls is taken by the profiler")
        arguments.worker_extension_cls = extension
        arguments.use_tqdm_on_load = False
        told = arguments.enable_chunked_prefill is False
        config = arguments.create_engine_config(UsageContext.ENGINE_CONTEXT)
        refuse_whole_prompts(config, told=told)
        return LLMEngine.from_vllm_config(config, disable_log_stats=arguments.disable_log_stats)


def _with_room(options: Sequence[str], on_cpu: bool) -> list[str]:
    """Defaults for measuring, where ``options`` do not say otherwise.

    On a GPU: steps of a server's size, and memory left for the lane and its graphs. On a
    CPU: no compilation, which takes a minute at every start and gains little.
    """
    if on_cpu:
        told = given(options, "--enforce-eager", "--no-enforce-eager")
        return [*options] if told else [*options, "--enforce-eager"]
    room = {
        "--gpu-memory-utilization": "0.8",
        "--max-num-batched-tokens": "8192",
        "--max-num-seqs": "512",
    }
    added = [(name, value) for name, value in room.items() if not given(options, name)]
    return [*options, *(word for pair in added for word in pair)]


def only(kind: Any, facts: dict[str, Any], **more: str) -> Any:
    """A ``kind`` of those ``facts`` that it has, and of ``more``."""
    names = kind.__dataclass_fields__
    return kind(**{name: value for name, value in facts.items() if name in names}, **more)


@dataclass(frozen=True)
class Origin:
    """What can be told of a profile before an engine starts: whose steps it times, and where."""

    machine: Machine
    fingerprint: str
    parallel: Mapping[str, int]
    partitioner: PartitionerName = "green"

    @classmethod
    def of(
        cls,
        model: str,
        options: Sequence[str],
        machine: Machine,
        partitioner: PartitionerName = "green",
    ) -> "Origin":
        """Of a profile that ``options`` of vLLM ask for; raises EngineError."""
        parsed = parse_profile(model, options)
        parallel = {name: getattr(parsed, name, 1) for name in PARALLEL_SIZES}
        if parsed.data_parallel_size > 1:
            raise EngineError(
                "each engine has a profile of its own: leave --data-parallel-size out"
            )
        if parallel["pipeline_parallel_size"] > 1:
            raise EngineError(
                "no profile under --pipeline-parallel-size above 1: its stages work on several"
                " steps at once"
            )
        if partitioner == "mps" and max(parallel.values()) > 1:
            raise EngineError("--partitioner mps shares one GPU: no parallel size above 1")
        return cls(machine, config_hash(model, parsed), parallel, partitioner)


def resumed(before: Profile, fresh: Profile, path: Path) -> Profile:
    """``fresh`` with what ``before`` holds; raises MismatchError when it is of something else."""
    old, new = before.engine, fresh.engine
    pairs = {
        "machine": (before.machine, fresh.machine),
        "partitioner": (before.partitioner, fresh.partitioner),
        "model": (replace(before.model, name=fresh.model.name), fresh.model),
        # How much memory is free differs a little at each start, and no step's time with it.
        "engine": (replace(old, kv_tokens=new.kv_tokens), new),
    }
    for name, (there, here) in pairs.items():
        if there != here:
            raise MismatchError(f"{path} holds a profile of another {name} (--force to replace it)")
    return replace(fresh, samples=before.samples, kernels=before.kernels, stock=before.stock)


def check_origin(before: Profile, origin: Origin, path: Path) -> None:
    """Raise UserError when the profile ``before`` is of another origin, or other software."""
    found = {
        "machine": before.machine,
        "model": before.model.config_hash,
        "partitioner": before.partitioner,
        **before.engine.parallel,
    }
    wanted = {
        "machine": origin.machine,
        "model": origin.fingerprint,
        "partitioner": origin.partitioner,
        **origin.parallel,
    }
    for name, here in wanted.items():
        if found[name] != here:
            kind = name.replace("_", "-")
            raise MismatchError(f"{path} holds a profile of another {kind} (--force to replace it)")
    if before.provenance.software != software():
        raise UserError(f"{path} was measured with other software (--force to replace it)")


def check_measured(profile: Profile) -> None:
    """Raise EngineError, with the first reason, when no point of ``profile`` was measured."""
    if profile.measured:
        return
    errors = [sample.error for sample in profile.samples if sample.error is not None]
    why = errors[0] if errors else "no point is within the engine's limits"
    raise EngineError(f"nothing could be measured: {why}")
