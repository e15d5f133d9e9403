"""The highest request rate that the device can sustain with TBT met, and its prices.

A fluid linear program. The server is described by how many sequences decode (its
*level*). In each level it divides its time between modes. A mode moves requests up a level as
fast as it completes prompts, and down as fast as it completes outputs; in the long run
the traffic between neighbouring levels balances. The program maximises the traffic.

Its dual prices are what a further sequence in decode is worth in each level, in requests:
low when few decode (then prompt tokens are worth most), high when many do (then decode
tokens are). They weigh the choice of each state's mode.
"""

from dataclasses import dataclass

import cvxpy as cp
import numpy as np
from scipy import sparse

from nexus.core.arrays import Bools, Floats, Ints
from nexus.core.errors import NexusError
from nexus.core.machine import Engine
from nexus.core.plan import Mode
from nexus.planner.latency.frontier import Outcomes, States, evaluate
from nexus.planner.latency.model import LatencyModel
from nexus.planner.workload.requests import Lengths

_DENSE_LEVELS = 32
_LEVEL_STEP = 1.12
_ENDLESS_BACKLOG = 1e9


@dataclass(frozen=True)
class Traffic:
    """Every level's choices, as arrays of shape (modes + 1, levels).

    The last row is decode alone. ``up`` and ``down`` are requests per second that start
    and finish their output; ``allowed`` says where a mode meets the bounds.
    """

    levels: Floats
    up: Floats
    down: Floats
    tbt_ms: Floats
    allowed: Bools


@dataclass(frozen=True)
class Capacity:
    """``per_s`` requests per second, and what a token is worth in each level.

    ``level_share`` (levels,) is the share of time in each level, ``tbt_ms`` the mean gap
    between tokens; prices (levels,) are requests per token.
    """

    per_s: float
    levels: Floats
    level_share: Floats
    tbt_ms: float
    prefill_price: Floats
    decode_price: Floats

    def prices_at(self, level: Floats) -> tuple[Floats, Floats]:
        """The price of a prompt token and of an output token at any number of sequences."""
        return (
            np.interp(level, self.levels, self.prefill_price),
            np.interp(level, self.levels, self.decode_price),
        )

    @property
    def typical_level(self) -> float:
        """Sequences in decode, on average, when the rate is all that can be sustained."""
        return float(self.levels @ self.level_share)


def most_sequences(engine: Engine, lengths: Lengths) -> int:
    """How many sequences can decode at once: the engine's limit, or the KV cache's."""
    return max(1, min(engine.max_num_seqs, int(engine.kv_tokens / lengths.decode_context)))


def levels_of(engine: Engine, lengths: Lengths) -> Floats:
    """From 0 to the most sequences, each at first, then 12 % apart."""
    most = most_sequences(engine, lengths)
    levels = [float(level) for level in range(min(most, _DENSE_LEVELS) + 1)]
    while levels[-1] < most:
        levels.append(min(float(most), np.floor(levels[-1] * _LEVEL_STEP)))
    return np.array(levels)


def traffic_of(
    model: LatencyModel,
    modes: list[Mode],
    engine: Engine,
    lengths: Lengths,
    ttft_ms: float,
    tbt_ms: float,
) -> Traffic:
    """What each mode does in each level; a mode must meet TBT and serve a mean prompt in TTFT."""
    levels = levels_of(engine, lengths)
    contexts = np.full_like(levels, lengths.decode_context)
    tokens = engine.max_num_batched_tokens
    busy = States(levels, contexts, np.full_like(levels, _ENDLESS_BACKLOG))
    with_prefill = evaluate(model, modes, busy, lengths, tokens)
    idle = States(levels, contexts, np.zeros_like(levels))
    alone = evaluate(model, modes[:1], idle, lengths, tokens)
    prompt_ms = 1e3 * lengths.prefill_mean / np.maximum(with_prefill.prefill_per_s, 1e-9)
    allowed = (with_prefill.tbt_ms <= tbt_ms) & (prompt_ms <= ttft_ms)
    return Traffic(
        levels=levels,
        up=np.vstack([with_prefill.prefill_per_s, np.zeros_like(levels)]) / lengths.prefill_mean,
        down=_stack(with_prefill, alone) / lengths.decode_steps,
        tbt_ms=np.vstack([with_prefill.tbt_ms, alone.tbt_ms]),
        allowed=np.vstack([allowed, (alone.tbt_ms <= tbt_ms) & (levels > 0)]),
    )


def _stack(with_prefill: Outcomes, alone: Outcomes) -> Floats:
    return np.vstack([with_prefill.decode_per_s, alone.decode_per_s])


def solve_capacity(traffic: Traffic, prompt_tokens: float, decode_steps: float) -> Capacity:
    """Solve the program for requests with so many ``prompt_tokens`` to compute; ``per_s`` is 0 when not even one sequence can be served.

    Raises NexusError when the solver fails, which a bounded program with a feasible
    point (doing nothing) never should.
    """
    levels = traffic.levels
    use = traffic.allowed.copy()
    use[:, 1:] &= np.cumprod(use.any(axis=0))[1:].astype(bool)  # above a gap no level is reached
    top = int(np.nonzero(use.any(axis=0))[0].max(initial=0))
    mode_index, level_index = np.nonzero(use)
    up = traffic.up[mode_index, level_index]
    down = traffic.down[mode_index, level_index]
    up = np.where(level_index == top, 0.0, up)  # a full server admits nobody
    if top == 0:
        nothing = np.zeros_like(levels)
        return Capacity(0.0, levels, nothing, 0.0, nothing + 1.0 / prompt_tokens, nothing)
    shares = _solve_program(up, down, level_index, top)
    per_s = float(up @ shares)
    per_level = np.bincount(level_index, shares, len(levels)).astype(np.float64)
    tokens = traffic.down[mode_index, level_index] * shares
    tbt = float(tokens @ traffic.tbt_ms[mode_index, level_index] / max(tokens.sum(), 1e-12))
    worth = _worth_of_a_sequence(traffic, use, top, per_s, per_level)
    return Capacity(
        per_s=per_s,
        levels=levels,
        level_share=per_level,
        tbt_ms=tbt,
        prefill_price=(1.0 - worth[1:]) / prompt_tokens,
        decode_price=worth[:-1] / decode_steps,
    )


def _solve_program(up: Floats, down: Floats, level: Ints, top: int) -> Floats:
    """The share of time in each choice, of which each has its ``level``, from 0 to ``top``."""
    # In units of each choice's own traffic, so that the solver sees numbers around 1.
    unit = 1.0 / np.maximum(up, down)
    columns = np.arange(len(up))
    rises, falls = level < top, level > 0
    flows = np.concatenate([(up * unit)[rises], -(down * unit)[falls]])
    boundary = np.concatenate([level[rises], level[falls] - 1])
    choice = np.concatenate([columns[rises], columns[falls]])
    balance = sparse.csr_matrix((flows, (boundary, choice)), shape=(top, len(up)))
    traffic = cp.Variable(len(up), nonneg=True)
    problem = cp.Problem(
        cp.Maximize((up * unit) @ traffic), [balance @ traffic == 0, unit @ traffic == 1]
    )
    for solver in (cp.HIGHS, cp.CLARABEL):
        try:
            problem.solve(solver=solver)
        except cp.error.SolverError:
            continue
        if problem.status == cp.OPTIMAL and traffic.value is not None:
            return np.asarray(np.maximum(traffic.value, 0.0) * unit)
    raise NexusError(f"the capacity program ended as {problem.status}")


def _worth_of_a_sequence(
    traffic: Traffic,
    use: Bools,
    top: int,
    per_s: float,
    per_level: Floats,
) -> Floats:
    """What removing one decoding sequence from each level gains, in requests, from 0 to 1.

    Entry i + 1 belongs to the boundary above level i. These are the program's dual prices; where
    no time is spent they are not unique in the program, so the best choice's equation
    ``up * (1 - worth above) + down * worth below = capacity`` is solved level by level, from
    both ends towards the busiest level.
    """
    size = len(traffic.levels)
    worth = np.ones(size + 1)
    worth[0] = 0.0
    busiest = int(np.argmax(per_level))
    for level in range(busiest):
        up, down = traffic.up[use[:, level], level], traffic.down[use[:, level], level]
        rising = up > 0
        left = (per_s - worth[level] * down[rising]) / up[rising]
        worth[level + 1] = 1.0 - np.clip(left.min(initial=1.0), 0.0, 1.0)
    for level in range(top, busiest, -1):
        up, down = traffic.up[use[:, level], level], traffic.down[use[:, level], level]
        above = 1.0 - worth[level + 1] if level < top else 0.0
        worth[level] = np.clip(((per_s - up * above) / down).min(initial=1.0), 0.0, 1.0)
    return worth
