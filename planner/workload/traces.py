"""Traces of requests, in whichever known format: read, put in order, and told of in one line."""

from collections.abc import Callable, Iterator, Mapping
from itertools import chain
from pathlib import Path

import numpy as np

from nexus.core.errors import DocumentError
from nexus.planner.workload.prefixes import Prefixes
from nexus.planner.workload.requests import Lengths, Requests
from nexus.planner.workload.texts import counter_of
from nexus.planner.workload.trace_csv import read_csv
from nexus.planner.workload.trace_file import Chunk, Rows, chunks_of, open_text
from nexus.planner.workload.trace_json import TEXTS, read_json
from nexus.planner.workload.trace_times import spread_in_ticks

_SEED = 0


def read_trace(
    path: Path,
    *,
    columns: Mapping[str, str] | None = None,
    rate: float | None = None,
    tokenizer: str | None = None,
    say: Callable[[str], None] | None = None,
) -> Requests:
    """Read a trace of a known format; raises DocumentError for others, naming the line.

    Known are the tables of Azure (2023 and 2024) and BurstGPT, JSON lines as Mooncake's and
    vLLM's ``timed_trace``, ShareGPT's JSON, and what else has columns that say what they are, or
    that ``columns`` names. Requests without times come at random, at ``rate`` a second. Texts
    are counted with ``tokenizer``: a model's folder or hub id, or tokens per character. ``say``
    gets one line on what was read.
    """
    with open_text(path) as file:
        rows = _rows(path, chunks_of(file), columns or {}, tokenizer, timed=rate is None)
    notes = list(rows.notes)
    if rows.kind == TEXTS:
        notes.append(f"tokens by --tokenizer {tokenizer}")
    kept = (rows.inputs > 0) & (rows.outputs > 0)
    count = int(kept.sum())
    if not count:
        raise DocumentError(f"{path}: no request in it")
    if count < len(kept):
        notes.append(f"{len(kept) - count:,} without prompt or output left out")
    if rows.times_s is None:
        assert rate is not None
        order = np.flatnonzero(kept)
        arrivals_s = np.cumsum(np.random.default_rng(_SEED).exponential(1.0 / rate, count))
        notes.append(f"it has no times: random arrivals at {rate:g} requests/s")
    else:
        order = np.flatnonzero(kept)[np.argsort(rows.times_s[kept], kind="stable")]
        arrivals_s, tick_s = spread_in_ticks(rows.times_s[order] - rows.times_s[order[0]])
        if tick_s:
            notes.append(f"arrivals spread evenly within ticks of {tick_s:g} s")
    requests = _requests(path.name, rows).take(order, arrivals_s)
    if say is not None:
        say(f"trace {path}: {rows.kind}, {_told(requests)}{''.join(f'; {note}' for note in notes)}")
    return requests


def _rows(
    path: Path,
    chunks: Iterator[Chunk],
    columns: Mapping[str, str],
    tokenizer: str | None,
    *,
    timed: bool,
) -> Rows:
    first = next(chunks, None)
    if first is None:
        raise DocumentError(f"{path}: no request in it")
    chunks = chain([first], chunks)
    if first[1][0].lstrip().startswith(("{", "[")):
        count = None if tokenizer is None else counter_of(tokenizer)
        return read_json(path, chunks, columns, count, timed=timed)
    return read_csv(path, chunks, columns, timed=timed)


def _requests(source: str, rows: Rows) -> Requests:
    """In the file's order, and with no times."""
    hits = rows.cached
    if hits is not None:
        hits = np.clip(hits, 0, rows.inputs - 1)  # a prompt's last token is computed in any case
    prefixes = None
    if rows.ids is not None and rows.counts is not None and len(rows.ids):
        prefixes = Prefixes.of(rows.block, rows.ids, rows.counts)
    lengths = Lengths(source, rows.inputs, rows.outputs, hits)
    return Requests(np.zeros(len(rows.inputs)), lengths, prefixes)


def _told(requests: Requests) -> str:
    """How many, over how long, of which lengths, and what share of the prompts is cached."""
    lengths, prefixes = requests.lengths, requests.prefixes
    cached, how = int(lengths.cached.sum()), "cached"
    if prefixes is not None:
        cached, how = prefixes.num_repeated(lengths.inputs), "in blocks that came before"
    return (
        f"{len(lengths.inputs):,} requests in {requests.arrivals_s[-1]:,.1f} s, "
        f"{lengths.input_mean:.0f} + {lengths.output_mean:.0f} tokens on average, "
        f"{cached / lengths.inputs.sum():.0%} of the prompt tokens {how}"
    )
