"""Traces as JSON: an object a line, as Mooncake's and vLLM's ``timed_trace``, or a list of them."""

import json
from array import array
from collections.abc import Callable, Iterator
from itertools import chain
from operator import itemgetter
from pathlib import Path
from typing import Any

import numpy as np

from nexus.core.arrays import Floats, Ints
from nexus.planner.workload.trace_columns import Columns, Wanted, find_columns
from nexus.planner.workload.trace_file import A_COUNT, MOST_TOKENS, Chunk, Rows, shown, wrong
from nexus.planner.workload.trace_times import A_NUMBER, A_STAMP, are_seconds, microseconds_of

TEXTS = "ShareGPT"
_MOONCAKE_BLOCK = 512  # tokens that a hash id stands for
_BLOCKS = (_MOONCAKE_BLOCK, 16)  # the second is Alibaba's
_NEARLY_ALL = 0.9
_STEP_IN_MS = 2.0  # between times that differ, in the median: whole seconds come closer
_MOST_TIME = 1 << 53
_MOST_ID = 1 << 62

Record = tuple[int | str, dict[str, Any]]  # where it is, and what it says
CountTokens = Callable[[list[str]], Ints]


def read_json(
    path: Path, chunks: Iterator[Chunk], wanted: Wanted, count: CountTokens | None, *, timed: bool
) -> Rows:
    """A request a line, or all of them in one list; raises DocumentError.

    ``timed``: it must have times. ``count`` gives the tokens of texts.
    """
    records = _records(path, chunks)
    where, first = next(records, ("line 1", dict[str, Any]()))
    whole = chain([(where, first)], records)
    if "conversations" in first:
        return _texts(path, whole, count, timed=timed)
    reader = _Reader(path, find_columns(path, where, list(first), wanted, timed=timed))
    for where, record in whole:
        reader.add(where, record)
    return reader.rows()


def _records(path: Path, chunks: Iterator[Chunk]) -> Iterator[Record]:
    number, lines = next(chunks)
    if lines[0].lstrip().startswith("["):
        text = "".join(chain(lines, *(more for _, more in chunks)))
        for index, value in enumerate(_parsed(path, number, text), 1):
            yield f"entry {index}", _object(path, f"entry {index}", value)
        return
    for first, part in chain([(number, lines)], chunks):
        for at, line in enumerate(part, first):
            if not line.isspace():
                yield at, _object(path, at, _parsed(path, at, line))


def _parsed(path: Path, number: int, text: str) -> Any:
    try:
        return json.loads(text)
    except json.JSONDecodeError as error:
        raise wrong(path, number + error.lineno - 1, f"not JSON: {error.msg}") from error
    except (ValueError, RecursionError) as error:  # digits or brackets without end
        raise wrong(path, number, "not JSON that can be read") from error


def _object(path: Path, where: int | str, value: Any) -> dict[str, Any]:
    if not isinstance(value, dict):
        raise wrong(path, where, f"{shown(value)}; wanted is an object with a request's fields")
    return value


class _Reader:
    """Takes records one by one; all their times are written as the first one's."""

    def __init__(self, path: Path, columns: Columns) -> None:
        """``columns`` are the fields to take."""
        self._path, self._columns, self._names = path, columns, columns.names
        self._stamps: bool | None = None  # whether times are date-times: then in microseconds
        self._times = array("d")
        self._furthest: tuple[float, int | str] = (0.0, 0)
        counted = ("input", "output", "cached")
        self._counts = {role: array("q") for role in counted if role in self._names}
        self._ids, self._num_ids = array("q"), array("q")

    def add(self, where: int | str, record: dict[str, Any]) -> None:
        """One more request; raises DocumentError."""
        if "time" in self._names:
            self._add_time(where, record.get(self._names["time"]))
        for role, values in self._counts.items():
            value: Any = record.get(self._names[role])
            if not _is_number(value) or not 0 <= value <= MOST_TOKENS or value != int(value):
                raise self._wrong(where, role, value, A_COUNT)
            values.append(int(value))
        if "hash_ids" in self._names:
            ids = record.get(self._names["hash_ids"], [])
            if not isinstance(ids, list) or not all(map(_is_id, ids)):
                raise self._wrong(where, "hash_ids", ids, "a list of whole numbers")
            self._ids.extend(ids)
            self._num_ids.append(len(ids))

    def _add_time(self, where: int | str, value: Any) -> None:
        if self._stamps is None:
            self._stamps = isinstance(value, str)
        time: Any = _microseconds(value) if self._stamps else value
        if not _is_number(time) or not abs(time) < _MOST_TIME:
            raise self._wrong(where, "time", value, A_STAMP if self._stamps else A_NUMBER)
        self._times.append(time)
        self._furthest = max(self._furthest, (abs(time), where), key=itemgetter(0))

    def rows(self) -> Rows:
        """All of them."""
        counts = {role: np.asarray(values) for role, values in self._counts.items()}
        num_ids = np.asarray(self._num_ids)
        block = _block_of(counts["input"], num_ids) if "hash_ids" in self._names else 0
        times, unit = self._times_s(block) if "time" in self._names else (None, "")
        return Rows(
            self._columns.kind or _kind(block, unit),
            times,
            counts["input"],
            counts["output"],
            counts.get("cached"),
            np.asarray(self._ids) if block else None,
            num_ids if block else None,
            block,
            (f"times taken as {unit}",) if unit else (),
        )

    def _times_s(self, block: int) -> tuple[Floats, str]:
        """Since the first request, and the unit that they are in, where they are numbers."""
        times = np.asarray(self._times)
        if self._stamps:
            return (times - times[0]) / 1e6, ""
        in_ms = self._columns.in_ms
        if in_ms is None:
            in_ms = _in_milliseconds(times, block)
        per_s, unit = (1e3, "milliseconds") if in_ms else (1.0, "seconds")
        time, where = self._furthest
        if not are_seconds(np.array(time / per_s)):
            raise self._wrong(where, "time", time, A_NUMBER)
        return (times - times[0]) / per_s, unit

    def _wrong(self, where: int | str, role: str, value: Any, wanted: str) -> Exception:
        name = shown(self._names[role])
        return wrong(self._path, where, f"{name} is {shown(value)}; wanted is {wanted}")


def _is_number(value: Any) -> bool:
    return isinstance(value, (int, float)) and not isinstance(value, bool)


def _is_id(value: Any) -> bool:
    return isinstance(value, int) and abs(value) < _MOST_ID


def _microseconds(stamp: Any) -> int | None:
    """Of a date-time; None for what is none."""
    try:
        return int(microseconds_of([stamp])[0]) if isinstance(stamp, str) else None
    except ValueError:
        return None


def _block_of(inputs: Ints, num_ids: Ints) -> int:
    """Tokens that an id stands for: those of a known format, or the whole prompt's."""
    for tokens in _BLOCKS:
        if (num_ids == -(-inputs // tokens)).mean() >= _NEARLY_ALL:
            return tokens
    whole = num_ids.max() <= 1 and inputs.max() > _MOONCAKE_BLOCK
    return int(inputs.max()) if whole else _MOONCAKE_BLOCK


def _in_milliseconds(times: Floats, block: int) -> bool:
    """Mooncake's format has whole milliseconds, vLLM's ``timed_trace`` seconds, or so by default."""
    if (times != np.floor(times)).any():
        return False
    steps = np.diff(np.unique(times))
    return block == _MOONCAKE_BLOCK and bool(len(steps)) and float(np.median(steps)) >= _STEP_IN_MS


def _kind(block: int, unit: str) -> str:
    if not block:
        return "JSON"
    return "Mooncake" if unit == "milliseconds" else "timed_trace"


def _texts(
    path: Path, records: Iterator[Record], count: CountTokens | None, *, timed: bool
) -> Rows:
    """The first question and answer of each conversation, as ``vllm bench serve`` has them."""
    needs = [*(["--rate"] if timed else []), *(["--tokenizer"] if count is None else [])]
    if needs or count is None:
        raise wrong(path, TEXTS, _NEEDS.format(" and ".join(needs)))
    prompts, answers, short = list[str](), list[str](), 0
    for where, record in records:
        turns = record.get("conversations")
        if not isinstance(turns, list) or not all(map(_is_turn, turns)):
            raise wrong(path, where, "wanted is a list of conversations, each turn with a value")
        if len(turns) < 2:
            short += 1
            continue
        prompts.append(turns[0]["value"])
        answers.append(turns[1]["value"])
    notes = (f"{short:,} conversations of fewer than two turns left out",) if short else ()
    return Rows(TEXTS, None, count(prompts), count(answers), notes=notes)


_NEEDS = (
    "texts, with neither times nor numbers of tokens: give nexus plan or simulate {} (a tokenizer "
    "is a model's folder or hub id, or a number of tokens per character, as 0.25)"
)


def _is_turn(turn: Any) -> bool:
    return isinstance(turn, dict) and isinstance(turn.get("value"), str)
