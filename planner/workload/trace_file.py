"""A trace's file, line by line, and how a complaint about it names the place."""

import gzip
import zlib
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from io import TextIOWrapper
from pathlib import Path
from typing import Any, TextIO

import numpy as np

from nexus.core.arrays import Bools, Floats, Ints
from nexus.core.errors import DocumentError

MOST_TOKENS = 1_000_000_000
A_COUNT = f"a whole number of tokens, from 0 to {MOST_TOKENS:,}"
_GZIP = b"\x1f\x8b"
_CHUNK = 1 << 23  # characters

Chunk = tuple[int, list[str]]  # the number of the first line, and the lines


@dataclass(frozen=True)
class Rows:
    """What a file says of its requests, in its order; arrays are of shape (n,).

    ``times_s`` count from the first request on; None where the file has no times. ``ids`` are
    the blocks of all prompts one after the other, of ``block`` tokens each, ``counts`` (n,) how
    many each has. ``notes`` say what else is to be known.
    """

    kind: str
    times_s: Floats | None
    inputs: Ints
    outputs: Ints
    cached: Ints | None = None
    ids: Ints | None = None
    counts: Ints | None = None
    block: int = 0
    notes: tuple[str, ...] = ()


@contextmanager
def open_text(path: Path) -> Iterator[TextIO]:
    """The file's text, unpacked if it is gzip; raises DocumentError for what is no text."""
    try:
        with path.open("rb") as raw:
            packed = raw.peek(len(_GZIP)).startswith(_GZIP)
            plain: Any = gzip.GzipFile(fileobj=raw) if packed else raw
            yield TextIOWrapper(plain, encoding="utf-8-sig")
    except UnicodeDecodeError as error:
        raise DocumentError(f"{path}: not a text file in UTF-8") from error
    except (OSError, EOFError, zlib.error) as error:
        raise DocumentError(f"{path}: {getattr(error, 'strerror', None) or error}") from error


def chunks_of(file: TextIO) -> Iterator[Chunk]:
    """The file's lines, some megabytes at a time; the first chunk begins with one not blank."""
    number, begun = 1, False
    while lines := file.readlines(_CHUNK):
        skipped = 0
        while not begun and skipped < len(lines) and lines[skipped].isspace():
            skipped += 1
        begun = begun or skipped < len(lines)
        if begun:
            yield number + skipped, lines[skipped:]
        number += len(lines)


def wrong(path: Path, where: int | str, what: str) -> DocumentError:
    """The error about a line (by its number) or another place: what is wanted there."""
    place = f"line {where}" if isinstance(where, int) else where
    return DocumentError(f"{path}, {place}: {what}")


def shown(value: Any) -> str:
    """A value in a complaint: on one line, and short."""
    text = repr(value)
    return text if len(text) <= 40 else f"{text[:36]}…{text[-1]}"


def first_bad(items: Sequence[Any], fails: Callable[[Any], bool]) -> int:
    """Where the first item is that ``fails``, which takes a part of ``items``, one of which does."""
    low, high = 0, len(items)
    while high - low > 1:
        middle = (low + high) // 2
        low, high = (low, middle) if fails(items[low:middle]) else (middle, high)
    return low


def are_counts(values: Floats | Ints) -> Bools:
    """Which of them can be numbers of tokens; of any shape."""
    return np.asarray((values >= 0) & (values <= MOST_TOKENS) & (values == np.floor(values)))
