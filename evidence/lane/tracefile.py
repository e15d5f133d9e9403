"""What ``nexus serve --trace`` wrote, as values."""

import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from nexus.core.errors import DocumentError
from nexus.runtime.vllm.trace import FIRST_TOKENS, LEFT_LANE, PASSES, STEPS


@dataclass(frozen=True)
class Step:
    """One step of vLLM; times in milliseconds."""

    start: float
    end: float
    mode: str
    decodes: int
    prompt_tokens: int
    kv_tokens: int
    predicted: float

    @property
    def ms(self) -> float:
        """How long it took."""
        return self.end - self.start


@dataclass(frozen=True)
class Pass:
    """One pass of the prefill lane, by the device's clock; times in milliseconds.

    ``ends`` are the requests whose last lane tokens it computed, None where the trace does
    not say.
    """

    start: float
    end: float
    mode: str
    tokens: int
    ends: tuple[str, ...] | None


@dataclass(frozen=True)
class Trace:
    """Steps and passes by their ends; when each request left the lane and first spoke."""

    steps: tuple[Step, ...]
    passes: tuple[Pass, ...]
    left: dict[str, float]
    first: dict[str, float]

    def between(self, start: float, end: float) -> "Trace":
        """What ended between two times, in milliseconds."""
        return Trace(
            tuple(step for step in self.steps if start <= step.end <= end),
            tuple(each for each in self.passes if start <= each.end <= end),
            {name: at for name, at in self.left.items() if start <= at <= end},
            {name: at for name, at in self.first.items() if start <= at <= end},
        )


def read_trace(path: Path) -> Trace:
    """Read a trace, also of a server that still runs or was killed; raises DocumentError."""
    events = _events(path)
    lanes = {
        event["tid"]: event["args"]["name"]
        for event in events
        if event.get("ph") == "M" and event["name"] == "thread_name"
    }
    boxes = [(lanes.get(event["tid"]), event) for event in events if event["ph"] == "X"]
    steps = [_step(event) for lane, event in boxes if lane == STEPS]
    passes = [_pass(event) for lane, event in boxes if lane == PASSES]
    return Trace(
        tuple(sorted(steps, key=lambda step: step.end)),
        tuple(sorted(passes, key=lambda each: each.end)),
        _moments(events, LEFT_LANE),
        _moments(events, FIRST_TOKENS),
    )


def _events(path: Path) -> list[dict[str, Any]]:
    try:
        text = path.read_text(encoding="utf-8").strip()
        if not text.endswith("]"):
            text = text[: text.rfind("}") + 1] + "]"
        events: list[dict[str, Any]] = json.loads(text)
    except (OSError, ValueError) as error:
        raise DocumentError(f"{path}: {error}") from error
    return events


def _step(event: dict[str, Any]) -> Step:
    told = event["args"]
    start = event["ts"] / 1e3
    return Step(
        start,
        start + event["dur"] / 1e3,
        event["name"],
        told["decodes"],
        told["prompt_tokens"],
        told.get("kv_tokens", 0),
        told["predicted_ms"],
    )


def _pass(event: dict[str, Any]) -> Pass:
    told = event["args"]
    start = event["ts"] / 1e3
    ends = told.get("ends")
    return Pass(
        start,
        start + event["dur"] / 1e3,
        event["name"],
        told["tokens"],
        None if ends is None else tuple(ends),
    )


def _moments(events: Sequence[dict[str, Any]], name: str) -> dict[str, float]:
    """When each request is named by the last of such events."""
    return {
        request: event["ts"] / 1e3
        for event in events
        if event["ph"] == "i" and event["name"] == name
        for request in event["args"]["requests"]
    }
