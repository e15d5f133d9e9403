"""SM partitions as CUDA green contexts, and the streams that run in them.

A green context is made of a group of SMs that run thread-block clusters together, or of what
the driver leaves when it cuts off a group. Clusters cannot fill the latter, and matrix
products with many rows take up to 1.5 times as long there: a split gives prefill the group.
A kernel launched (or a graph captured) on a side's stream runs on that side's SMs only.
A device-wide ``torch.cuda.synchronize`` may return before such a stream is done: wait
for an event or for the stream.
"""

from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import Any

import torch

from nexus.core.errors import PartitionError
from nexus.core.plan import Mode
from nexus.runtime.partition.base import Partition, group_for, group_of_split, group_sizes

FINE_STEP = 2
_IGNORE_COSCHEDULING = 1  # the driver's flag, which releases of cuda-bindings name differently


@dataclass(frozen=True)
class Lanes:
    """A realized partition and the torch stream of each phase.

    ``prefill`` has the lowest priority, ``decode`` the highest. ``_gemm_sms`` are the SMs to
    size matrix products for; None where they do best as they are.
    """

    partition: Partition
    prefill: torch.cuda.Stream
    decode: torch.cuda.Stream
    prefill_gemm_sms: int | None
    decode_gemm_sms: int | None


class Side:
    """Some SMs and their streams, one for each priority asked for."""

    def __init__(
        self,
        sms: int,
        device: int,
        create: Callable[[int], Any],
        close: Callable[[], None],
        gemm_sms: int | None = None,
    ) -> None:
        """``create`` makes a driver stream of a priority; ``close`` frees the context."""
        self.sms, self.gemm_sms = sms, gemm_sms
        self._device = device
        self._create = create
        self._close = close
        self._streams: dict[int, tuple[Any, torch.cuda.Stream]] = {}

    def stream(self, priority: int) -> torch.cuda.Stream:
        """The side's stream of ``priority`` (0 is lowest, negative is higher)."""
        if priority not in self._streams:
            owner = self._create(priority)
            handle = int(getattr(owner, "handle", owner))
            stream = torch.cuda.ExternalStream(handle, device=self._device)
            self._streams[priority] = (owner, stream)
        return self._streams[priority][1]

    def close(self) -> None:
        """Free the streams and the context; their work must be done."""
        for owner, stream in self._streams.values():
            stream.synchronize()
            if hasattr(owner, "close"):
                owner.close()
        self._streams = {}
        self._close()


class GreenContexts:
    """Makes partitions of one GPU and owns all that belongs to them.

    Equal requests share contexts and streams.
    """

    def __init__(self, device: int | None = None, *, fine: bool = False) -> None:
        """``fine`` makes units of 2 SMs, without thread-block clusters' guarantees.

        ``device`` is the torch device index, by default the current one. Raises
        PartitionError where the GPU, its driver or a package lacks green contexts.
        """
        self._index = torch.cuda.current_device() if device is None else device
        self._fine = fine
        self._device = _open_device(self._index)
        resource = _sm_resource(self._device)
        self.total_sms = int(resource.sm_count)
        self.step = FINE_STEP if fine else max(1, int(resource.coscheduled_alignment))
        self._sms = _Sms(self._index, fine=fine)
        lowest, highest = torch.cuda.Stream.priority_range()
        self.lowest_priority, self.highest_priority = int(lowest), int(highest)
        self._groups: dict[int, Side] = {}
        self._rests: dict[int, Side] = {}
        self._whole = Side(self.total_sms, self._index, self._whole_stream, lambda: None)

    def split(self, prefill_sms: int, decode_sms: int) -> Lanes:
        """Disjoint SMs for the phases, as near to those asked for as the driver allows."""
        size = group_of_split(prefill_sms, decode_sms, self.step, self.total_sms)
        prefill = self._group(size)
        return self._lanes(prefill, self._rests[size])

    def pairs(self) -> tuple[tuple[int, int], ...]:
        """Every split: SMs of prefill, and of decode."""
        return tuple((sms, self.total_sms - sms) for sms in self.sizes()[:-1])

    def sizes(self) -> tuple[int, ...]:
        """Every number of SMs that one phase can be confined to, and all of them."""
        return group_sizes(self.step, self.total_sms)

    def overlap(self, prefill_sms: int) -> Lanes:
        """Prefill confined to ``prefill_sms``; decode on all SMs, with priority."""
        return self._lanes(self._group(prefill_sms), self._whole)

    def alone(self, sms: int) -> Lanes:
        """Both phases on the same ``sms`` SMs, one at a time; all of them if ``sms`` says so."""
        group = self._group(sms)
        return self._lanes(group, group)

    def close(self) -> None:
        """Free every stream and context."""
        for side in (*self._groups.values(), *self._rests.values(), self._whole):
            side.close()
        self._groups, self._rests = {}, {}

    def _lanes(self, prefill: Side, decode: Side) -> Lanes:
        return Lanes(
            Partition(prefill.sms, decode.sms, self.total_sms),
            prefill=prefill.stream(self.lowest_priority),
            decode=decode.stream(self.highest_priority),
            prefill_gemm_sms=prefill.gemm_sms,
            decode_gemm_sms=decode.gemm_sms,
        )

    def _group(self, sms: int) -> Side:
        size = group_for(sms, self.step, self.total_sms)
        if size == self.total_sms:
            return self._whole
        if size not in self._groups:
            self._groups[size], self._rests[size] = self._sms.cut(size)
        return self._groups[size]

    def _whole_stream(self, priority: int) -> Any:
        from cuda.core import StreamOptions

        return self._device.create_stream(options=StreamOptions(priority=priority))


def lanes_of(contexts: GreenContexts, mode: Mode) -> Lanes:
    """The partition of a split or overlap; raises PartitionError if the driver gives other SMs."""
    if mode.mode == "overlap":
        lanes = contexts.overlap(mode.prefill_sms)
        wanted = (mode.prefill_sms, contexts.total_sms)
    else:
        lanes = contexts.split(mode.prefill_sms, mode.decode_sms)
        wanted = (mode.prefill_sms, mode.decode_sms)
    given = (lanes.partition.prefill_sms, lanes.partition.decode_sms)
    if given != wanted:
        raise PartitionError(f"{mode.name}: the driver gives {given[0]} + {given[1]} SMs")
    return lanes


def check_partitions(modes: Iterable[Mode]) -> None:
    """Raise PartitionError for a split or overlap that the driver does not give; opens the GPU."""
    contexts = GreenContexts()
    for mode in modes:
        lanes_of(contexts, mode)


def _open_device(index: int) -> Any:
    try:
        from cuda.core import Device
    except ImportError as error:
        raise PartitionError("SM partitions need the package cuda-core (1.2 or newer)") from error
    torch.cuda.init()
    device = Device(index)
    device.set_current()
    return device


def _sm_resource(device: Any) -> Any:
    try:
        return device.resources.sm
    except (AttributeError, RuntimeError, NotImplementedError) as error:
        raise PartitionError(
            f"SM partitions need green contexts, which this driver, GPU or cuda-core lacks: {error}"
        ) from error


class _Sms:
    """The SMs of one device, as the driver cuts them.

    By the driver's own calls: cuda.core cuts off one group at a time before CUDA 13.1, and
    passes no flags.
    """

    def __init__(self, index: int, *, fine: bool) -> None:
        from cuda.bindings import driver as cu

        self._cu, self._index = cu, index
        self._flags = _IGNORE_COSCHEDULING if fine else 0
        self._kind = cu.CUdevResourceType.CU_DEV_RESOURCE_TYPE_SM
        self._gpu = _checked(cu.cuDeviceGet(index))
        self._whole = _checked(cu.cuDeviceGetDevResource(self._gpu, self._kind))

    def cut(self, sms: int) -> tuple[Side, Side]:
        """A group of ``sms`` and the rest; raises PartitionError where the driver cannot."""
        try:
            groups, _, rest = _checked(
                self._cu.cuDevSmResourceSplitByCount(1, self._whole, self._flags, sms)
            )
            return self._side(groups[0], fit=True), self._side(rest, fit=False)
        except RuntimeError as error:
            reason = f"cannot give a green context of {sms} SMs: {error}"
            raise PartitionError(f"the driver {reason}") from error

    def _side(self, resource: Any, *, fit: bool) -> Side:
        cu, sms = self._cu, int(resource.sm.smCount)
        desc = _checked(cu.cuDevResourceGenerateDesc([resource], 1))
        default = cu.CUgreenCtxCreate_flags.CU_GREEN_CTX_DEFAULT_STREAM
        context = _checked(cu.cuGreenCtxCreate(desc, self._gpu, int(default)))
        nonblocking = int(cu.CUstream_flags.CU_STREAM_NON_BLOCKING)
        return Side(
            sms,
            self._index,
            lambda priority: _checked(cu.cuGreenCtxStreamCreate(context, nonblocking, priority)),
            lambda: _checked(cu.cuGreenCtxDestroy(context)),
            gemm_sms=sms if fit else None,
        )


def _checked(result: tuple[Any, ...]) -> Any:
    """A driver call's values; raises RuntimeError with the driver's error name."""
    status, *values = result
    if int(status) != 0:
        raise RuntimeError(str(status))
    return values[0] if len(values) == 1 else tuple(values) or None
