"""One ``nexus serve`` under load: its hand-overs, its churn, and what it shows of itself."""

import os
import re
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from nexus.evidence.lane.churn import Churn, metrics, run
from nexus.evidence.lane.handover import StepTime, summary
from nexus.evidence.lane.tracefile import read_trace
from nexus.runtime.server_process import Server

LINE = re.compile(r"steps by mode: .*")
LANE_READY = re.compile(r"prefill lane: ready in .*")
LINE_AFTER_S = 61.0


@dataclass(frozen=True)
class Wanted:
    """``load`` is what hand-overs are measured under, ``churn`` what follows."""

    load: Churn
    churn: Churn
    start_s: float


def observe(
    model: str,
    words: Sequence[str],
    folder: Path,
    wanted: Wanted,
    co_run: StepTime | None = None,
) -> dict[str, Any]:
    """Start ``nexus serve MODEL words``, load it, and tell what was seen.

    The log and the trace stay in ``folder``.
    """
    os.environ["VLLM_LOGGING_LEVEL"] = "INFO"
    log, trace = folder / "serve.log", folder / "trace.json"
    told: dict[str, Any] = {}
    begun = time.monotonic()
    with Server([model, *words, "--trace", str(trace)], log, wanted.start_s) as server:
        told["seconds_to_start"] = round(time.monotonic() - begun, 1)
        first = time.monotonic()
        warm = run(server.port, model, Churn(8, 4.0, 0.0, 40, 900, 8))
        told["warm_up_whole"] = warm["whole"]
        start = time.monotonic()
        told["load"] = run(server.port, model, wanted.load)
        end = time.monotonic()
        told["churn"] = run(server.port, model, wanted.churn)
        told["log_line"] = _a_minute_later(server.port, model, log, first)
        told["shown"] = _shown(metrics(server.port))
        server.check()
    told["lane_ready"] = _found(LANE_READY, log)
    told["errors_in_log"] = _errors(log)
    told["trace"] = _trace(trace)
    window = read_trace(trace).between(1e3 * start, 1e3 * end)
    told["under_load"] = summary(window, co_run)
    return told


def _a_minute_later(port: int, model: str, log: Path, first: float) -> str | None:
    """The log's line of the minute, which the first step after it brings."""
    time.sleep(max(0.0, LINE_AFTER_S - (time.monotonic() - first)))
    run(port, model, Churn(2, 4.0, 0.0, 40, 400, 4))
    return _found(LINE, log)


def _shown(found: dict[str, float]) -> dict[str, Any]:
    steps = {
        name.partition(":")[2]: value
        for name, value in found.items()
        if name.startswith("nexus_mode_steps_total")
    }
    return {
        "mode_steps": steps,
        "lane_modes_shown": any(
            count > 0 for name, count in steps.items() if name.startswith(("overlap", "split"))
        ),
    }


def _trace(path: Path) -> dict[str, Any]:
    trace = read_trace(path)
    whole = path.read_text(encoding="utf-8").rstrip().endswith("]")
    return {"closed": whole, "steps": len(trace.steps), "passes": len(trace.passes)}


def _found(pattern: re.Pattern[str], log: Path) -> str | None:
    lines = log.read_text(encoding="utf-8", errors="replace").splitlines()
    return next((match[0][:300] for line in lines if (match := pattern.search(line))), None)


def _errors(log: Path) -> list[str]:
    lines = log.read_text(encoding="utf-8", errors="replace").splitlines()
    return [line[:300] for line in lines if re.search(r"\bERROR\b|Traceback", line)][:10]
