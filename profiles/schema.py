"""What a profile is: measured step times of one model on one machine.

On a GPU ``sms`` counts streaming multiprocessors; on a CPU, cores stand in their
place. Units are in the names: ``_ms`` milliseconds, ``_mhz``, ``_w``, ``_c``.
"""

from collections.abc import Sequence
from pathlib import Path
from typing import Annotated, Literal

from pydantic import Field, model_validator
from pydantic.dataclasses import dataclass

from nexus.core.io.documents import (
    STRICT,
    Count,
    Ms,
    Positive,
    Provenance,
    Quantity,
    document_hash,
    read_document,
    write_document,
)
from nexus.core.machine import Engine, Machine, Model, Partitioner

PROFILE_SCHEMA = "nexus.profile/1"

SampleMode = Literal["prefill", "decode", "fused", "split", "overlap"]
KernelClass = Literal["gemm", "attention", "norm_activation", "kv_write", "sampling", "other"]


@dataclass(frozen=True, config=STRICT)
class Sample:
    """One measured point: the time of one step of each phase that it has.

    ``prefill`` and ``decode`` are one phase alone; ``fused`` is both in one batch
    (both times are the step's); ``split`` and ``overlap`` are both at once on
    ``prefill_sms`` and ``decode_sms`` (a decode step's time is then the TBT).
    ``chunk`` is the prompt tokens of a prefill step, ``prefill_context`` the tokens
    before them; ``decode_batch`` sequences hold ``decode_context`` tokens each. Times
    are medians over ``repeats`` steps; a point that failed has ``error`` and no times. A step of
    several ranks takes as long as the slowest says; ``rank_spread_ms`` is by how much the fastest
    differs.
    """

    mode: SampleMode
    prefill_sms: Count
    decode_sms: Count
    chunk: Count = 0
    prefill_context: Count = 0
    decode_batch: Count = 0
    decode_context: Count = 0
    prefill_ms: Ms | None = None
    prefill_p95_ms: Ms | None = None
    decode_ms: Ms | None = None
    decode_p95_ms: Ms | None = None
    repeats: Count = 0
    held_out: bool = False
    rank_spread_ms: Quantity | None = None
    sm_mhz: Quantity | None = None
    power_w: Quantity | None = None
    temperature_c: Quantity | None = None
    error: str | None = None

    @model_validator(mode="after")
    def _has_its_phases(self) -> "Sample":
        prefill, decode = self.mode != "decode", self.mode != "prefill"
        if prefill != (self.chunk > 0) or prefill != (self.prefill_sms > 0):
            raise ValueError(f"a {self.mode} sample and its chunk or prefill_sms disagree")
        if decode != (self.decode_batch > 0) or decode != (self.decode_sms > 0):
            raise ValueError(f"a {self.mode} sample and its decode_batch or decode_sms disagree")
        if self.error is None:
            if prefill != (self.prefill_ms is not None):
                raise ValueError(f"a {self.mode} sample and its prefill_ms disagree")
            if decode != (self.decode_ms is not None):
                raise ValueError(f"a {self.mode} sample and its decode_ms disagree")
        return self

    @property
    def key(self) -> tuple[str, int, int, int, int, int, int]:
        """What identifies the point, whatever was measured there."""
        return (
            self.mode,
            self.prefill_sms,
            self.decode_sms,
            self.chunk,
            self.prefill_context,
            self.decode_batch,
            self.decode_context,
        )


@dataclass(frozen=True, config=STRICT)
class KernelSample:
    """Total device time of one kernel class in one solo step on ``sms`` SMs."""

    phase: Literal["prefill", "decode"]
    sms: Positive
    chunk: Count
    context: Count
    batch: Count
    kernel_class: KernelClass
    count: Positive
    ms: Ms


@dataclass(frozen=True, config=STRICT)
class Profile:
    """One model's measured step times on one machine.

    ``stock`` are fused steps with stock vLLM's CUDA graphs and attention, where Nexus has its own.
    Under ``mps`` each phase ran in a process of its own, whose percentage of threads gave it the
    SMs of each sample. A percentage is a cap: two that add up to more than the machine has
    share what is over.
    """

    provenance: Provenance
    machine: Machine
    model: Model
    engine: Engine
    samples: tuple[Sample, ...]
    kernels: tuple[KernelSample, ...] = ()
    stock: Annotated[tuple[Sample, ...], Field(exclude_if=lambda found: not found)] = ()
    partitioner: Partitioner = "green"

    @model_validator(mode="after")
    def _fits_its_machine(self) -> "Profile":
        most = self.machine.sms
        for sample in self.samples:
            if max(sample.prefill_sms, sample.decode_sms) > most:
                raise ValueError(f"a sample uses more than the machine's {most} SMs")
        return self

    @property
    def measured(self) -> tuple[Sample, ...]:
        """The samples that succeeded."""
        return tuple(sample for sample in self.samples if sample.error is None)

    @property
    def hash(self) -> str:
        """Identifies the profile's content."""
        return document_hash(self, PROFILE_SCHEMA)


def read_profile(path: Path) -> Profile:
    """Read a ``nexus.profile/1`` document; raises DocumentError."""
    return read_document(path, Profile, PROFILE_SCHEMA)


def write_profile(path: Path, profile: Profile) -> None:
    """Write ``profile`` atomically; raises DocumentError."""
    write_document(path, profile, PROFILE_SCHEMA)


def training_samples(samples: Sequence[Sample]) -> list[Sample]:
    """The samples that a model may be fitted to."""
    return [sample for sample in samples if sample.error is None and not sample.held_out]
