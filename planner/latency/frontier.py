"""What each mode gives in each state: time between tokens, and both phases' rates."""

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise

import numpy as np

from nexus.core.arrays import Bools, Floats, Ints
from nexus.core.plan import LEAST_PROMPT_TOKENS, Mode
from nexus.planner.latency.model import LatencyModel
from nexus.planner.latency.shape import Shape
from nexus.planner.latency.sharing import Partition
from nexus.planner.workload.requests import Lengths
from nexus.profiles.schema import Profile, Sample, training_samples

_NEARLY_AS_FAST = 0.97
_BETWEEN = (0.25, 0.5, 0.75)  # of the way from a measured batch to the next
_CPU_GRAIN = 32  # tokens
_GPU_GRAIN = 64  # tokens of a matrix product's tile: a few more cost as much as a whole one
_CLOSE = 2  # times as large, at most, is a next batch that others lie between
_FINE_BELOW = 1024
_HARDLY = 1.05  # times as long as another is hardly slower


@dataclass(frozen=True)
class States:
    """States to judge modes in, as arrays of shape (n,); contexts are in tokens."""

    decode_batch: Floats
    decode_context: Floats
    prefill_backlog: Floats

    @classmethod
    def of(cls, states: list[tuple[int, int, int]]) -> "States":
        """From rows of (decode batch, KV tokens, prefill backlog)."""
        batch, kv, backlog = np.array(states, dtype=np.float64).T
        return cls(batch, np.maximum(kv / np.maximum(batch, 1.0), 1.0), backlog)


@dataclass(frozen=True)
class Outcomes:
    """What modes give in states; every array has shape (modes, states).

    ``tbt_ms`` is 0 where nothing decodes; rates are tokens per second; ``outside`` says
    where the state lies outside of what was measured.
    """

    tbt_ms: Floats
    prefill_ms: Floats
    prefill_per_s: Floats
    decode_per_s: Floats
    outside: Bools


def fused_modes(profile: Profile) -> list[Mode]:
    """One mode for each batch that was measured and that the engine can run, and some between.

    A step's time between two measured ones is known from both: how many tokens just fit under
    a bound is worth more than to have run that very batch. A batch than which a larger one was
    hardly slower is left out.
    """
    most = profile.engine.max_num_batched_tokens
    steps = [
        sample
        for sample in training_samples(profile.samples)
        if sample.mode in ("fused", "prefill") and sample.prefill_sms == profile.machine.sms
    ]
    sizes = {min(sample.chunk + sample.decode_batch, most) for sample in steps}
    left_out = _hardly_faster(steps)
    sizes -= left_out
    grain = _CPU_GRAIN if profile.machine.device == "cpu" else _GPU_GRAIN
    between = {
        round((low + (high - low) * part) / grain) * grain
        for low, high in pairwise(sorted(sizes))
        for part in _BETWEEN
        if low * _CLOSE >= high and high - low > grain and high <= _FINE_BELOW
    }
    wanted = sorted(
        size for size in sizes | (between - left_out) if LEAST_PROMPT_TOKENS <= size <= most
    )
    return [Mode(mode="fused", chunk=size) for size in wanted]


def _hardly_faster(steps: Sequence[Sample]) -> set[int]:
    """Tokens of batches that take about as long as a larger one beside the same decodes."""
    beside: dict[tuple[int, int, int], dict[int, float]] = {}
    for step in steps:
        load = (step.decode_batch, step.decode_context, step.prefill_context)
        if step.mode == "fused" and step.prefill_ms:
            beside.setdefault(load, {})[step.chunk + step.decode_batch] = step.prefill_ms
    finest = max(beside.values(), key=len, default={})
    return {
        size
        for size, ms in finest.items()
        if any(other > size and more <= _HARDLY * ms for other, more in finest.items())
    }


def shared_modes(profile: Profile, model: LatencyModel, decode_batch: float) -> list[Mode]:
    """One mode for each measured partition, with its best chunk beside ``decode_batch``.

    Of the chunks that were measured in it, the fastest; one that is nearly as fast and
    shorter is better, as a prompt's turn comes sooner.
    """
    modes = []
    for partition in model.partitions:
        kind, prefill_sms, decode_sms = partition
        sampled = [
            sample
            for sample in training_samples(profile.samples)
            if (sample.mode, sample.prefill_sms, sample.decode_sms) == partition
        ]
        chunks = sorted({sample.chunk for sample in sampled})
        context = float(np.median([sample.decode_context for sample in sampled]))
        shape = Shape.of(np.array(chunks), 0, decode_batch, context)
        speed = np.array(chunks) / model.together(partition, shape)[0]
        chunk = chunks[int(np.argmax(speed >= _NEARLY_AS_FAST * speed.max()))]
        own = decode_sms if kind == "split" else 0
        modes.append(Mode(mode=kind, chunk=chunk, prefill_sms=prefill_sms, decode_sms=own))
    return modes


def evaluate(
    model: LatencyModel, modes: list[Mode], states: States, lengths: Lengths, max_tokens: int
) -> Outcomes:
    """Judge every mode in every state.

    ``lengths`` say how far into its prompt a chunk is, and how much longer than the mean the
    longest context of a batch is; ``max_tokens`` is the engine's limit of one batch.
    """
    beyond = lengths.longest_beyond_mean(states.decode_batch)
    position = lengths.prompt_position
    rows = [_evaluate_one(model, mode, states, position, beyond, max_tokens) for mode in modes]
    return Outcomes(*(np.stack(parts) for parts in zip(*rows, strict=True)))


def _evaluate_one(
    model: LatencyModel,
    mode: Mode,
    states: States,
    prompt_position: float,
    beyond: Floats,
    max_tokens: int,
) -> tuple[Floats, Floats, Floats, Floats, Bools]:
    batch, backlog = states.decode_batch, states.prefill_backlog
    if mode.mode == "fused":
        left = np.maximum(mode.chunk - batch, LEAST_PROMPT_TOKENS)  # Mode.prompt_tokens of arrays
        limit = np.maximum(max_tokens - batch, 1.0)
        chunk = np.where(backlog > 0, np.clip(np.minimum(left, backlog), 1.0, limit), 0.0)
    else:
        chunk = np.minimum(mode.chunk, backlog)
    shape = Shape.of(chunk, prompt_position - chunk / 2, batch, states.decode_context)
    prefill_ms, decode_ms, outside = mode_times(model, mode, shape, beyond)
    decodes, prefills = batch > 0, chunk > 0
    return (
        np.where(decodes, decode_ms, 0.0),
        np.where(prefills, prefill_ms, 0.0),
        1e3 * chunk / np.maximum(prefill_ms, 1e-6),
        1e3 * batch / np.maximum(decode_ms, 1e-6),
        outside,
    )


def mode_times(
    model: LatencyModel, mode: Mode, shape: Shape, beyond: Floats
) -> tuple[Floats, Floats, Bools]:
    """A prefill and a decode step's ms in ``mode``, and where ``shape`` is outside what was
    measured.

    A decode step with no prefill beside it has the whole device in any mode. ``beyond`` is by
    how many tokens the longest decode's context exceeds the mean.
    """
    partition = partition_in(mode, model.sms)
    fused, outside = model.fused_step(shape)
    serving = model.serving
    decode_more = serving.context_skew_decode_ms * beyond / 1e3
    more = np.where(shape.chunk > 0, serving.context_skew_fused_ms * beyond / 1e3, decode_more)
    if partition is None:
        apart = serving.apart(shape.chunk + shape.decode_batch, shape.prefill_context)
        fused = fused * np.where(shape.chunk > 0, serving.sustained, 1.0)
        fused = fused + np.where(apart, decode_more, more)
        return fused, fused, outside
    both = (shape.chunk > 0) & (shape.decode_batch > 0)
    prefill, decode, shared_outside = model.together(partition, shape)
    alone, alone_outside = model.prefill_curve(partition).predict(shape)
    return (
        np.where(both, prefill, alone) + serving.begin_ms * (shape.chunk > 0),
        np.where(both, decode, fused) + more,
        np.where(both, shared_outside, np.where(shape.chunk > 0, alone_outside, outside)),
    )


def partition_in(mode: Mode, sms: int) -> Partition | None:
    """The SMs that ``mode`` gives each phase; None for one batch on all ``sms``."""
    if mode.mode == "fused":
        return None
    return (mode.mode, mode.prefill_sms, mode.decode_sms or sms)


def pareto(tbt_ms: Floats, prefill_per_s: Floats) -> Ints:
    """Indices of the modes that no other beats on both, by rising TBT; inputs (modes,)."""
    order = np.lexsort((-prefill_per_s, tbt_ms))
    best = np.maximum.accumulate(np.concatenate([[-1.0], prefill_per_s[order][:-1]]))
    return np.asarray(order[prefill_per_s[order] > best])
