"""Times as traces write them: numbers, date-times with and without zones, ticks of a clock."""

import warnings
from typing import Any

import numpy as np

from nexus.core.arrays import Bools, Floats, Ints

A_NUMBER = "a time in seconds; milliseconds are --columns time_ms=…"
A_STAMP = "a date-time, as 2023-11-16 18:15:46.68"

_MOST_S = 1e11  # Unix time has 10 digits in seconds, and 13 in milliseconds
_SHORTEST_STAMP = len("2023-11-16")
_COARSE_US = 100_000  # ticks that are shorter change nothing
_FEW_TICKS = 16  # in which their length is not sure
_SECOND_US = 1_000_000


def are_seconds(values: Floats | Ints) -> Bools:
    """Which of them can be times; of any shape."""
    return np.asarray(np.abs(values) < _MOST_S)


def microseconds_of(stamps: Any) -> Ints:
    """Of ISO date-times (n,), in UTC where they name no zone; raises ValueError."""
    stamps = np.asarray(stamps)
    if stamps.size and stamps[0] != stamps[0].strip():
        stamps = np.char.strip(stamps)
    if (np.char.str_len(stamps) < _SHORTEST_STAMP).any():
        raise ValueError("not a date")  # a bare year, or numpy's words for the present
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", UserWarning)  # that a zone is converted to UTC
        found = stamps.astype("datetime64[us]")
    if np.isnat(found).any():
        raise ValueError("not a time")
    return np.asarray(found.astype(np.int64))


def spread_in_ticks(times_s: Floats) -> tuple[Floats, float]:
    """Rising times, with those of one tick of a coarse clock spread evenly over it; the tick.

    The tick is in seconds, 0 where nothing is spread.
    """
    steps = np.diff(np.round(times_s * 1e6).astype(np.int64))
    tick = int(np.gcd.reduce(steps)) if len(steps) else 0
    first = np.flatnonzero(np.concatenate([[True], steps > 0]))
    if len(first) < _FEW_TICKS:
        tick = min(tick, _SECOND_US)
    if tick < _COARSE_US or len(first) == len(times_s):
        return times_s, 0.0
    sizes = np.diff(np.append(first, len(times_s)))
    place = np.arange(len(times_s)) - np.repeat(first, sizes)
    return times_s + place / np.repeat(sizes, sizes) * tick / 1e6, tick / 1e6
