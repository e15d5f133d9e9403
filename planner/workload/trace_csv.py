"""Traces as tables: a line of names, then a request a line."""

import csv
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np

from nexus.core.arrays import Bools, Floats, Ints
from nexus.planner.workload.trace_columns import Wanted, find_columns
from nexus.planner.workload.trace_file import (
    A_COUNT,
    Chunk,
    Rows,
    are_counts,
    first_bad,
    shown,
    wrong,
)
from nexus.planner.workload.trace_times import A_NUMBER, A_STAMP, are_seconds, microseconds_of

_DELIMITERS = ",;\t"
_STAMP = "U48"  # a date-time, as characters
_ROLES = ("time", "input", "output", "cached")


def read_csv(path: Path, chunks: Iterator[Chunk], wanted: Wanted, *, timed: bool) -> Rows:
    """A table with commas, semicolons or tabs between columns; raises DocumentError.

    ``timed``: it must have times.
    """
    number, lines = next(chunks)
    delimiter = max(_DELIMITERS, key=lines[0].count)
    header = [name.strip() for name in _fields(lines[0], delimiter)]
    columns = find_columns(path, number, header, wanted, timed=timed)
    index = {role: header.index(columns.names[role]) for role in _ROLES if role in columns.names}
    table = _Table(path, delimiter, header, index, 1e3 if columns.in_ms else 1.0)
    parts: list[dict[str, Any]] = []
    for numbers, rows in _filled(number + 1, lines[1:], chunks):
        if not parts:
            table = table.for_times_as_in(rows[0])
        parts.append(table.read(numbers, rows))
    whole = {role: np.concatenate([part.pop(role) for part in parts] or [[]]) for role in index}
    times = whole.pop("time", None)
    counts = {role: values.astype(np.int64) for role, values in whole.items()}
    return Rows(
        columns.kind or "CSV",
        None if times is None else (times - times[:1]) / table.per_s,
        counts["input"],
        counts["output"],
        counts.get("cached"),
    )


def _fields(line: str, delimiter: str) -> list[str]:
    try:
        return next(csv.reader([line], delimiter=delimiter), [])
    except csv.Error:
        return [line]


def _filled(
    number: int, lines: list[str], chunks: Iterator[Chunk]
) -> Iterator[tuple[list[int], list[str]]]:
    """The lines that are not blank, and their numbers."""
    while True:
        filled = [index for index, line in enumerate(lines) if not line.isspace()]
        if filled:
            yield [number + index for index in filled], [lines[index] for index in filled]
        chunk = next(chunks, None)
        if chunk is None:
            return
        number, lines = chunk


@dataclass(frozen=True)
class _Table:
    """How to read lines: ``index`` is the column of each role, ``per_s`` units of time a second.

    ``stamps``: times are date-times, which are microseconds when they are read.
    """

    path: Path
    delimiter: str
    header: list[str]
    index: dict[str, int]
    per_s: float
    stamps: bool = False

    def for_times_as_in(self, line: str) -> "_Table":
        """For a table whose first request is ``line``: all times are written as that one's."""
        at, fields = self.index.get("time", -1), _fields(line, self.delimiter)
        if not 0 <= at < len(fields) or _number(fields[at]) is not None:
            return self
        return replace(self, per_s=1e6, stamps=True)

    def read(self, numbers: Sequence[int], lines: list[str]) -> dict[str, Floats | Ints]:
        """The columns of ``lines``, which have those numbers; raises DocumentError."""
        try:
            return self._parse(lines)
        except ValueError:
            bad = first_bad(lines, self._fails)
            raise wrong(self.path, numbers[bad], self._complaint(lines[bad])) from None

    @cached_property
    def _dtype(self) -> Any:
        kinds = {"time": _STAMP if self.stamps else "f8"}
        return np.dtype([(role, kinds.get(role, "f8")) for role in self.index])

    def _parse(self, lines: list[str]) -> dict[str, Floats | Ints]:
        read = np.loadtxt(
            lines,
            dtype=self._dtype,
            comments=None,
            delimiter=self.delimiter,
            usecols=tuple(self.index.values()),
            quotechar='"',
            ndmin=1,
        )
        if len(read) != len(lines):
            raise ValueError("a field runs over several lines")
        found: dict[str, Floats | Ints] = {role: read[role].copy() for role in self.index}
        for role, values in found.items():
            if role == "time" and self.stamps:
                found[role] = microseconds_of(values)
            elif not self._are_good(role, values).all():
                raise ValueError(role)
        return found

    def _are_good(self, role: str, values: Floats | Ints) -> Bools:
        return are_seconds(values / self.per_s) if role == "time" else are_counts(values)

    def _fails(self, lines: list[str]) -> bool:
        try:
            self._parse(lines)
        except ValueError:
            return True
        return False

    def _complaint(self, line: str) -> str:
        """What is wrong with a line that does not parse."""
        fields = _fields(line, self.delimiter)
        for role, at in self.index.items():
            name = shown(self.header[at])
            if at >= len(fields):
                return f"{len(fields)} columns; wanted is {name} in column {at + 1}"
            if not self._is_good(role, fields[at]):
                time = A_STAMP if self.stamps else A_NUMBER
                want = time if role == "time" else A_COUNT
                return f"{name} is {shown(fields[at])}; wanted is {want}"
        return f"{shown(line.rstrip())} is not a row of the table"

    def _is_good(self, role: str, text: str) -> bool:
        if role == "time" and self.stamps:
            try:
                return bool(microseconds_of([text]).size)
            except ValueError:
                return False
        number = _number(text)
        return number is not None and bool(self._are_good(role, np.array([number])).all())


def _number(text: str) -> float | None:
    try:
        return float(text)
    except ValueError:
        return None
