"""SM partitions as CUDA green contexts, and the streams that run in them.

The device is cut into a group of SMs and the rest; each side is a green context. A
kernel launched (or a graph captured) on a side's stream runs on that side's SMs only.
A device-wide ``torch.cuda.synchronize`` may return before such a stream is done: wait
for an event or for the stream.
"""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch

from nexus.errors import PartitionError
from nexus.runtime.partition.base import Cut, Partition, choose_cut, choose_side, side_sizes

FINE_STEP = 2
_IGNORE_COSCHEDULING = 1  # the driver's flag, which releases of cuda-bindings name differently


@dataclass(frozen=True)
class Lanes:
    """A realized partition and the torch stream of each phase.

    ``prefill`` has the lowest priority, ``decode`` the highest.
    """

    partition: Partition
    prefill: torch.cuda.Stream
    decode: torch.cuda.Stream


class Side:
    """Some SMs and their streams, one for each priority asked for."""

    def __init__(
        self, sms: int, device: int, create: Callable[[int], Any], close: Callable[[], None]
    ) -> None:
        """``create`` makes a driver stream of a priority; ``close`` frees the context."""
        self.sms = sms
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

    Equal requests share contexts and streams: a decode graph captured for ``split(84,
    48)`` also serves ``alone(48)``, whose SMs are the same.
    """

    def __init__(self, device: int | None = None, *, fine: bool = False) -> None:
        """``fine`` cuts in steps of 2 SMs, without thread-block clusters' guarantees.

        ``device`` is the torch device index, by default the current one. Raises
        PartitionError where the GPU, its driver or a package lacks green contexts.
        """
        self._index = torch.cuda.current_device() if device is None else device
        self._fine = fine
        self._device = _open_device(self._index)
        resource = _sm_resource(self._device)
        self.total_sms = int(resource.sm_count)
        self.step = FINE_STEP if fine else max(1, int(resource.coscheduled_alignment))
        lowest, highest = torch.cuda.Stream.priority_range()
        self.lowest_priority, self.highest_priority = int(lowest), int(highest)
        self._cuts: dict[int, tuple[Side, Side]] = {}
        self._whole = Side(self.total_sms, self._index, self._whole_stream, lambda: None)

    def split(self, prefill_sms: int, decode_sms: int) -> Lanes:
        """Disjoint SMs for the phases, as near to those asked for as the driver allows."""
        cut = choose_cut(prefill_sms, decode_sms, self.step, self.total_sms)
        decode, prefill = self._sides(cut)
        return self._lanes(prefill, decode)

    def sizes(self) -> tuple[int, ...]:
        """Every number of SMs that a phase can be confined to; what is left is the other's."""
        return side_sizes(self.step, self.total_sms)

    def overlap(self, prefill_sms: int) -> Lanes:
        """Prefill confined to ``prefill_sms``; decode on all SMs, with priority."""
        return self._lanes(self._side(prefill_sms), self._whole)

    def alone(self, sms: int) -> Lanes:
        """Both phases on the same ``sms`` SMs, one at a time; all of them if ``sms`` says so."""
        side = self._side(sms)
        return self._lanes(side, side)

    def close(self) -> None:
        """Free every stream and context."""
        for group, rest in self._cuts.values():
            group.close()
            rest.close()
        self._whole.close()
        self._cuts = {}

    def _lanes(self, prefill: Side, decode: Side) -> Lanes:
        return Lanes(
            Partition(prefill.sms, decode.sms, self.total_sms),
            prefill=prefill.stream(self.lowest_priority),
            decode=decode.stream(self.highest_priority),
        )

    def _side(self, sms: int) -> Side:
        cut = choose_side(sms, self.step, self.total_sms)
        return self._whole if cut.group_sms == self.total_sms else self._sides(cut)[0]

    def _sides(self, cut: Cut) -> tuple[Side, Side]:
        group, rest = self._cut(cut.group_sms)
        return (group, rest) if cut.group_first else (rest, group)

    def _cut(self, group_sms: int) -> tuple[Side, Side]:
        if group_sms not in self._cuts:
            make = _fine_cut if self._fine else _coarse_cut
            try:
                self._cuts[group_sms] = make(self._device, self._index, group_sms)
            except RuntimeError as error:
                reason = f"cannot give a green context of {group_sms} SMs: {error}"
                raise PartitionError(f"the driver {reason}") from error
        return self._cuts[group_sms]

    def _whole_stream(self, priority: int) -> Any:
        from cuda.core import StreamOptions

        return self._device.create_stream(options=StreamOptions(priority=priority))


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


def _coarse_cut(device: Any, index: int, group_sms: int) -> tuple[Side, Side]:
    from cuda.core import ContextOptions, SMResourceOptions, StreamOptions

    groups, rest = device.resources.sm.split(SMResourceOptions(count=group_sms))

    def side(resource: Any) -> Side:
        context = device.create_context(ContextOptions(resources=[resource]))
        return Side(
            int(resource.sm_count),
            index,
            lambda priority: context.create_stream(StreamOptions(priority=priority)),
            context.close,
        )

    return side(groups[0]), side(rest)


def _fine_cut(_device: Any, index: int, group_sms: int) -> tuple[Side, Side]:
    """As ``_coarse_cut``, by the driver's own calls: cuda.core passes no such flag."""
    from cuda.bindings import driver as cu

    kind = cu.CUdevResourceType.CU_DEV_RESOURCE_TYPE_SM
    gpu = _checked(cu.cuDeviceGet(index))
    whole = _checked(cu.cuDeviceGetDevResource(gpu, kind))
    groups, _, rest = _checked(
        cu.cuDevSmResourceSplitByCount(1, whole, _IGNORE_COSCHEDULING, group_sms)
    )

    def side(resource: Any) -> Side:
        desc = _checked(cu.cuDevResourceGenerateDesc([resource], 1))
        default = cu.CUgreenCtxCreate_flags.CU_GREEN_CTX_DEFAULT_STREAM
        context = _checked(cu.cuGreenCtxCreate(desc, gpu, int(default)))
        nonblocking = int(cu.CUstream_flags.CU_STREAM_NON_BLOCKING)
        return Side(
            int(resource.sm.smCount),
            index,
            lambda priority: _checked(cu.cuGreenCtxStreamCreate(context, nonblocking, priority)),
            lambda: _checked(cu.cuGreenCtxDestroy(context)),
        )

    return side(groups[0]), side(rest)


def _checked(result: tuple[Any, ...]) -> Any:
    """A driver call's values; raises RuntimeError with the driver's error name."""
    status, *values = result
    if int(status) != 0:
        raise RuntimeError(str(status))
    return values[0] if len(values) == 1 else tuple(values) or None
