"""What each mode gives in each state: time between tokens, and both phases' rates."""

from dataclasses import dataclass

import numpy as np

from nexus.planner.fit import Bools, Floats, Ints
from nexus.planner.latency import LatencyModel, Shape
from nexus.planner.table import Mode
from nexus.profiles.schema import Profile, held_in

SMALLEST_CHUNK = 16  # below it a step holds hardly any work, and every prompt takes many


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

    ``tbt_ms`` is 0 where nothing decodes; rates are tokens per second; ``clamped`` says
    where the state lies outside of what was measured.
    """

    tbt_ms: Floats
    prefill_ms: Floats
    prefill_per_s: Floats
    decode_per_s: Floats
    clamped: Bools


def fused_modes(profile: Profile) -> list[Mode]:
    """One mode for each chunk that was measured and that the engine can run."""
    most = profile.engine.max_num_batched_tokens
    chunks = {
        min(sample.chunk, most)
        for sample in held_in(profile.samples)
        if sample.mode in ("fused", "prefill")
        and sample.prefill_sms == profile.machine.sms
        and SMALLEST_CHUNK <= sample.chunk <= most
    }
    return [Mode(mode="fused", chunk=chunk) for chunk in sorted(chunks)]


def evaluate(
    model: LatencyModel, modes: list[Mode], states: States, prompt_position: float, max_tokens: int
) -> Outcomes:
    """Judge every mode in every state.

    ``prompt_position`` is the mean number of tokens before a prompt token in its prompt;
    ``max_tokens`` is the engine's limit of one batch.
    """
    rows = [_evaluate_one(model, mode, states, prompt_position, max_tokens) for mode in modes]
    return Outcomes(*(np.stack(parts) for parts in zip(*rows, strict=True)))


def _evaluate_one(
    model: LatencyModel, mode: Mode, states: States, prompt_position: float, max_tokens: int
) -> tuple[Floats, Floats, Floats, Floats, Bools]:
    batch, backlog = states.decode_batch, states.prefill_backlog
    chunk = np.minimum(mode.chunk, backlog)
    chunk = np.where(backlog > 0, np.clip(chunk, 1.0, np.maximum(max_tokens - batch, 1.0)), 0.0)
    shape = Shape.of(chunk, prompt_position - chunk / 2, batch, states.decode_context)
    ms, clamped = model.fused_step(shape)
    decodes, prefills = batch > 0, chunk > 0
    seconds = np.maximum(ms, 1e-6) / 1e3
    return (
        np.where(decodes, ms, 0.0),
        np.where(prefills, ms, 0.0),
        chunk / seconds,
        batch / seconds,
        clamped > 0,
    )


def pareto(tbt_ms: Floats, prefill_per_s: Floats) -> Ints:
    """Indices of the modes that no other beats on both, by rising TBT; inputs (modes,)."""
    order = np.lexsort((-prefill_per_s, tbt_ms))
    best = np.maximum.accumulate(np.concatenate([[-1.0], prefill_per_s[order][:-1]]))
    return np.asarray(order[prefill_per_s[order] > best])
