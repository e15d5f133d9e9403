"""Named workloads, scaled to a rate, as files that vLLM's ``timed_trace`` data set replays.

A workload at a rate is always the same requests, in the same order, at the same times;
a higher rate packs more of the same sequence into the duration. ``repeat`` shifts the
window of a trace, or seeds a synthetic workload anew. The file of any trace that the planner
reads is a workload too, with the prefixes that its requests share.
"""

import hashlib
import json
from collections.abc import Callable, Mapping
from dataclasses import replace
from functools import cache, partial
from itertools import count as counter
from itertools import islice
from pathlib import Path
from typing import NamedTuple

import numpy as np

from nexus.core.arrays import Ints
from nexus.core.errors import UserError
from nexus.planner.workload.requests import Lengths, Requests
from nexus.planner.workload.traces import read_trace

TRACES = Path(__file__).parent / "traces"
WINDOWS = 4  # a trace's repeats start at its quarters
PLAN_REQUESTS = 4096  # as many lengths are shown to the planner

# vLLM makes so many tokens of each hash id: a prompt of one id is one random sequence.
_HASH_CHUNK = 1 << 20
_OWN_IDS = 1 << 40  # ids from here on are one prompt's own
_P95 = 1.6449  # standard deviations from the median to the 95th percentile


Sample = Callable[[np.random.Generator, int], Ints]  # that many lengths, at least 1


def _log_normal(p50: float, p95: float, most: int) -> Sample:
    """Lengths with that median and 95th percentile, cut at ``most`` tokens."""
    mean, sigma = np.log(p50), np.log(p95 / p50) / _P95
    return lambda rng, count: np.clip(np.round(rng.lognormal(mean, sigma, count)), 1, most).astype(
        np.int64
    )


def _uniform(mean: float) -> Sample:
    """Lengths spread evenly within half of ``mean`` of it."""
    return lambda rng, count: np.maximum(
        np.round(rng.uniform(0.5 * mean, 1.5 * mean, count)), 1
    ).astype(np.int64)


class Part(NamedTuple):
    """A kind of request and its share of a workload."""

    share: float
    inputs: Sample
    outputs: Sample


# The kinds of data that the Nexus paper (arXiv 2507.06608) serves: Long Data Collections,
# arXiv summarization, and 60 % ShareGPT with 40 % of the first. These are distributions of
# lengths chosen to resemble them, not the data sets.
_LONG = Part(1.0, _log_normal(5461, 9292, 16384), _log_normal(159, 339, 1024))
_ARXIV = Part(1.0, _log_normal(3575, 6460, 16384), _log_normal(181, 357, 1024))
_CHAT = Part(1.0, _log_normal(432, 970, 4096), _log_normal(37, 383, 1024))

Draw = Callable[[int, int], Requests]  # (count, repeat): that many requests at one a second


def _poisson(name: str, parts: tuple[Part, ...], count: int, repeat: int) -> Requests:
    seed = int.from_bytes(hashlib.sha256(f"{name}:{repeat}".encode()).digest()[:8])
    # One stream for each quantity, so that more requests begin with the same ones.
    gap, kind, *streams = np.random.default_rng(seed).spawn(2 + 2 * len(parts))
    times = np.cumsum(gap.exponential(1.0, count + 1))
    arrivals = times[:-1] * count / times[-1]
    chosen = kind.choice(len(parts), size=count, p=[part.share for part in parts])
    inputs = np.stack([p.inputs(s, count) for p, s in zip(parts, streams, strict=False)])
    outputs = np.stack(
        [p.outputs(s, count) for p, s in zip(parts, streams[len(parts) :], strict=True)]
    )
    index = np.arange(count)
    return Requests(arrivals, Lengths(name, inputs[chosen, index], outputs[chosen, index]))


@cache
def _whole_trace(path: Path) -> tuple[Requests, str]:
    """A trace, and a line about it.

    Of a column of cached tokens nothing is kept: it does not say what a server could find again.
    """
    told: list[str] = []
    requests = read_trace(path, say=told.append)
    lengths = replace(requests.lengths, hits=None)
    return replace(requests, lengths=lengths), told[0]


def _window(path: Path, name: str, count: int, repeat: int) -> Requests:
    whole, _ = _whole_trace(path)
    total = len(whole.arrivals_s)
    if count >= total:
        raise UserError(f"{name} holds {total} requests, not more than {count}: shorten --duration")
    if not whole.per_s:
        raise UserError(f"{name} has all requests at one time")
    first = (repeat % WINDOWS) * total // WINDOWS
    index = np.arange(first, first + count + 1)
    lap = index // total * whole.arrivals_s[-1]
    times = whole.arrivals_s[index % total] + lap
    times = (times - times[0]) * count / (times[-1] - times[0])
    taken = whole.take(index[:-1] % total, times[:-1])
    return replace(taken, lengths=replace(taken.lengths, source=name))


WORKLOADS: Mapping[str, Draw] = {
    "azure_conv": partial(_window, TRACES / "azure_conv.csv.gz", "azure_conv"),
    "azure_code": partial(_window, TRACES / "azure_code.csv.gz", "azure_code"),
    "long-documents": partial(_poisson, "long-documents", (_LONG,)),
    "arxiv": partial(_poisson, "arxiv", (_ARXIV,)),
    "mixed": partial(
        _poisson,
        "mixed",
        (_CHAT._replace(share=0.6), _LONG._replace(share=0.4)),
    ),
}


def workload(name: str) -> Draw:
    """The workload called ``name``; ``random:INPUT:OUTPUT`` has those mean lengths.

    Also the file of a trace. Raises UserError for a name that is neither.
    """
    if name in WORKLOADS:
        return WORKLOADS[name]
    if _is_file(name):
        return partial(_window, Path(name), name)
    kind, *means = name.split(":")
    means = means or ["1024", "128"]
    if kind == "random" and len(means) == 2 and all(m.isdigit() and int(m) for m in means):
        part = Part(1.0, _uniform(float(means[0])), _uniform(float(means[1])))
        return partial(_poisson, name, (part,))
    known = ", ".join([*WORKLOADS, "random:INPUT:OUTPUT", "the file of a trace"])
    raise UserError(f"no workload {name!r}; there are {known}")


def _is_file(name: str) -> bool:
    return name not in WORKLOADS and Path(name).is_file()


def highest_rate(name: str, duration_s: float) -> float:
    """Requests per second for which the workload has enough requests."""
    draw = workload(name)
    if not isinstance(draw, partial) or draw.func is not _window:
        return float("inf")
    whole, _ = _whole_trace(draw.args[0])
    return (len(whole.arrivals_s) - 1) / duration_s


def requests_at(
    name: str, rate: float, duration_s: float, repeat: int, max_model_len: int
) -> Requests:
    """The workload at ``rate`` requests a second for ``duration_s``, at least one request.

    At an infinite rate, ``duration_s`` requests at once. What a model of that length
    cannot serve is cut.
    """
    at_once = rate == float("inf")
    count = max(round(duration_s if at_once else rate * duration_s), 1)
    drawn = workload(name)(count, repeat)
    arrivals = np.zeros(count) if at_once else drawn.arrivals_s / rate
    return replace(drawn, arrivals_s=arrivals, lengths=drawn.lengths.cut_to(max_model_len))


def to_plan_for(name: str, max_model_len: int) -> Lengths | Requests:
    """What the planner is to know of a workload: a trace, or as many lengths as it needs."""
    if _is_file(name):
        whole, _ = _whole_trace(Path(name))
        return replace(whole, lengths=whole.lengths.cut_to(max_model_len))
    return workload(name)(PLAN_REQUESTS, 0).lengths.cut_to(max_model_len)


def has_prefixes(name: str) -> bool:
    """Whether prompts of a workload begin alike."""
    return _is_file(name) and _whole_trace(Path(name))[0].prefixes is not None


def told(name: str, max_model_len: int) -> list[str]:
    """What is to be known of a trace that is a workload; nothing of others."""
    if not _is_file(name):
        return []
    whole, line = _whole_trace(Path(name))
    return [line, *filter(None, [whole.lengths.told_of_cut(max_model_len)])]


def as_timed_trace(requests: Requests, run: int = 0) -> str:
    """One JSON line a request, as ``--dataset-name timed_trace`` reads with ``chunk_of``.

    Prompts share what the trace has them share, in one ``run``, and nothing with other runs'.
    """
    lengths = requests.lengths
    rows = zip(
        requests.arrivals_s, lengths.inputs, lengths.outputs, _hash_ids(requests, run), strict=True
    )
    lines = [
        json.dumps(
            {
                "timestamp": round(float(at), 6),
                "input_length": int(inputs),
                "output_length": int(outputs),
                "hash_ids": ids,
            }
        )
        for at, inputs, outputs, ids in rows
    ]
    return "\n".join(lines) + "\n"


def chunk_of(requests: Requests) -> int:
    """Tokens that vLLM makes of each hash id; without prefixes a prompt is one sequence."""
    return _HASH_CHUNK if requests.prefixes is None else requests.prefixes.tokens


def _hash_ids(requests: Requests, run: int) -> list[list[int]]:
    inputs, prefixes = requests.lengths.inputs, requests.prefixes
    if prefixes is None:
        return [[number] for number in range(len(inputs))]
    shared = np.split(prefixes.ids + 2 * run * _OWN_IDS, np.cumsum(prefixes.counts)[:-1])
    own = counter((2 * run + 1) * _OWN_IDS)
    wanted = (-(-inputs // prefixes.tokens)).tolist()
    return [
        [*ids[:most].tolist(), *islice(own, max(most - len(ids), 0))]
        for ids, most in zip(shared, wanted, strict=True)
    ]


def digest(text: str) -> str:
    """A short name for a file's content."""
    return hashlib.sha256(text.encode()).hexdigest()[:16]
