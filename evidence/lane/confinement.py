"""Which SMs each lane of a running engine really has: three witnesses.

``%smid`` as a kernel reads it on the very streams, and in a graph captured there and
replayed elsewhere; the driver's word on the stream's green context; and CUPTI's record of
the context, by whose numbers the kernels of a serving window are told apart.
"""

from typing import Any

from nexus.evidence.lane.activity import ActivityRecorder, Stream
from nexus.runtime.partition.green import Lanes
from nexus.runtime.partition.verify import SmReader


def lanes_of(worker: Any) -> dict[str, Lanes]:
    """Each lane mode's streams in a worker of ``nexus serve``."""
    return {name: place.lanes for name, place in worker._nexus_lanes._places.items()}


def smids(lanes: dict[str, Lanes], elsewhere: Any) -> dict[str, Any]:
    """What ``%smid`` shows of every partition; graphs are replayed on ``elsewhere``."""
    reader = SmReader()
    found = {}
    for name, mode in lanes.items():
        evidence = reader.examine(mode)
        graphs = {
            phase: reader.sms_of_graph(stream, replayed_on=elsewhere)[0]
            for phase, stream in (("prefill", mode.prefill), ("decode", mode.decode))
        }
        found[name] = {
            "promised": {
                "prefill": mode.partition.prefill_sms,
                "decode": mode.partition.decode_sms,
            },
            "on_stream": {"prefill": len(evidence.prefill), "decode": len(evidence.decode)},
            "in_graph": {phase: len(ids) for phase, ids in graphs.items()},
            "graph_keeps_sms": {
                "prefill": graphs["prefill"] == evidence.prefill,
                "decode": graphs["decode"] == evidence.decode,
            },
            "shared_by_both": len(evidence.prefill & evidence.decode),
            "ids": {
                "prefill": _ranges(sorted(evidence.prefill)),
                "decode": _ranges(sorted(evidence.decode)),
            },
            "stream_priority": {"prefill": mode.prefill.priority, "decode": mode.decode.priority},
            "problems": list(evidence.problems),
        }
    return found


def driver_sms(stream: Any) -> int | None:
    """SMs of the stream's green context by the driver's word; None if it has none."""
    from cuda.bindings import driver as cu

    status, green = cu.cuStreamGetGreenCtx(cu.CUstream(stream.cuda_stream))
    if int(status) != 0 or not int(green):
        return None
    kind = cu.CUdevResourceType.CU_DEV_RESOURCE_TYPE_SM
    status, resource = cu.cuGreenCtxGetDevResource(green, kind)
    return int(resource.sm.smCount) if int(status) == 0 else None


def numbers_of(recorder: ActivityRecorder, lanes: dict[str, Lanes]) -> dict[str, dict[str, Any]]:
    """CUPTI's context and stream of each mode's lanes: where it saw a kernel run that was
    launched there. With the driver's count of SMs.
    """
    reader = SmReader()
    found: dict[str, dict[str, Any]] = {}
    for name, mode in lanes.items():
        found[name] = {}
        for phase, stream in (("prefill", mode.prefill), ("decode", mode.decode)):
            with recorder.recording(stream.synchronize) as records:
                reader.sms_of(stream)
            seen = {Stream(r.context, r.stream) for r in records if "read_smid" in r.name}
            (told,) = seen
            found[name][phase] = {
                "context": told.context,
                "stream": told.stream,
                "driver_sms": driver_sms(stream),
            }
    return found


def prefill_streams(numbers: dict[str, dict[str, Any]]) -> set[Stream]:
    """The prefill lane's, of all modes."""
    return {
        Stream(mode["prefill"]["context"], mode["prefill"]["stream"]) for mode in numbers.values()
    }


def _ranges(ids: list[int]) -> str:
    """Such as ``0-3,8,10-11``."""
    parts: list[str] = []
    start = 0
    for place in range(1, len(ids) + 1):
        if place == len(ids) or ids[place] != ids[place - 1] + 1:
            first, last = ids[start], ids[place - 1]
            parts.append(f"{first}-{last}" if last > first else f"{first}")
            start = place
    return ",".join(parts)
