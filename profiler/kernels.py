"""Kernel times by class, from CUPTI's activity records.

Recording needs a GPU and the package ``cupti-python``; sorting and adding up records
needs neither. Records come from every kernel: launched eagerly, inside a replayed CUDA
graph, in a green context.
"""

import re
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, Literal

from nexus.core.errors import EngineError
from nexus.profiles.schema import KernelClass, KernelSample

_BUFFER_BYTES = 8 << 20

# The first class whose pattern is found in a kernel's name is the kernel's.
_CLASSES: dict[KernelClass, str] = {
    "kv_write": r"reshape_and_cache|concat_and_cache|cache_kernel",
    "attention": r"flash|fmha|attention|prepare_varlen|paged_|prefillwith|decodewith|merge_attn",
    "sampling": r"sampl|argmax|gumbel|top_?k|top_?p|temperature|penalt|bincount|min_p|softmax",
    "gemm": r"gemm|gemv|nvjet|cutlass|xmma|splitk|matmul|cublas|wgmma|marlin",
    "norm_activation": (
        r"norm|silu|gelu|swiglu|act_and_mul|rotary|rope|triton_(poi|red|per)_fused|embedding"
    ),
}


@dataclass(frozen=True)
class KernelRecord:
    """One executed kernel; times in nanoseconds of the GPU's clock."""

    name: str
    start_ns: int
    end_ns: int
    stream: int = 0
    context: int = 0

    @property
    def ms(self) -> float:
        """How long it ran."""
        return (self.end_ns - self.start_ns) / 1e6


def kernel_class(name: str) -> KernelClass:
    """The class of a kernel by its (mangled or plain) name."""
    for found, pattern in _CLASSES.items():
        if re.search(pattern, name, re.IGNORECASE):
            return found
    return "other"


def kernel_samples(
    records: Iterable[KernelRecord],
    phase: Literal["prefill", "decode"],
    sms: int,
    steps: int,
    chunk: int = 0,
    context: int = 0,
    batch: int = 0,
) -> list[KernelSample]:
    """``records`` of ``steps`` equal steps as one sample per class: a step's mean."""
    assert steps > 0
    times: dict[KernelClass, list[float]] = {}
    for record in records:
        times.setdefault(kernel_class(record.name), []).append(record.ms)
    return [
        KernelSample(
            phase=phase,
            sms=sms,
            chunk=chunk,
            context=context,
            batch=batch,
            kernel_class=each,
            count=max(1, round(len(values) / steps)),
            ms=round(sum(values) / steps, 5),
        )
        for each, values in sorted(times.items())
        if sum(values) > 0
    ]


def busy(records: Iterable[KernelRecord]) -> list[tuple[int, int]]:
    """When any of ``records`` ran: disjoint intervals, in order."""
    merged: list[tuple[int, int]] = []
    for start, end in sorted((record.start_ns, record.end_ns) for record in records):
        if merged and start <= merged[-1][1]:
            merged[-1] = (merged[-1][0], max(end, merged[-1][1]))
        else:
            merged.append((start, end))
    return merged


class KernelRecorder:
    """Records kernels through CUPTI; one per process, because CUPTI has one client."""

    def __init__(self, buffer_bytes: int = _BUFFER_BYTES) -> None:
        """A full buffer is read at once, while the program waits; a large one, later.

        Raises EngineError where cupti-python is missing.
        """
        try:
            from cupti import cupti
        except ImportError as error:
            raise EngineError("kernel times need the package cupti-python") from error
        self._cupti = cupti
        self._records: list[KernelRecord] = []
        cupti.activity_register_callbacks(lambda: (buffer_bytes, 0), self._take)

    @contextmanager
    def recording(self, wait: Callable[[], None]) -> Iterator[list[KernelRecord]]:
        """Kernels that run inside the block; the list is filled when the block ends.

        ``wait`` returns once the kernels are over. Outside the block nothing is recorded,
        and nothing slows down.
        """
        kind = self._cupti.ActivityKind.CONCURRENT_KERNEL
        records: list[KernelRecord] = []
        self._records = records
        self._cupti.activity_enable(kind)
        try:
            yield records
            wait()
        finally:
            self._cupti.activity_flush_all(1)
            self._cupti.activity_disable(kind)

    def _take(self, activities: list[Any]) -> None:
        wanted = self._cupti.ActivityKind.CONCURRENT_KERNEL
        self._records.extend(
            KernelRecord(
                str(activity.name),
                int(activity.start),
                int(activity.end),
                int(activity.stream_id),
                int(activity.context_id),
            )
            for activity in activities
            if activity.kind == wanted and activity.end > activity.start
        )
