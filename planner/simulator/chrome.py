"""A simulated run as a Chrome trace: open it in chrome://tracing or Perfetto."""

import json

from nexus.planner.simulator.simulate import Run

_LANES = {"decode lane": 1, "prefill lane": 2}


def chrome_trace(run: Run, name: str) -> str:
    """The JSON text of ``run``, which must have been recorded; times in microseconds.

    One track a lane: steps of one batch and decode steps on the decode lane, chunks that run
    beside them on the prefill lane.
    """
    named = [
        {"name": "process_name", "ph": "M", "pid": 1, "tid": 0, "args": {"name": name}},
        *(
            {"name": "thread_name", "ph": "M", "pid": 1, "tid": tid, "args": {"name": lane}}
            for lane, tid in _LANES.items()
        ),
    ]
    boxes = [
        {
            "name": event.name if event.chunk else "decode",
            "cat": event.lane,
            "ph": "X",
            "pid": 1,
            "tid": _LANES["prefill lane" if event.lane == "prefill" else "decode lane"],
            "ts": round(1e6 * event.start_s, 1),
            "dur": round(1e6 * (event.end_s - event.start_s), 1),
            "args": {"chunk": event.chunk, "decode_batch": event.decode_batch, "mode": event.name},
        }
        for event in run.events
    ]
    return json.dumps({"traceEvents": [*named, *boxes], "displayTimeUnit": "ms"}) + "\n"
