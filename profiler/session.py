"""One run of the profiler: an engine, the points, and a file that is always whole.

The engine runs in this process, so that a point costs no more than its own steps.
The profile is written after every point; a run that was cut short is resumed by the
next one on the same model, machine and engine.
"""

import logging
import os
import time
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

from nexus.errors import EngineError, MismatchError, UserError
from nexus.profiler.adaptive import WorstFirst
from nexus.profiler.clocks import other_clock
from nexus.profiler.points import Grid, Limits, core_points, gpu_points, kernel_points
from nexus.profiles.documents import check_writable
from nexus.profiles.schema import (
    Engine,
    KernelSample,
    Machine,
    Model,
    PartitionerName,
    Profile,
    Provenance,
    Sample,
    read_profile,
    write_profile,
)
from nexus.runtime.machine import config_hash, software, this_machine
from nexus.runtime.vllm.graph_sizes import MOST_MIXED_TOKENS
from nexus.runtime.vllm.options import (
    given,
    one_line,
    parse_engine,
    use_every_core,
    with_defaults,
)
from nexus.runtime.vllm.unsupported import refuse_whole_prompts

WORKER_EXTENSION = "nexus.profiler.worker.ProfilerExtension"
CPU_MAX_CHUNK = 512
CPU_MAX_BATCH = 32


class Session:
    """A running engine and the profile being filled."""

    def __init__(self, engine: Any, profile: Profile, path: Path) -> None:
        """``engine`` is a vLLM ``LLMEngine`` with the profiler's worker extension."""
        self._engine = engine
        self.profile = profile
        self._path = path
        self._sizes: list[int] = self._call("nexus_sizes")

    def grid(self) -> Grid:
        """Every point of this machine's grid, measured or not."""
        limits = self._limits()
        if self.profile.machine.device == "cpu":
            return core_points(self.profile.machine.sms, limits, CPU_MAX_CHUNK, CPU_MAX_BATCH)
        return gpu_points(self._sizes, [(p, d) for p, d in self._call("nexus_pairs")], limits)

    def measure(self, minutes: float, progress: Callable[[int, int, Sample], None]) -> None:
        """Measure what is missing until it is predicted well or ``minutes`` are over.

        What a plan cannot do without is measured however long it takes.
        The coarse grid comes first, then the points of those curves that are predicted
        worst, then kernels. ``progress(done, total, sample)`` is called after each point,
        when the sample is already on disk.
        """
        deadline = time.monotonic() + minutes * 60
        known = {sample.key for sample in self.profile.samples if sample.error is None}
        grid = self.grid()
        coarse = [point for point in grid.coarse if point.key not in known]
        finer = [point for point in grid.finer if point.key not in known]
        total = len(grid.points)
        done = total - len(coarse) - len(finer)
        worst_first = WorstFirst()
        while (coarse or finer) and (
            time.monotonic() < deadline or (coarse and not self._can_be_planned())
        ):
            point = coarse.pop(0) if coarse else worst_first.pick(finer)
            if point is None:
                break
            if point in finer:
                finer.remove(point)
            sample = Sample(**self._call("nexus_measure", asdict(point)))
            worst_first.saw(self.profile, sample)
            self._keep(sample)
            done += 1
            progress(done, total, sample)
        self._measure_again(deadline)
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
            again = Sample(**self._call("nexus_measure", asdict(point)))
            if again.error is None:
                self._keep(again)

    def _measure_kernels(self) -> None:
        """Kernel times by class; last, because CUPTI slows down what runs after it."""
        if self.profile.machine.device == "cpu" or self.profile.kernels:
            return
        kernels = [
            KernelSample(**raw)
            for point in kernel_points(self._sizes, self._limits())
            for raw in self._call("nexus_kernels", asdict(point))
        ]
        self.profile = replace(self.profile, kernels=tuple(kernels))
        write_profile(self._path, self.profile)

    def _limits(self) -> Limits:
        return Limits.of(self.profile.engine, self.profile.model.max_model_len)

    def _call(self, method: str, *arguments: Any) -> Any:
        (result,) = self._engine.collective_rpc(method, args=arguments)
        return result

    def _keep(self, sample: Sample) -> None:
        others = [old for old in self.profile.samples if old.key != sample.key]
        self.profile = replace(self.profile, samples=(*others, sample))
        write_profile(self._path, self.profile)


@contextmanager
def open_session(
    model: str, options: Sequence[str], path: Path, command: str, created: str, fresh: bool
) -> Iterator[Session]:
    """Start vLLM with ``model`` and yield a session that writes to ``path``.

    An existing profile at ``path`` is resumed; one of another model, machine or engine
    raises MismatchError unless ``fresh``. Raises EngineError when vLLM cannot start.
    """
    check_writable(path)
    machine = this_machine()
    fingerprint = config_hash(model)
    before = read_profile(path) if path.exists() and not fresh else None
    if before is not None:
        check_origin(before, machine, fingerprint, path)
    engine = start_engine(model, options, machine.device == "cpu")
    try:
        (facts,) = engine.collective_rpc("nexus_describe")
        profile = Profile(
            provenance=Provenance(created=created, command=command, software=software()),
            machine=machine,
            model=only(Model, facts, name=model, config_hash=fingerprint),
            engine=only(Engine, facts),
            samples=(),
        )
        if before is not None:
            profile = resumed(before, profile, path)
        yield Session(engine, profile, path)
    finally:
        engine.engine_core.shutdown()


def start_engine(
    model: str, options: Sequence[str], on_cpu: bool, extension: str = WORKER_EXTENSION
) -> Any:
    """An ``LLMEngine`` of vLLM in this process, its worker extended; raises EngineError."""
    # In one process: no serialization between the points and the worker.
    os.environ["VLLM_ENABLE_V1_MULTIPROCESSING"] = "0"
    if on_cpu:
        use_every_core()
    from vllm.usage.usage_lib import UsageContext
    from vllm.v1.engine.llm_engine import LLMEngine

    roomy = _with_room(options, on_cpu)
    # With graphs of all the steps that `nexus serve` has them for.
    arguments = parse_engine(model, with_defaults(roomy, on_cpu, batches=[MOST_MIXED_TOKENS]))
    if arguments.worker_extension_cls:
        raise EngineError("--worker-extension-cls is taken by the profiler")
    arguments.worker_extension_cls = extension
    arguments.use_tqdm_on_load = False
    told = arguments.enable_chunked_prefill is False
    try:
        config = arguments.create_engine_config(UsageContext.ENGINE_CONTEXT)
        refuse_whole_prompts(config, told=told)
        return LLMEngine.from_vllm_config(config, disable_log_stats=arguments.disable_log_stats)
    except (ValueError, TypeError, OSError, RuntimeError, NotImplementedError) as error:
        logging.getLogger("nexus").debug("vLLM did not start", exc_info=True)
        raise EngineError(f"vLLM: {one_line(error)}") from error


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


def resumed(before: Profile, fresh: Profile, path: Path) -> Profile:
    """``fresh`` with what ``before`` holds; raises MismatchError when it is of something else."""
    check_origin(before, fresh.machine, fresh.model.config_hash, path, fresh.partitioner)
    for name in ("model", "engine"):
        old, new = getattr(before, name), getattr(fresh, name)
        if name == "model":
            old, new = replace(old, name=new.name), new
        if old != new:
            raise MismatchError(f"{path} holds a profile of another {name} (--force to replace it)")
    return replace(fresh, samples=before.samples, kernels=before.kernels)


def check_origin(
    before: Profile,
    machine: Machine,
    fingerprint: str,
    path: Path,
    partitioner: PartitionerName = "green",
) -> None:
    """What can be told before an engine starts: raise UserError when the profile ``before`` is
    of another machine, partitioner, other software, or a model whose ``config_hash`` is not
    ``fingerprint``.
    """
    found = {
        "machine": before.machine,
        "model": before.model.config_hash,
        "partitioner": before.partitioner,
    }
    wanted = {"machine": machine, "model": fingerprint, "partitioner": partitioner}
    for name, here in wanted.items():
        if found[name] != here:
            raise MismatchError(f"{path} holds a profile of another {name} (--force to replace it)")
    if before.provenance.software != software():
        raise UserError(f"{path} was measured with other software (--force to replace it)")
