"""The device, model and engine that a profile or plan is for."""

from typing import Annotated, Literal

from pydantic import Field
from pydantic.dataclasses import dataclass

from nexus.core.io.documents import STRICT, Positive

PARALLEL_SIZES = (
    "tensor_parallel_size",
    "pipeline_parallel_size",
    "decode_context_parallel_size",
    "prefill_context_parallel_size",
)

# Who confines a phase to its SMs: green contexts inside one engine (on a CPU: its own cores), or
# MPS, where each phase is an engine of its own. Documents leave the first, usual one, out.
PartitionerName = Literal["green", "mps"]
Partitioner = Annotated[PartitionerName, Field(exclude_if=lambda name: name == "green")]


@dataclass(frozen=True, config=STRICT)
class Machine:
    """The device that was measured; ``sms`` is all it has (cores on a CPU)."""

    device: Literal["cpu", "cuda"]
    name: str
    sms: Positive
    driver: str | None = None
    cuda: str | None = None


@dataclass(frozen=True, config=STRICT)
class Model:
    """The model that was measured; ``config_hash`` is over what of it shapes a step."""

    name: str
    config_hash: str
    dtype: str
    num_layers: Positive
    hidden_size: Positive
    num_heads: Positive
    num_kv_heads: Positive
    head_size: Positive
    max_model_len: Positive


# Over how many devices each step is spread. Documents leave out what is 1.
Parallel = Annotated[Positive, Field(exclude_if=lambda size: size == 1)]


@dataclass(frozen=True, config=STRICT)
class Engine:
    """The limits that vLLM ran with, and its parallel sizes.

    ``kv_tokens`` is the size of its KV cache in tokens, as vLLM says it. Data parallel is not
    among the sizes: each of its engines is one of its own.
    """

    max_num_batched_tokens: Positive
    max_num_seqs: Positive
    block_size: Positive
    kv_tokens: Positive
    enforce_eager: bool = False
    tensor_parallel_size: Parallel = 1
    pipeline_parallel_size: Parallel = 1
    decode_context_parallel_size: Parallel = 1
    prefill_context_parallel_size: Parallel = 1

    @property
    def parallel(self) -> dict[str, int]:
        """The parallel sizes by vLLM's name for each."""
        return {name: getattr(self, name) for name in PARALLEL_SIZES}
