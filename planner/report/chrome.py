"""A simulated run as a Chrome trace: open it in chrome://tracing or Perfetto."""

import json

from nexus.core.io.chrome_trace import box, process_name, track_name
from nexus.planner.simulator.simulate import Run

_LANES = {"decode lane": 1, "prefill lane": 2}


def chrome_trace(run: Run, name: str) -> str:
    """The JSON text of ``run``, which must have been recorded; times in microseconds.

    One track a lane: steps of one batch and decode steps on the decode lane, chunks that run
    beside them on the prefill lane.
    """
    events = [process_name(name), *(track_name(tid, lane) for lane, tid in _LANES.items())]
    for event in run.events:
        told = {"chunk": event.chunk, "decode_batch": event.decode_batch, "mode": event.name}
        track = _LANES["prefill lane" if event.lane == "prefill" else "decode lane"]
        title = event.name if event.chunk else "decode"
        events.append(box(track, title, event.start_s, event.end_s, told) | {"cat": event.lane})
    return json.dumps({"traceEvents": events, "displayTimeUnit": "ms"}) + "\n"
