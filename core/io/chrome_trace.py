"""Events of Chrome traces, which Perfetto and chrome://tracing show; times in seconds.

A trace is a JSON array of events, or an object with such an array, or an array that is never
closed, as of a process that was killed.
"""

from typing import Any

Event = dict[str, Any]


def process_name(name: str, process: int = 1) -> Event:
    """What ``process`` is called."""
    return {"ph": "M", "name": "process_name", "pid": process, "tid": 0, "args": {"name": name}}


def track_name(track: int, name: str, process: int = 1) -> Event:
    """What a track of ``process`` is called."""
    return {"ph": "M", "name": "thread_name", "pid": process, "tid": track, "args": {"name": name}}


def box(
    track: int, name: str, start_s: float, end_s: float, told: Event | None = None, process: int = 1
) -> Event:
    """A box on ``track``; ``told`` is shown with it."""
    times = {"ts": _us(start_s), "dur": _us(end_s - start_s)}
    event = {"ph": "X", "name": name, "pid": process, "tid": track, **times}
    return event if told is None else {**event, "args": told}


def moment(track: int, name: str, at_s: float, told: Event, process: int = 1) -> Event:
    """A moment on ``track``; ``told`` is shown with it."""
    at = {"ts": _us(at_s), "s": "t"}
    return {"ph": "i", "name": name, "pid": process, "tid": track, **at, "args": told}


def level(name: str, at_s: float, values: dict[str, float], process: int = 1) -> Event:
    """A counter's values from ``at_s`` on."""
    return {"ph": "C", "name": name, "pid": process, "ts": _us(at_s), "args": values}


def _us(seconds: float) -> float:
    return round(1e6 * seconds, 1)
