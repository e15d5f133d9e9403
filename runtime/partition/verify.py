"""Proof that a partition is what it says: which SMs each stream's kernels ran on.

A kernel of many more blocks than there are SMs writes ``%smid`` from every block, and
spins, so that no SM is left out.
"""

import time
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

import torch

from nexus.core.errors import PartitionError
from nexus.runtime.partition.base import Partition
from nexus.runtime.partition.green import GreenContexts, Lanes

_BLOCKS_PER_SM = 16
_THREADS = 256
_KERNEL = r"""
extern "C" __global__ void read_smid(unsigned int* smids)
{
    if (threadIdx.x == 0) {
        unsigned int smid;
        asm volatile("mov.u32 %0, %%smid;" : "=r"(smid));
        smids[blockIdx.x] = smid;
    }
    long long start = clock64();
    while (clock64() - start < 20000) { }
}
"""


@dataclass(frozen=True)
class Evidence:
    """What was seen of a partition: the SMs' ids, and whether clusters of two can run."""

    partition: Partition
    prefill: frozenset[int]
    decode: frozenset[int]
    prefill_clusters: bool
    decode_clusters: bool

    @property
    def problems(self) -> tuple[str, ...]:
        """Where the partition is not what it should be; empty if it is."""
        return tuple(_problems(self))


def _problems(seen: Evidence) -> Iterable[str]:
    shared = seen.prefill & seen.decode
    if seen.partition.disjoint and shared:
        yield f"the phases share {len(shared)} SMs"
    for phase, sms, wanted, clusters in (
        ("prefill", seen.prefill, seen.partition.prefill_sms, seen.prefill_clusters),
        ("decode", seen.decode, seen.partition.decode_sms, seen.decode_clusters),
    ):
        if len(sms) != wanted:
            yield f"{phase} ran on {len(sms)} SMs, not on {wanted}"
        if not clusters:
            yield f"{phase}'s {wanted} SMs cannot run thread-block clusters"


class SmReader:
    """Compiled once; reads the SMs behind a stream or a replayed graph."""

    def __init__(self, device: int | None = None) -> None:
        """Compile for torch device ``device`` (the current one by default)."""
        from cuda.core import Device, Program, ProgramOptions

        self._index = torch.cuda.current_device() if device is None else device
        gpu = Device(self._index)
        gpu.set_current()
        self._sms = int(gpu.properties.multiprocessor_count)
        program = Program(_KERNEL, "c++", ProgramOptions(arch=f"sm_{gpu.arch}"))
        self._kernel = program.compile("cubin").get_kernel("read_smid")

    def sms_of(self, stream: torch.cuda.Stream, cluster: int = 1) -> frozenset[int]:
        """Ids of the SMs that a kernel with clusters of ``cluster`` blocks ran on."""
        with torch.cuda.stream(stream):
            smids = self._buffer()
            self._launch(stream, smids, cluster)
        return _seen(stream, smids)

    def sms_of_graph(
        self, captured_on: torch.cuda.Stream, replayed_on: torch.cuda.Stream
    ) -> tuple[frozenset[int], set[int]]:
        """SM ids of a graph captured on one stream and replayed on another, and the
        addresses of the contexts that its kernel nodes carry.
        """
        graph = torch.cuda.CUDAGraph(keep_graph=True)
        with torch.cuda.stream(captured_on):
            smids = self._buffer()
        captured_on.synchronize()
        with torch.cuda.graph(graph, stream=captured_on):
            self._launch(captured_on, smids, 1)
        graph.instantiate()
        with torch.cuda.stream(replayed_on):
            graph.replay()
        return _seen(replayed_on, smids), graph_contexts(graph.raw_cuda_graph())

    def examine(self, lanes: Lanes) -> Evidence:
        """Run the kernel on both of a partition's streams."""
        return Evidence(
            partition=lanes.partition,
            prefill=self.sms_of(lanes.prefill),
            decode=self.sms_of(lanes.decode),
            prefill_clusters=self._runs_clusters(lanes.prefill),
            decode_clusters=self._runs_clusters(lanes.decode),
        )

    def _runs_clusters(self, stream: torch.cuda.Stream) -> bool:
        try:
            return bool(self.sms_of(stream, cluster=2))
        except RuntimeError:  # the driver refuses the launch
            return False

    def _buffer(self) -> torch.Tensor:
        blocks = self._sms * _BLOCKS_PER_SM
        return torch.full((blocks,), -1, dtype=torch.int32, device=f"cuda:{self._index}")

    def _launch(self, stream: torch.cuda.Stream, smids: torch.Tensor, cluster: int) -> None:
        from cuda.core import LaunchConfig, Stream, launch

        blocks = smids.numel()
        config = (
            LaunchConfig(grid=blocks, block=_THREADS)
            if cluster == 1
            else LaunchConfig(grid=blocks // cluster, cluster=cluster, block=_THREADS)
        )
        launch(Stream.from_handle(stream.cuda_stream), config, self._kernel, smids.data_ptr())


def _seen(stream: torch.cuda.Stream, smids: torch.Tensor) -> frozenset[int]:
    stream.synchronize()
    ids = frozenset(int(smid) for smid in smids.cpu().unique())
    assert -1 not in ids, "a block did not run"
    return ids


def describe_support() -> tuple[bool, str]:
    """Whether this GPU can be partitioned, with the proof, or what is missing, in a line."""
    try:
        return _describe()
    except PartitionError as error:
        return False, str(error)


def _describe() -> tuple[bool, str]:
    contexts = GreenContexts()
    total, step = contexts.total_sms, contexts.step
    start = time.perf_counter()
    try:
        partitions = [contexts.split(prefill, decode) for prefill, decode in contexts.pairs()]
        milliseconds = (time.perf_counter() - start) * 1e3
        half = partitions[len(partitions) // 2]
        problems = SmReader().examine(half).problems
    finally:
        contexts.close()
    if problems:
        return False, "green contexts do not hold what they promise: " + "; ".join(problems)
    given = half.partition
    return True, (
        f"green contexts in steps of {step} of {total} SMs; {len(partitions)} partitions made "
        f"in {milliseconds:.0f} ms; %smid proves {given.prefill_sms} + {given.decode_sms} disjoint"
    )


def graph_contexts(graph: int) -> set[int]:
    """Addresses of the CUDA contexts that the kernel nodes of ``graph`` (a handle) run in."""
    from cuda.bindings import driver as cu

    def checked(result: tuple[Any, ...]) -> tuple[Any, ...]:
        if int(result[0]) != 0:
            raise RuntimeError(str(result[0]))
        return result[1:]

    handle = cu.CUgraph(graph)
    (count,) = checked(cu.cuGraphGetNodes(handle, 0))[1:]
    nodes, _ = checked(cu.cuGraphGetNodes(handle, count))
    kernel = cu.CUgraphNodeType.CU_GRAPH_NODE_TYPE_KERNEL
    contexts = set()
    for node in nodes[:count]:
        if checked(cu.cuGraphNodeGetType(node))[0] == kernel:
            contexts.add(int(checked(cu.cuGraphKernelNodeGetParams(node))[0].ctx))
    return contexts


def stream_context(stream: torch.cuda.Stream) -> int:
    """Address of the CUDA context (green or primary) that ``stream`` belongs to."""
    from cuda.bindings import driver as cu

    handle = cu.CUstream(stream.cuda_stream)
    status, green = cu.cuStreamGetGreenCtx(handle)
    if int(status) == 0 and int(green):
        status, context = cu.cuCtxFromGreenCtx(green)
    else:
        status, context = cu.cuStreamGetCtx(handle)
    if int(status) != 0:
        raise RuntimeError(str(status))
    return int(context)
