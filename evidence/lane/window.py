"""Some seconds of serving under load, with CUPTI watching."""

import json
import random
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from nexus.core.io.chrome_trace import box, track_name
from nexus.core.io.outputs import write_atomically
from nexus.evidence.lane.activity import ActivityRecorder, Context, Stream, busiest, summary
from nexus.evidence.lane.confinement import prefill_streams
from nexus.evidence.lane.engine import Ask, drain, steps
from nexus.profiler.kernels import KernelRecord, kernel_class
from nexus.runtime.partition.green import Lanes

WINDOW_MS = 50.0  # of a Chrome trace
MOST_BYTES = 280_000


@dataclass(frozen=True)
class Load:
    """Requests that decode all the while, and prompts that arrive beside them.

    ``decodes`` of ``context`` tokens; ``per_s`` prompts of ``shortest`` to ``longest``
    tokens, with ``output`` tokens each. ``warm_s`` pass before the ``seconds`` that count.
    """

    decodes: int = 48
    context: int = 512
    per_s: float = 9.0
    shortest: int = 500
    longest: int = 3500
    output: int = 40
    warm_s: float = 2.5
    seconds: float = 3.0

    def asks(self, vocabulary: int, seed: int) -> list[Ask]:
        """The requests; times in seconds from the first."""
        generator = random.Random(seed)

        def prompt(length: int) -> list[int]:
            return [generator.randrange(3, vocabulary) for _ in range(length)]

        asks = [Ask(f"decode-{n}", prompt(self.context), 4000) for n in range(self.decodes)]
        at = self.warm_s / 2
        while at < self.warm_s + self.seconds + 0.5:
            length = generator.randint(self.shortest, self.longest)
            asks.append(Ask(f"prompt-{len(asks)}", prompt(length), self.output, at))
            at += generator.expovariate(self.per_s)
        return asks


@contextmanager
def recording(recorder: ActivityRecorder, lanes: dict[str, Lanes]) -> Iterator[list[KernelRecord]]:
    """Kernels of every lane; a device-wide wait would not see green contexts to their end."""

    def wait() -> None:
        import torch

        torch.cuda.synchronize()
        for mode in lanes.values():
            mode.prefill.synchronize()
            mode.decode.synchronize()

    with recorder.recording(wait) as records:
        yield records


def watched(
    engine: Any, load: Load, vocabulary: int, seed: int, watch: Any
) -> tuple[list[KernelRecord], dict[str, float]]:
    """Serve ``load`` and enter ``watch``, which yields records, for the seconds that count.

    Everything is aborted at the end. Also tells when, on the clock of traces, and what ran.
    """
    asks = load.asks(vocabulary, seed)
    begun = time.monotonic()
    records: list[KernelRecord] = []
    times: dict[str, float] = {}
    finished = 0
    with ExitStack() as stack:
        for outputs in steps(engine, asks, lambda: time.monotonic() - begun):
            passed = time.monotonic() - begun
            if not times and passed >= load.warm_s:
                records = stack.enter_context(watch)
                times["start_s"] = time.monotonic()
            finished += len(outputs) if times else 0
            if times and passed >= load.warm_s + load.seconds:
                times["end_s"] = time.monotonic()
                break
    drain(engine, [ask.name for ask in asks])
    return records, {**times, "requests_finished": finished}


def evidence(
    records: Sequence[KernelRecord],
    recorder: ActivityRecorder,
    numbers: dict[str, Any],
    trace: Path,
) -> dict[str, Any]:
    """One mode's window for the results, with a small Chrome trace at ``trace``."""
    told: dict[str, Any] = {}
    contexts: list[Context] = []
    streams: list[Stream] = []
    try:
        contexts, streams = recorder.survey()
    except Exception as error:  # noqa: BLE001  CUPTI's own kinds; the kernels are there anyway
        told["no_survey"] = repr(error)
    here = {each.context: each for each in contexts}
    priorities = {(each.context, each.stream): each.priority for each in streams}
    prefill = prefill_streams(numbers)
    told |= summary(records, prefill)
    names = {}
    for lane in told.get("streams", ()):
        key = (lane["context"], lane["stream"])
        context = here.get(key[0])
        lane["green_context"] = context.green if context else None
        lane["context_sms"] = context.sms if context else None
        lane["priority"] = priorities.get(key)
        sms = f"{context.sms} SMs" if context and context.green else "all SMs"
        names[key] = f"{lane['phase']}: context {key[0]} ({sms}), stream {key[1]}"
    told["trace_ms"] = write_window(trace, records, prefill, names) if records else 0.0
    told["trace"] = trace.name
    return told


def write_window(
    path: Path,
    records: Sequence[KernelRecord],
    prefill: set[Stream],
    names: Mapping[tuple[int, int], str],
) -> float:
    """Write the milliseconds in which both lanes are busiest; how many there are.

    ``names`` are those of a (context, stream). Kernels are named by their class. Where
    ``WINDOW_MS`` would make a file of over ``MOST_BYTES``, the window is shorter.
    """
    window_ms = WINDOW_MS
    while True:
        start = busiest(records, prefill, int(window_ms * 1e6))
        text = _trace(records, start, int(window_ms * 1e6), names)
        if len(text) <= MOST_BYTES or window_ms < 1.0:
            write_atomically(path, text)
            return window_ms
        window_ms *= 0.8


def _trace(
    records: Sequence[KernelRecord],
    start_ns: int,
    window_ns: int,
    names: Mapping[tuple[int, int], str],
) -> str:
    inside = [r for r in records if start_ns <= r.start_ns < start_ns + window_ns]
    keys = sorted({(record.context, record.stream) for record in inside})
    events = [
        track_name(place, names.get(key, f"context {key[0]}, stream {key[1]}"))
        for place, key in enumerate(keys, start=1)
    ]
    for record in sorted(inside, key=lambda each: each.start_ns):
        track = keys.index((record.context, record.stream)) + 1
        start, end = ((ns - start_ns) / 1e9 for ns in (record.start_ns, record.end_ns))
        events.append(box(track, kernel_class(record.name), start, end))
    lines = (json.dumps(event, separators=(",", ":")) for event in events)
    return "[\n" + ",\n".join(lines) + "\n]\n"
