"""What lies between the end of a step and its tokens at the client, and what it does to TBT.

Run ``python -m nexus.evidence.delivery MODEL PLAN --workload arxiv --rate 7.127 OPTIONS``, with
options of ``nexus serve`` at the end. It serves the workload for a minute with ``--trace``, and
sets the engine's time of each token beside the client's: both read the same monotonic clock.
"""

import json
import tempfile
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import typer

from nexus.benchmarks.client import replay, with_tokenizer
from nexus.benchmarks.workloads import requests_at
from nexus.core.arrays import Floats
from nexus.core.plan import read_plan
from nexus.core.slo import GOOD_GAPS
from nexus.core.spread import percentile
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
    return {
        "requests": len(tokens),
        "delay_ms": {f"p{p}": round(percentile(delays_ms, p), 2) for p in at},
        "late_by_engine": _late([each.engine_s for each in tokens], bound_ms),
        "late_by_client": _late([each.client_s for each in tokens], bound_ms),
    }


def _late(times_s: Sequence[Floats], bound_ms: float) -> dict[str, float]:
    gaps_ms = [1e3 * np.diff(each) for each in times_s]
    tail = [percentile(each, 100 * GOOD_GAPS) for each in gaps_ms]
    return {
        "gaps": round(float((np.concatenate(gaps_ms) > bound_ms).mean()), 4),
        "requests": sum(ms > bound_ms for ms in tail),
    }


@dataclass(frozen=True)
class Load:
    """What is served: ``rate`` requests a second for ``duration_s`` of a workload."""

    workload: str
    rate: float
    duration_s: float
    max_model_len: int


def measured(
    name: str, plan: Path, load: Load, options: Sequence[str], folder: Path
) -> list[Delivered]:
    """Serve and replay; the tokens of every request with more than one."""
    model, trace = with_tokenizer(name, folder), folder / "trace.json"
    words = [model, "--table", str(plan), "--trace", str(trace), *options]
    words += ["--max-model-len", str(load.max_model_len), "--no-enable-prefix-caching"]
    with Server(words, folder / "serve.log", _START_S) as server:
        for rate, many in ((float("inf"), float(_WARM_UP)), (load.rate, load.duration_s)):
            requests = requests_at(load.workload, rate, many, 0, load.max_model_len)
            limit_s = 5 * load.duration_s + _START_S
            details = replay(model, server.port, requests, folder, limit_s, server.check)
    ends_s = np.array([step.end for step in read_trace(trace).steps]) / 1e3
    each = zip(details["start_times"], details["ttfts"], details["itls"], strict=True)
    found = (delivered(ends_s, *one) for one in each if one[2])
    return [tokens for tokens in found if tokens is not None]


def main(
    context: typer.Context,
    model: str,
    plan: Path,
    workload: str = "azure_conv",
    rate: float = 1.0,
    duration: float = 60.0,
    max_model_len: int = 16384,
) -> None:
    """Serve MODEL with PLAN and OPTIONS of nexus serve; print one JSON object."""
    bound_ms = read_plan(plan).bounds.tbt_ms
    load = Load(workload, rate, duration, max_model_len)
    with tempfile.TemporaryDirectory() as folder:
        tokens = measured(model, plan, load, context.args, Path(folder))
    here = {"machine": this_machine().name, "software": software()}
    typer.echo(json.dumps(here | told(tokens, bound_ms)))


if __name__ == "__main__":
    app = typer.Typer()
    app.command(context_settings={"ignore_unknown_options": True, "allow_extra_args": True})(main)
    app()
