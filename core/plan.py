"""The plan: a lookup table from the server's state to a way of sharing the device.

A state is (decode batch, KV tokens in use, prefill backlog in tokens). It is looked
up at the smallest grid value that is not below it on each axis, and at the last value
beyond the grid, so that a prediction errs on the side of more load.
"""

from bisect import bisect_left
from itertools import pairwise, product
from pathlib import Path
from typing import Annotated, Literal

from pydantic import Field, model_validator
from pydantic.dataclasses import dataclass

from nexus.core.io.documents import (
    STRICT,
    Count,
    Positive,
    Provenance,
    Quantity,
    document_hash,
    read_document,
    write_document,
)
from nexus.core.machine import Engine, Machine, Model, Partitioner
from nexus.core.slo import Bounds

PLAN_SCHEMA = "nexus.plan/1"

LEAST_PROMPT_TOKENS = 16
"""In a fused step, whatever decodes leave."""

Axis = Annotated[tuple[Count, ...], Field(min_length=1)]


@dataclass(frozen=True, config=STRICT)
class Mode:
    """One way to share the device.

    ``fused``: one batch of at most ``chunk`` tokens on all SMs, decodes first, prompts in what
    they leave. Kernels work in tiles of tokens, so it is the whole batch that has to fit.
    ``split``: prefill chunks of ``chunk`` on ``prefill_sms``, decode on ``decode_sms``.
    ``overlap``: prefill confined to ``prefill_sms``, decode on all SMs with priority.
    Under MPS there are no priorities, and the two sides of a ``split`` are caps, which may add
    up to more SMs than there are.
    """

    mode: Literal["fused", "split", "overlap"]
    chunk: Positive
    prefill_sms: Count = 0
    decode_sms: Count = 0

    @model_validator(mode="after")
    def _has_its_sms(self) -> "Mode":
        wants = {"fused": (False, False), "split": (True, True), "overlap": (True, False)}
        if wants[self.mode] != (self.prefill_sms > 0, self.decode_sms > 0):
            raise ValueError(f"{self.mode} and its prefill_sms or decode_sms disagree")
        return self

    def prompt_tokens(self, decode_batch: int) -> int:
        """What prompts may have of a step beside ``decode_batch`` sequences, or of a pass.

        Many decodes leave prompts a little all the same, so that none waits for ever.
        """
        if self.mode == "fused":
            return max(self.chunk - decode_batch, LEAST_PROMPT_TOKENS)
        return self.chunk

    @property
    def name(self) -> str:
        """Such as ``fused-512``, ``split-80-48``, ``overlap-104``."""
        if self.mode == "fused":
            return f"fused-{self.chunk}"
        if self.mode == "overlap":
            return f"overlap-{self.prefill_sms}"
        return f"split-{self.prefill_sms}-{self.decode_sms}"


@dataclass(frozen=True, config=STRICT)
class Axes:
    """The grid: increasing values of each part of the state."""

    decode_batch: Axis
    kv_tokens: Axis
    prefill_backlog: Axis

    @model_validator(mode="after")
    def _increase(self) -> "Axes":
        for name in ("decode_batch", "kv_tokens", "prefill_backlog"):
            values = getattr(self, name)
            if any(a >= b for a, b in pairwise(values)):
                raise ValueError(f"axis {name} does not increase")
        return self

    def states(self) -> list[tuple[int, int, int]]:
        """Every (decode_batch, kv_tokens, prefill_backlog) of the grid, in order."""
        return list(product(self.decode_batch, self.kv_tokens, self.prefill_backlog))


@dataclass(frozen=True, config=STRICT)
class Row:
    """One state, its mode, and what is predicted there.

    ``tbt_ms``: the gap between a decode's tokens while this mode runs (0: no decodes);
    ``prefill_tokens_per_s``: the rate at which the backlog drains (0: no backlog).
    """

    decode_batch: Count
    kv_tokens: Count
    prefill_backlog: Count
    mode: str
    tbt_ms: Quantity = 0.0
    prefill_tokens_per_s: Quantity = 0.0

    @property
    def state(self) -> tuple[int, int, int]:
        """The row's key."""
        return (self.decode_batch, self.kv_tokens, self.prefill_backlog)


@dataclass(frozen=True, config=STRICT)
class Workload:
    """What the plan was made for: mean lengths in tokens, and where they come from.

    ``cached_tokens`` of a prompt, in the mean, need not be computed.
    """

    source: str
    input_tokens: Annotated[float, Field(gt=0)]
    output_tokens: Annotated[float, Field(gt=0)]
    cached_tokens: Annotated[Quantity, Field(exclude_if=lambda tokens: tokens == 0.0)] = 0.0

    @model_validator(mode="after")
    def _computes_something(self) -> "Workload":
        if self.cached_tokens >= self.input_tokens:
            raise ValueError("cached_tokens is not below input_tokens")
        return self


@dataclass(frozen=True, config=STRICT)
class Prediction:
    """What the planner expects of the whole plan; rates in requests per second.

    Capacities are the highest simulated rates at which 90 % of the requests meet both
    bounds: of the plan, of the best stock vLLM (``baseline``), and of the best single mode
    (``best_fixed``). ``limit_per_s`` is the fluid program's bound on any plan of these modes.
    Times are simulated at ``rate_per_s``: the mean TTFT and gap, and their percentiles.
    ``dynamic_capacity_per_s`` is that of the dynamic plan, where the plan is a static share.

    ``baseline`` is ``vllm-`` and its token budget, with ``-queue-`` and its
    ``--max-num-queued-tokens`` if it has one. Where fewer can be on time at any rate,
    ``attainable_share`` of the requests are under a light load, and capacities are rates at which
    90 % of those are. ``too_long_share`` of the prompts are late alone on an idle server, those
    of more than ``longest_prompt_tokens``.
    """

    capacity_per_s: Quantity
    baseline: str
    baseline_capacity_per_s: Quantity
    ttft_ms: Quantity
    tbt_ms: Quantity
    binding: str
    best_fixed: str = ""
    best_fixed_capacity_per_s: Quantity = 0.0
    limit_per_s: Quantity = 0.0
    rate_per_s: Quantity = 0.0
    ttft_p95_ms: Quantity = 0.0
    tbt_p95_ms: Quantity = 0.0
    tbt_p99_ms: Annotated[Quantity, Field(exclude_if=lambda ms: ms == 0.0)] = 0.0
    dynamic_capacity_per_s: Annotated[Quantity, Field(exclude_if=lambda rate: rate == 0.0)] = 0.0
    attainable_share: Annotated[float, Field(ge=0, le=1, exclude_if=lambda share: share == 1)] = 1.0
    too_long_share: Annotated[float, Field(ge=0, le=1, exclude_if=lambda share: share == 0)] = 0.0
    longest_prompt_tokens: Annotated[Count, Field(exclude_if=lambda tokens: tokens == 0)] = 0


Percent = Annotated[int, Field(ge=1, le=100)]


@dataclass(frozen=True, config=STRICT)
class Shares:
    """What each of two engines gets for good, where MPS shares the device.

    Percentages are of the SMs, as ``CUDA_MPS_ACTIVE_THREAD_PERCENTAGE`` takes them;
    ``_kv_tokens`` are the sizes of the KV caches in tokens.
    """

    prefill_percent: Percent
    decode_percent: Percent
    prefill_kv_tokens: Positive
    decode_kv_tokens: Positive


def percent_for(sms: int, total: int) -> int:
    """The smallest whole percentage of ``total`` SMs that gives at least ``sms``."""
    return -(-100 * sms // total)


@dataclass(frozen=True, config=STRICT)
class Plan:
    """A complete, self-consistent lookup table with its provenance and predictions.

    Under ``mps`` it has one mode, which every row names, and the ``shares`` that make it.
    """

    provenance: Provenance
    profile_hash: str
    machine: Machine
    model: Model
    engine: Engine
    bounds: Bounds
    workload: Workload
    policy: Literal["nexus", "nexus-paper", "fixed"]
    prediction: Prediction
    axes: Axes
    modes: Annotated[dict[str, Mode], Field(min_length=1)]
    rows: tuple[Row, ...]
    partitioner: Partitioner = "green"
    shares: Shares | None = None

    @model_validator(mode="after")
    def _is_whole(self) -> "Plan":
        for name, mode in self.modes.items():
            if name != mode.name:
                raise ValueError(f"mode {name!r} should be called {mode.name!r}")
            if max(mode.prefill_sms, mode.decode_sms) > self.machine.sms or (
                self.partitioner == "green"
                and mode.prefill_sms + mode.decode_sms > self.machine.sms
            ):
                raise ValueError(f"mode {name!r} wants more than {self.machine.sms} SMs")
        known, axes = {row.state for row in self.rows}, self.axes
        # One by one: short axes are enough for more states than fit in memory.
        grid = product(axes.decode_batch, axes.kv_tokens, axes.prefill_backlog)
        missing = next((state for state in grid if state not in known), None)
        if missing is not None:
            raise ValueError(f"the table does not cover its axes: no row for state {missing}")
        if len(self.rows) != len(axes.states()):
            raise ValueError("the table does not cover its axes: doubled or stray rows")
        for row in self.rows:
            if row.mode not in self.modes:
                raise ValueError(f"row {row.state} names an unknown mode {row.mode!r}")
        return self

    @property
    def batches(self) -> tuple[int, ...]:
        """Tokens of the fused modes' batches, the smallest first; there may be none."""
        return tuple(sorted(m.chunk for m in self.modes.values() if m.mode == "fused"))

    @property
    def beside_lane(self) -> Mode:
        """How a step is batched while prompts are on the lane: the smallest batch there is."""
        largest = max(mode.chunk for mode in self.modes.values())
        return Mode(mode="fused", chunk=min(self.batches, default=largest))

    @model_validator(mode="after")
    def _is_static_under_mps(self) -> "Plan":
        if (self.partitioner == "mps") != (self.shares is not None):
            raise ValueError(f"partitioner {self.partitioner} and its shares disagree")
        if self.shares is None:
            return self
        if [mode.mode for mode in self.modes.values()] not in (["split"], ["overlap"]):
            raise ValueError("a plan for MPS has one mode, a split or an overlap")
        (mode,) = self.modes.values()
        sms, total = (mode.prefill_sms, mode.decode_sms or self.machine.sms), self.machine.sms
        percents = (self.shares.prefill_percent, self.shares.decode_percent)
        if percents != tuple(percent_for(count, total) for count in sms):
            raise ValueError(f"mode {mode.name!r} and its shares disagree")
        return self

    @property
    def hash(self) -> str:
        """Identifies the plan's content."""
        return document_hash(self, PLAN_SCHEMA)


class Table:
    """A plan indexed for lookups: a few comparisons a step, no allocation to speak of."""

    def __init__(self, plan: Plan) -> None:
        """Index ``plan``'s rows; the plan is already validated."""
        self.axes = plan.axes
        self.modes = plan.modes
        self._rows = {row.state: row for row in plan.rows}

    def row(self, decode_batch: int, kv_tokens: int, prefill_backlog: int) -> Row:
        """The row of a state, rounded up to the grid and clamped at its end."""
        axes = self.axes
        key = (
            _at_or_above(axes.decode_batch, decode_batch),
            _at_or_above(axes.kv_tokens, kv_tokens),
            _at_or_above(axes.prefill_backlog, prefill_backlog),
        )
        return self._rows[key]


def _at_or_above(axis: tuple[int, ...], value: int) -> int:
    return axis[min(bisect_left(axis, value), len(axis) - 1)]


def read_plan(path: Path) -> Plan:
    """Read a ``nexus.plan/1`` document; raises DocumentError."""
    return read_document(path, Plan, PLAN_SCHEMA)


def write_plan(path: Path, plan: Plan) -> None:
    """Write ``plan`` atomically; raises DocumentError."""
    write_document(path, plan, PLAN_SCHEMA)
