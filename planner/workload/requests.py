"""What is asked of the server: requests and their lengths, given or drawn from means."""

from dataclasses import dataclass, replace
from functools import cached_property

import numpy as np

from nexus.core.arrays import Floats, Ints
from nexus.core.plan import Workload
from nexus.planner.workload.prefixes import Prefixes
from nexus.profiles.schema import Profile

_SYNTHETIC_REQUESTS = 4096
_SEED = 0
_OUTPUT_PARTS = 4  # of an output, in which its context is seen
_CONTEXT_PARTS = 512
_MOST_SEEN = 1 << 17  # requests whose contexts are looked at, of a trace of millions
_AT_ONCE_S = 1e-6


@dataclass(frozen=True)
class Lengths:
    """Prompt and output lengths of requests, in tokens, both of shape (n,), all >= 1.

    ``hits`` (n,) are the prompt tokens that the prefix cache has, fewer than ``inputs``; None
    where it has none.
    """

    source: str
    inputs: Ints
    outputs: Ints
    hits: Ints | None = None

    @property
    def cached(self) -> Ints:
        """Prompt tokens that need not be computed, of shape (n,)."""
        return np.zeros_like(self.inputs) if self.hits is None else self.hits

    @property
    def input_mean(self) -> float:
        """Mean prompt tokens of a request."""
        return float(self.inputs.mean())

    @property
    def cached_mean(self) -> float:
        """Mean prompt tokens of a request that need not be computed."""
        return float(self.cached.mean())

    @property
    def prefill_mean(self) -> float:
        """Mean prompt tokens of a request that are to be computed."""
        return float((self.inputs - self.cached).mean())

    @property
    def output_mean(self) -> float:
        """Mean output tokens of a request."""
        return float(self.outputs.mean())

    @property
    def decodes(self) -> bool:
        """Whether any request has a second token, and so a gap between tokens."""
        return bool(self.outputs.max() > 1)

    @property
    def decode_steps(self) -> float:
        """Mean decode steps of a request: the prefill step gives its first token."""
        return max(self.output_mean - 1.0, 1e-3)

    @property
    def prompt_position(self) -> float:
        """Prompt tokens before a prompt token, on average over those that are computed."""
        inputs, cached = self.inputs.astype(np.float64), self.cached.astype(np.float64)
        return float((inputs**2 - cached**2).sum() / (2.0 * (inputs - cached).sum()))

    @property
    def decode_context(self) -> float:
        """KV tokens that a decoding sequence holds, on average over all decode steps."""
        steps = np.maximum(self.outputs - 1, 0).astype(np.float64)
        if steps.sum() == 0:
            return self.input_mean
        return float((steps * (self.inputs + 1 + steps / 2)).sum() / steps.sum())

    @cached_property
    def _contexts(self) -> Floats:
        """KV tokens of a decode at any time: evenly spaced quantiles, of shape (parts,)."""
        every = -(-len(self.inputs) // _MOST_SEEN)
        inputs, outputs = self.inputs[::every], self.outputs[::every]
        steps = np.maximum(outputs - 1, 0).astype(np.float64)
        into = (np.arange(_OUTPUT_PARTS) + 0.5) / _OUTPUT_PARTS
        contexts = (inputs[:, None] + into * steps[:, None]).ravel()
        order = np.argsort(contexts)
        below = np.cumsum(np.repeat(steps, _OUTPUT_PARTS)[order])
        wanted = (np.arange(_CONTEXT_PARTS) + 0.5) / _CONTEXT_PARTS * below[-1]
        return np.asarray(contexts[order][np.searchsorted(below, wanted)])

    def longest_beyond_mean(self, batch: Floats) -> Floats:
        """By how many tokens the longest context of so many decodes exceeds the mean one.

        The expectation over decodes drawn at any time from these requests, each as often as it
        has decode steps; ``batch`` is of any shape, and of a batch of 0 or 1 it is 0.
        """
        sizes, which = np.unique(np.maximum(batch, 1.0), return_inverse=True)
        contexts = self._contexts
        below = np.arange(1, _CONTEXT_PARTS + 1) / _CONTEXT_PARTS
        up_to = below ** sizes[:, None]  # the longest is no longer than
        longest = np.diff(up_to, prepend=0.0, axis=-1) @ contexts
        return np.asarray((longest - contexts.mean())[which].reshape(np.shape(batch)))

    def summary(self) -> Workload:
        """As a plan states it."""
        return Workload(
            source=self.source,
            input_tokens=self.input_mean,
            output_tokens=self.output_mean,
            cached_tokens=self.cached_mean,
        )

    def told_of_cut(self, max_model_len: int) -> str:
        """Which requests ``cut_to`` cuts, in one line; empty if none."""
        many, count = int((self.inputs > max_model_len - self.outputs).sum()), len(self.inputs)
        if not many:
            return ""
        return (
            f"{100 * many / count:.3g}% of the requests ({many:,} of {count:,}) are longer than the "
            f"{max_model_len:,} tokens that the model or its KV cache holds: cut here, refused by "
            "a server"
        )

    def cut_to(self, max_model_len: int) -> "Lengths":
        """Without what a model of that length cannot serve: prompts and outputs are cut."""
        inputs = np.minimum(self.inputs, max_model_len - 1)
        outputs = np.minimum(self.outputs, max_model_len - inputs)
        hits = None if self.hits is None else np.minimum(self.hits, inputs - 1)
        return Lengths(self.source, inputs, outputs, hits)

    def take(self, index: slice | Ints) -> "Lengths":
        """Only the requests at ``index``, in that order."""
        hits = None if self.hits is None else self.hits[index]
        return Lengths(self.source, self.inputs[index], self.outputs[index], hits)


def longest_request(profile: Profile) -> int:
    """Prompt and output tokens of the longest request that the profiled server can hold."""
    engine = profile.engine
    kv_tokens = engine.kv_tokens - engine.block_size  # the last block may be part empty
    return min(profile.model.max_model_len, kv_tokens)


def lengths_of(workload: "Workload | Lengths | Requests") -> Lengths:
    """The lengths of ``workload``, drawn from its means where it has no more.

    Of a mean alone nothing else is known, so lengths are geometric (of whole numbers from 1 on
    the distribution that assumes least); the same means always give the same lengths.
    """
    if isinstance(workload, Lengths):
        return workload
    if isinstance(workload, Requests):
        return workload.lengths
    rng = np.random.default_rng(_SEED)
    inputs = _geometric(rng, workload.input_tokens)
    outputs = _geometric(rng, workload.output_tokens)
    share = workload.cached_tokens / workload.input_tokens
    hits = np.minimum(np.round(inputs * share).astype(np.int64), inputs - 1) if share else None
    return Lengths(workload.source, inputs, outputs, hits)


def _geometric(rng: np.random.Generator, mean: float) -> Ints:
    # Evenly spaced quantiles, shuffled: the sample's mean is the given one.
    quantiles = (np.arange(_SYNTHETIC_REQUESTS) + 0.5) / _SYNTHETIC_REQUESTS
    ends_here = min(1.0 / mean, 1.0 - 1e-9)
    values = np.ceil(np.log1p(-quantiles) / np.log1p(-ends_here))
    rng.shuffle(values)
    return np.asarray(values.astype(np.int64))


@dataclass(frozen=True)
class Requests:
    """What arrives: times in seconds and lengths in tokens, each of shape (n,), by time.

    With ``prefixes`` the prefix cache decides what need not be computed, else ``lengths`` do.
    """

    arrivals_s: Floats
    lengths: Lengths
    prefixes: Prefixes | None = None

    def at_rate(self, per_s: float) -> "Requests":
        """The same requests in the same order, arriving at another mean rate."""
        scale = self.per_s / per_s if self.per_s else 1.0
        return replace(self, arrivals_s=(self.arrivals_s - self.arrivals_s[0]) * scale)

    @property
    def per_s(self) -> float:
        """Their mean rate, in requests per second; 0 if they come at once."""
        span = float(self.arrivals_s[-1] - self.arrivals_s[0])
        return (len(self.arrivals_s) - 1) / span if span > _AT_ONCE_S else 0.0

    def window(self, start: int, count: int) -> "Requests":
        """Only ``count`` of them, or as many as there are, from the one at ``start`` on."""
        return self.take(slice(start, start + count), self.arrivals_s[start : start + count])

    def take(self, index: slice | Ints, arrivals_s: Floats) -> "Requests":
        """Only the requests at ``index``, in that order, arriving at those times."""
        prefixes = None if self.prefixes is None else self.prefixes.take(index)
        return Requests(arrivals_s, self.lengths.take(index), prefixes)


def poisson(lengths: Lengths, count: int, seed: int = 0) -> Requests:
    """``count`` requests drawn from ``lengths``, at random times around one a second.

    Lengths are evenly spread over the sorted prompts, so that their mean is the workload's
    however few are drawn.
    """
    rng = np.random.default_rng(seed)
    order = np.argsort(lengths.inputs, kind="stable")
    size = len(order)
    offset = rng.random()
    drawn = order[((np.arange(count) + offset) * size / count).astype(int) % size]
    rng.shuffle(drawn)
    times = np.cumsum(rng.exponential(1.0, count))
    return Requests(times, lengths.take(drawn))
