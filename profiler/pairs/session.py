"""One run of the profiler under MPS: engines in pairs, the points, and a file that is always whole.

Each phase is a stock engine of its own, in a process whose percentage of threads gives it its
SMs (on a CPU: cores). Its steps are vLLM's own, in both phases.
"""

import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import replace
from pathlib import Path

from nexus.core.io.documents import Provenance
from nexus.core.io.outputs import check_writable
from nexus.core.machine import Engine, Machine, Model
from nexus.core.plan import percent_for
from nexus.profiler.pairs.points import (
    CORE_LOADS,
    GPU_LOADS,
    EngineSpec,
    Round,
    allowed,
    core_rounds,
    fused_points,
    gpu_rounds,
    pair_points,
    solo_points,
)
from nexus.profiler.pairs.process import Confined, EnginePool, EngineProcess, PointError
from nexus.profiler.pairs.wire import Setup, Times
from nexus.profiler.points import Grid, Limits, Point
from nexus.profiler.session import Origin, check_measured, check_origin, check_vllm, only, resumed
from nexus.profiles.schema import Profile, Sample, read_profile, write_profile
from nexus.runtime.machine import seen_apart, software, this_machine
from nexus.runtime.mps.daemon import MpsDaemon
from nexus.runtime.scratch import scratch_folder
from nexus.runtime.vllm.options import files_of, with_needed_type

_NEEDED = 4  # points of each pair that are measured however long it takes
# MPS's word for a client whose kernels give way to others', as an overlap's prefill does.
_GIVES_WAY = {"CUDA_MPS_CLIENT_PRIORITY": "1"}

Engines = dict[EngineSpec, EngineProcess]


class PairSession:
    """Running engines and the profile being filled; in use as ``Session``."""

    def __init__(
        self, pool: EnginePool, rounds: Sequence[Round], profile: Profile, path: Path
    ) -> None:
        """The first round's engines run."""
        self._crew, self._rounds = pool, tuple(rounds)
        self.profile, self._path = profile, path
        self._loads = CORE_LOADS if profile.machine.device == "cpu" else GPU_LOADS
        self._given: dict[EngineSpec, int] = {}
        self._limits: dict[str, Limits] = {}

    def grid(self) -> Grid:
        """Every point of all rounds, on the SMs that shares gave or should give."""
        parts = [self._points(each) for each in self._rounds]
        return Grid(
            tuple(dict.fromkeys(point for needed, _ in parts for point in needed)),
            tuple(dict.fromkeys(point for _, others in parts for point in others)),
        )

    def measure(self, minutes: float, progress: Callable[[int, int, Sample], None]) -> None:
        """Measure what is missing, round by round; each has its part of ``minutes``.

        What is needed most is measured however long it takes, and starting engines does
        not count. ``progress(done, total, sample)`` is called after each point, when the
        sample is already on disk. Raises EngineError when an engine ends,
        or nothing could be measured.
        """
        for index, each in enumerate(self._rounds):
            if not any(map(self._missing, self._points(each))):
                continue
            engines = self._assemble(each)
            if self.profile.machine.device == "cuda" and index + 1 < len(self._rounds):
                self._crew.expect(self._rounds[index + 1].specs)
            deadline = time.monotonic() + 60 * minutes / len(self._rounds)
            needed, others = map(self._missing, self._points(each))
            for point in (*needed, *others):
                if point in others and time.monotonic() > deadline:
                    break
                self._keep(_measured(point, engines))
                grid = self.grid().points
                done = len(grid) - len(self._missing(grid))
                progress(done, len(grid), self.profile.samples[-1])
            check_measured(self.profile)

    def _assemble(self, each: Round) -> Engines:
        engines = self._crew.assemble(each.specs)
        for spec, engine in engines.items():
            self._given[spec] = engine.sms
            limits = Limits.of(only(Engine, engine.facts), self.profile.model.max_model_len)
            self._limits[spec.role] = limits
        return engines

    def _points(self, each: Round) -> tuple[list[Point], list[Point]]:
        """What the round has to measure, and what it may."""
        total, loads = self.profile.machine.sms, self._loads
        realized = [replace(s, sms=self._given.get(s, s.sms)) for s in each.specs]
        solo = [point for spec in realized for point in solo_points(spec, total, loads)]
        if EngineSpec("decode", total) in realized:
            solo += fused_points(total, loads)
        pairs = [
            pair_points(one.sms, other.sms, total, loads)
            for one in realized
            for other in realized
            if (one.role, other.role) == ("prefill", "decode")
        ]
        needed = [point for points in pairs for point in points[:_NEEDED]]
        others = [point for points in zip(*pairs, strict=True) for point in points]
        others = [point for point in others if point not in needed]
        return self._allowed([*solo, *needed]), self._allowed(others)

    def _allowed(self, points: list[Point]) -> list[Point]:
        fallback = Limits.of(self.profile.engine, self.profile.model.max_model_len)
        prefill = self._limits.get("prefill", fallback)
        decode = self._limits.get("decode", fallback)
        fused = [point for point in points if point.mode != "fused" or decode.allow(point)]
        return allowed(fused, prefill, decode)

    def _missing(self, points: Sequence[Point]) -> list[Point]:
        known = {sample.key for sample in self.profile.samples if sample.error is None}
        return [point for point in points if point.key not in known]

    def _keep(self, sample: Sample) -> None:
        others = [old for old in self.profile.samples if old.key != sample.key]
        self.profile = replace(self.profile, samples=(*others, sample))
        write_profile(self._path, self.profile)


def _measured(point: Point, engines: Engines) -> Sample:
    """Time ``point``; a failure is a sample with its reason."""
    by_share = {(spec.role, engine.sms): engine for spec, engine in engines.items()}
    try:
        if point.mode == "prefill":
            return _sample(point, by_share["prefill", point.prefill_sms].alone(point), None)
        decode = by_share["decode", point.decode_sms]
        if point.mode == "decode":
            return _sample(point, None, decode.alone(point))
        if point.mode == "fused":
            times = decode.alone(point)
            return _sample(point, times, times)
        return _sample(point, *_together(point, by_share["prefill", point.prefill_sms], decode))
    except PointError as error:
        return point.sample(error=str(error))


def _together(point: Point, prefill: EngineProcess, decode: EngineProcess) -> tuple[Times, Times]:
    """Both loop before either counts, and until both have counted enough."""
    prefill_part = replace(point, decode_batch=0, decode_context=0)
    decode_part = replace(point, chunk=0, prefill_context=0)
    started: list[EngineProcess] = []
    try:
        for engine, part in ((prefill, prefill_part), (decode, decode_part)):
            started.append(engine)
            engine.loop(part)
        for engine in started:
            engine.mark()
        return prefill.times(), decode.times()
    finally:
        for engine in started:
            engine.stop()


def _sample(point: Point, prefill: Times | None, decode: Times | None) -> Sample:
    seen = decode or prefill
    assert seen is not None
    return point.sample(
        prefill_ms=prefill and prefill.median,
        prefill_p95_ms=prefill and prefill.p95,
        decode_ms=decode and decode.median,
        decode_p95_ms=decode and decode.p95,
        repeats=seen.repeats,
        **vars(seen.condition),
    )


@contextmanager
def open_pair_session(
    model: str, options: Sequence[str], path: Path, command: str, created: str, fresh: bool
) -> Iterator[PairSession]:
    """Start an MPS daemon and the first engines; yield a session that writes to ``path``.

    An existing profile at ``path`` is resumed, as by ``open_session``. Raises PartitionError
    when MPS cannot work here, EngineError when vLLM cannot start.
    """
    check_writable(path, *files_of(model, options))
    before = read_profile(path) if path.is_file() and not fresh else None
    machine = seen_apart(this_machine)
    check_vllm(machine)
    origin = Origin.of(model, options, machine, "mps")
    if before is not None:
        check_origin(before, origin, path)
    on_cpu = machine.device == "cpu"
    typed = with_needed_type(model, options) if on_cpu else options
    rounds = core_rounds(machine.sms) if on_cpu else gpu_rounds(machine.sms)
    with ExitStack() as stack:
        folder = stack.enter_context(scratch_folder("nexus-pairs-"))
        daemon = None if on_cpu else stack.enter_context(MpsDaemon())

        def set_up(spec: EngineSpec, slot: int) -> Setup:
            cache = None if on_cpu else str(folder / f"cache-{slot}")
            return Setup(spec.role, model, tuple(typed), on_cpu, cache)

        pool = stack.enter_context(
            EnginePool(lambda spec: _confined(spec, machine, daemon), set_up, folder)
        )
        facts = [engine.facts for engine in pool.assemble(rounds[0].specs).values()]
        profile = Profile(
            provenance=Provenance(created=created, command=command, software=software()),
            machine=machine,
            model=only(Model, facts[0], name=model, config_hash=origin.fingerprint),
            engine=_both(*(only(Engine, facts[index]) for index in (0, -1))),
            samples=(),
            partitioner="mps",
        )
        if before is not None:
            profile = resumed(before, profile, path)
        yield PairSession(pool, rounds, profile, path)


def _both(decode: Engine, prefill: Engine) -> Engine:
    """The limits of the two together: their KV caches are what the device holds."""
    return replace(decode, kv_tokens=decode.kv_tokens + prefill.kv_tokens)


def _confined(spec: EngineSpec, machine: Machine, daemon: MpsDaemon | None) -> Confined:
    """The share of ``spec``: a percentage, or the first or the last cores."""
    if daemon is None:
        cores = range(machine.sms)
        first = spec.role == "prefill"
        return Confined(cores=tuple(cores[: spec.sms] if first else cores[-spec.sms :]))
    environment = daemon.client(percent_for(spec.sms, machine.sms))
    return Confined(environment | (_GIVES_WAY if spec.role == "prefill" else {}))
