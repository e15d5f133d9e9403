"""What lies between the end of a step and its tokens at the client, and what it does to TBT.

Run ``python evidence/delivery.py MODEL PLAN --workload arxiv --rate 7.127 OPTIONS``, with
options of ``nexus serve`` at the end. It serves the workload for a minute with ``--trace``, and
sets the engine's time of each token beside the client's: both read the same monotonic clock.
"""

import argparse
import json
import tempfile
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from nexus.benchmarks.client import replay
from nexus.benchmarks.shapes import with_tokenizer
from nexus.benchmarks.workloads import requests_at
from nexus.core.arrays import Floats
from nexus.core.plan import read_plan
from nexus.core.slo import LATE_GAPS
from nexus.evidence.lane.tracefile import read_trace
from nexus.runtime.machine import software, this_machine
from nexus.runtime.server_process import Server

_START_S = 400.0
_WARM_UP = 16  # requests at once


@dataclass(frozen=True)
class Delivered:
    """One request's tokens, in seconds: when their steps ended, and when the client had them."""

    engine_s: Floats
    client_s: Floats


def delivered(
    ends_s: Floats, start_s: float, ttft_s: float, gaps_s: Sequence[float]
) -> Delivered | None:
    """A request's tokens beside the steps that made them; ``ends_s`` are all steps' ends.

    Its first token is taken to be of the last step that had ended when the client got it, the
    others of those that followed. None where there are no such steps.
    """
    client_s = start_s + ttft_s + np.concatenate([[0.0], np.cumsum(gaps_s)])
    first = int(np.searchsorted(ends_s, client_s[0])) - 1
    engine_s = ends_s[first : first + len(client_s)] if first >= 0 else ends_s[:0]
    return Delivered(engine_s, client_s) if len(engine_s) == len(client_s) else None


def told(tokens: Sequence[Delivered], bound_ms: float) -> dict[str, Any]:
    """Delays in ms, and the shares of gaps and of requests that exceed the bound on TBT."""
    delays_ms = 1e3 * np.concatenate([each.client_s - each.engine_s for each in tokens])
    at = (5, 50, 95, 99)
    found = np.percentile(delays_ms, at)
    return {
        "requests": len(tokens),
        "delay_ms": {f"p{p}": round(float(ms), 2) for p, ms in zip(at, found, strict=True)},
        "late_by_engine": _late([each.engine_s for each in tokens], bound_ms),
        "late_by_client": _late([each.client_s for each in tokens], bound_ms),
    }


def _late(times_s: Sequence[Floats], bound_ms: float) -> dict[str, float]:
    gaps_ms = [1e3 * np.diff(each) for each in times_s]
    tail = [np.percentile(each, 100 * (1 - LATE_GAPS)) for each in gaps_ms]
    return {
        "gaps": round(float((np.concatenate(gaps_ms) > bound_ms).mean()), 4),
        "requests": sum(bool(ms > bound_ms) for ms in tail),
    }


def measured(arguments: argparse.Namespace, options: list[str], folder: Path) -> list[Delivered]:
    """Serve and replay; the tokens of every request with more than one."""
    model, trace = with_tokenizer(arguments.model, folder), folder / "trace.json"
    words = [model, "--table", str(arguments.plan), "--trace", str(trace), *options]
    words += ["--max-model-len", str(arguments.max_model_len), "--no-enable-prefix-caching"]
    with Server(words, folder / "serve.log", _START_S) as server:
        for rate, many in ((float("inf"), float(_WARM_UP)), (arguments.rate, arguments.duration)):
            requests = requests_at(arguments.workload, rate, many, 0, arguments.max_model_len)
            limit_s = 5 * arguments.duration + _START_S
            details = replay(model, server.port, requests, folder, limit_s, server.check)
    ends_s = np.array([step.end for step in read_trace(trace).steps]) / 1e3
    each = zip(details["start_times"], details["ttfts"], details["itls"], strict=True)
    found = (delivered(ends_s, *one) for one in each if one[2])
    return [tokens for tokens in found if tokens is not None]


def main() -> None:
    """Parse, measure, print one JSON object."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("model")
    parser.add_argument("plan", type=Path)
    parser.add_argument("--workload", default="azure_conv")
    parser.add_argument("--rate", type=float, default=1.0)
    parser.add_argument("--duration", type=float, default=60.0)
    parser.add_argument("--max-model-len", type=int, default=16384)
    arguments, options = parser.parse_known_args()
    bound_ms = read_plan(arguments.plan).bounds.tbt_ms
    with tempfile.TemporaryDirectory() as folder:
        tokens = measured(arguments, options, Path(folder))
    here = {"machine": this_machine().name, "software": software()}
    print(json.dumps(here | told(tokens, bound_ms)))  # noqa: T201  the benchmark's output


if __name__ == "__main__":
    main()
