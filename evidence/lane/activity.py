"""CUPTI's records of a running engine: kernels, and the contexts that they run in."""

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Any

from nexus.profiler.kernels import KernelRecord, KernelRecorder, busy, kernel_class

_BUFFER_BYTES = 64 << 20
"""Some seconds of kernels, so that reading them stalls no step of those seconds."""


@dataclass(frozen=True)
class Context:
    """A CUDA context as CUPTI sees it; ``sms`` is told of green ones only."""

    context: int
    green: bool
    sms: int | None
    parent: int


@dataclass(frozen=True)
class Stream:
    """One stream of a context, by CUPTI's numbers. A negative priority is a high one."""

    context: int
    stream: int
    priority: int | None = None


class ActivityRecorder(KernelRecorder):
    """Also tells the contexts and streams that exist, made before CUPTI came or after."""

    def __init__(self) -> None:
        """Raises EngineError where cupti-python is missing."""
        self._contexts: dict[int, Context] = {}
        self._streams: dict[tuple[int, int], Stream] = {}
        super().__init__(_BUFFER_BYTES)

    def survey(self) -> tuple[list[Context], list[Stream]]:
        """All contexts and streams of this process."""
        kinds = (self._cupti.ActivityKind.CONTEXT, self._cupti.ActivityKind.STREAM)
        for kind in kinds:
            self._cupti.activity_enable_and_dump(kind)
        self._cupti.activity_flush_all(1)
        for kind in kinds:
            self._cupti.activity_disable(kind)
        return list(self._contexts.values()), list(self._streams.values())

    def _take(self, activities: list[Any]) -> None:
        kinds = self._cupti.ActivityKind
        kernels = []
        for activity in activities:
            if activity.kind == kinds.CONTEXT:
                green = bool(activity.is_green_context)
                sms = int(activity.num_multiprocessors) if green else None
                made = Context(
                    int(activity.context_id), green, sms, int(activity.parent_context_id)
                )
                self._contexts[made.context] = made
            elif activity.kind == kinds.STREAM:
                context, stream = int(activity.context_id), int(activity.stream_id)
                self._streams[context, stream] = Stream(context, stream, int(activity.priority))
            else:
                kernels.append(activity)
        super()._take(kernels)


@dataclass(frozen=True)
class LaneKernels:
    """What ran on one stream of one context."""

    phase: str
    context: int
    stream: int
    kernels: int
    busy_ms: float
    classes_ms: dict[str, float]


Spans = list[tuple[int, int]]


def both(first: Spans, second: Spans) -> Spans:
    """When both ran."""
    found: Spans = []
    a = b = 0
    while a < len(first) and b < len(second):
        start, end = max(first[a][0], second[b][0]), min(first[a][1], second[b][1])
        if start < end:
            found.append((start, end))
        if first[a][1] <= second[b][1]:
            a += 1
        else:
            b += 1
    return found


def total_ms(spans: Spans) -> float:
    """How long, in all."""
    return round(sum(end - start for start, end in spans) / 1e6, 3)


def summary(records: Sequence[KernelRecord], prefill: set[Stream]) -> dict[str, Any]:
    """What ran where, and for how long at once.

    ``prefill`` are the prefill lane's streams (priorities aside): all other kernels are
    those of vLLM's own steps, which is the decode lane.
    """
    if not records:
        return {"kernels": 0}
    ours = {(each.context, each.stream) for each in prefill}
    by_stream: dict[tuple[int, int], list[KernelRecord]] = {}
    for record in records:
        by_stream.setdefault((record.context, record.stream), []).append(record)
    lanes = [
        LaneKernels(
            "prefill" if key in ours else "decode",
            *key,
            kernels=len(found),
            busy_ms=total_ms(busy(found)),
            classes_ms=_by_class(found),
        )
        for key, found in sorted(by_stream.items())
    ]
    phases = {
        phase: busy(
            record for record in records if ((record.context, record.stream) in ours) == is_ours
        )
        for phase, is_ours in (("prefill", True), ("decode", False))
    }
    prefill_ms, decode_ms = total_ms(phases["prefill"]), total_ms(phases["decode"])
    together_ms = total_ms(both(phases["prefill"], phases["decode"]))
    start, end = min(r.start_ns for r in records), max(r.end_ns for r in records)
    return {
        "kernels": len(records),
        "window_ms": round((end - start) / 1e6, 3),
        "prefill_busy_ms": prefill_ms,
        "decode_busy_ms": decode_ms,
        "both_busy_ms": together_ms,
        "prefill_time_beside_decode": round(together_ms / prefill_ms, 4) if prefill_ms else None,
        "decode_time_beside_prefill": round(together_ms / decode_ms, 4) if decode_ms else None,
        "streams": [asdict(lane) for lane in lanes],
    }


def _by_class(records: Sequence[KernelRecord]) -> dict[str, float]:
    times: dict[str, float] = {}
    for record in records:
        name = kernel_class(record.name)
        times[name] = times.get(name, 0.0) + record.ms
    return {name: round(ms, 3) for name, ms in sorted(times.items())}


def busiest(records: Sequence[KernelRecord], prefill: set[Stream], window_ns: int) -> int:
    """Start of the ``window_ns`` in which both lanes run at once for longest."""
    ours = {(each.context, each.stream) for each in prefill}
    lanes = [
        busy([r for r in records if ((r.context, r.stream) in ours) == mine])
        for mine in (True, False)
    ]
    shared = both(*lanes)
    first = min((record.start_ns for record in records), default=0)
    if not shared:
        return first
    starts = range(first, shared[-1][1], window_ns // 2)

    def held(start: int) -> int:
        return sum(end - begin for begin, end in both(shared, [(start, start + window_ns)]))

    return max(starts, key=held)
