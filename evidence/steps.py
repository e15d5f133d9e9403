"""What a server's steps spend on the GPU, from a trace that vLLM's own profiler wrote.

``python -m nexus.evidence.steps TRACE.json.gz -o steps.json`` of what a server started with
``--profiler-config '{"profiler": "torch", "torch_profiler_dir": DIR, "ignore_frontend": true,
"torch_profiler_with_stack": false}'`` leaves in DIR between POST /start_profile and /stop_profile.
"""

import gzip
import json
import re
from bisect import bisect_right
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass
from itertools import pairwise
from pathlib import Path
from typing import Annotated, Any

import typer

from nexus.core.io.outputs import check_writable, write_atomically

_ON_DEVICE = {"kernel", "gpu_memcpy", "gpu_memset"}
_SAMPLED = "gumbel_sample"  # the last kernel of a step
_STEP = re.compile(r"execute_context_(\d+)\((\d+)\)_generation_(\d+)")
_KINDS = (
    ("combine", re.compile("FlashAttnFwdCombine")),
    ("attention", re.compile(r"FlashAttnFwd|flash::")),
    ("products", re.compile("nvjet|gemm|splitK", re.IGNORECASE)),
)


@dataclass(frozen=True)
class TracedStep:
    """One step from the end of the one before to its own, in ms.

    ``products`` are matrix products, ``attention`` is with what joins its splits (``combine``),
    ``idle`` is when nothing ran.
    """

    prompts: int
    prompt_tokens: int
    decodes: int
    ms: float
    idle: float
    products: float
    attention: float
    combine: float


def traced_steps(events: Sequence[dict[str, Any]]) -> Iterator[TracedStep]:
    """Every step of a torch profiler's ``traceEvents`` but the first."""
    work = sorted((e for e in events if e.get("cat") in _ON_DEVICE), key=_start)
    named = sorted((e for e in events if e.get("cat") == "gpu_user_annotation"), key=_start)
    starts = [_start(each) for each in named]
    ends = [_end(each) for each in work if _SAMPLED in each["name"]]
    at = [_start(each) for each in work]
    for begin, end in pairwise(ends):
        inside = work[bisect_right(at, begin) : bisect_right(at, end)]
        name = named[bisect_right(starts, (begin + end) / 2) - 1]["name"] if named else ""
        told = _STEP.match(name)
        if told and inside:
            yield _step(inside, begin, end, *map(int, told.groups()))


def _step(
    work: Sequence[dict[str, Any]],
    begin: float,
    end: float,
    prompts: int,
    tokens: int,
    decodes: int,
) -> TracedStep:
    spent: Counter[str] = Counter()
    busy, seen = 0.0, begin
    for each in work:
        spent[_kind(each["name"])] += each["dur"]
        busy += max(0.0, _end(each) - max(_start(each), seen))
        seen = max(seen, _end(each))
    attention = spent["attention"] + spent["combine"]
    idle = end - begin - busy
    parts = (end - begin, idle, spent["products"], attention, spent["combine"])
    return TracedStep(prompts, tokens, decodes, *(round(us / 1e3, 3) for us in parts))


def _kind(kernel: str) -> str:
    return next((kind for kind, pattern in _KINDS if pattern.search(kernel)), "")


def _start(event: dict[str, Any]) -> float:
    return float(event["ts"])


def _end(event: dict[str, Any]) -> float:
    return float(event["ts"] + event["dur"])


def main(
    trace: Path, output: Annotated[Path, typer.Option("--output", "-o")] = Path("steps.json")
) -> None:
    """Write a trace's steps as JSON."""
    check_writable(output, trace)
    with gzip.open(trace, "rt", encoding="utf-8") as file:
        events = json.load(file)["traceEvents"]
    steps = list(traced_steps(events))
    rows = ",\n".join(json.dumps(asdict(step)) for step in steps)
    write_atomically(output, f"[\n{rows}\n]\n")
    typer.echo(f"wrote {len(steps)} steps to {output}")


if __name__ == "__main__":
    typer.run(main)
