"""What is asked of the server: request lengths, from a trace or from given means."""

import csv
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from nexus.errors import DocumentError
from nexus.planner.fit import Floats, Ints
from nexus.planner.table import Workload

_SYNTHETIC_REQUESTS = 4096
_SEED = 0


@dataclass(frozen=True)
class Lengths:
    """Prompt and output lengths of requests, in tokens, both of shape (n,), all >= 1."""

    source: str
    inputs: Ints
    outputs: Ints

    @property
    def input_mean(self) -> float:
        """Mean prompt tokens of a request."""
        return float(self.inputs.mean())

    @property
    def output_mean(self) -> float:
        """Mean output tokens of a request."""
        return float(self.outputs.mean())

    @property
    def decode_steps(self) -> float:
        """Mean decode steps of a request: the prefill step gives its first token."""
        return max(self.output_mean - 1.0, 1e-3)

    @property
    def prompt_position(self) -> float:
        """Prompt tokens before a prompt token, on average over all prompt tokens."""
        inputs = self.inputs.astype(np.float64)
        return float((inputs**2).sum() / (2.0 * inputs.sum()))

    @property
    def decode_context(self) -> float:
        """KV tokens that a decoding sequence holds, on average over all decode steps."""
        steps = np.maximum(self.outputs - 1, 0).astype(np.float64)
        if steps.sum() == 0:
            return self.input_mean
        return float((steps * (self.inputs + 1 + steps / 2)).sum() / steps.sum())

    def summary(self) -> Workload:
        """As a plan states it."""
        return Workload(
            source=self.source, input_tokens=self.input_mean, output_tokens=self.output_mean
        )

    def cut_to(self, max_model_len: int) -> "Lengths":
        """Without what a model of that length cannot serve: prompts and outputs are cut."""
        inputs = np.minimum(self.inputs, max_model_len - 1)
        return Lengths(self.source, inputs, np.minimum(self.outputs, max_model_len - inputs))


def lengths_of(workload: Workload | Lengths) -> Lengths:
    """``workload`` itself, or lengths drawn from its means.

    Of a mean alone nothing else is known, so lengths are exponential around it (the
    distribution that assumes least); the same means always give the same lengths.
    """
    if isinstance(workload, Lengths):
        return workload
    rng = np.random.default_rng(_SEED)
    return Lengths(
        workload.source,
        _exponential(rng, workload.input_tokens),
        _exponential(rng, workload.output_tokens),
    )


def _exponential(rng: np.random.Generator, mean: float) -> Ints:
    # Evenly spaced quantiles, shuffled: the sample's mean is the given one.
    quantiles = (np.arange(_SYNTHETIC_REQUESTS) + 0.5) / _SYNTHETIC_REQUESTS
    values = np.maximum(np.round(-np.log1p(-quantiles) * mean), 1.0)
    rng.shuffle(values)
    return values.astype(np.int64)


@dataclass(frozen=True)
class Trace:
    """Requests of a trace: arrival times in seconds from the first, and lengths."""

    arrivals_s: Floats
    lengths: Lengths


def read_trace(path: Path) -> Trace:
    """Read a trace in the format of Microsoft's Azure LLM inference traces.

    CSV with the columns ``TIMESTAMP``, ``ContextTokens`` and ``GeneratedTokens``; raises
    DocumentError for anything else. Requests without prompt or output tokens are left out.
    """
    try:
        with path.open(encoding="utf-8", newline="") as file:
            rows = list(csv.DictReader(file))
    except (OSError, UnicodeDecodeError, csv.Error) as error:
        raise DocumentError(f"{path}: {getattr(error, 'strerror', None) or error}") from error
    try:
        times = np.array([row["TIMESTAMP"] for row in rows], dtype="datetime64[ns]")
        inputs = np.array([int(row["ContextTokens"]) for row in rows], dtype=np.int64)
        outputs = np.array([int(row["GeneratedTokens"]) for row in rows], dtype=np.int64)
    except (KeyError, TypeError, ValueError) as error:
        raise DocumentError(
            f"{path}: not a trace with TIMESTAMP, ContextTokens and GeneratedTokens: {error}"
        ) from error
    kept = (inputs > 0) & (outputs > 0)
    if not kept.any():
        raise DocumentError(f"{path}: no request in it")
    seconds = (times - times.min()) / np.timedelta64(1, "s")
    order = np.argsort(seconds[kept], kind="stable")
    lengths = Lengths(path.name, inputs[kept][order], outputs[kept][order])
    return Trace(seconds[kept][order], lengths)
