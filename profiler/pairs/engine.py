"""One engine of a pair, in a process of its own: ``python -m nexus.profiler.pairs.engine``.

It takes orders on a connection that it inherits, and runs steps as told. Its share of
the device it has from its environment (MPS), or from the cores that it is started with.
"""

import os
import sys
from multiprocessing.connection import Connection
from typing import Any

from nexus.core.errors import UserError
from nexus.profiler.pairs.loop import Loop
from nexus.profiler.pairs.wire import (
    CoRun,
    Failed,
    Looping,
    Order,
    Ready,
    Setup,
    Solo,
    Stopped,
    Times,
)
from nexus.profiler.points import BATCHES
from nexus.profiler.session import start_engine
from nexus.profiler.worker import reason
from nexus.runtime.vllm import compat

EXTENSION = "nexus.profiler.pairs.loop.PairExtension"

_DECODE_MEMORY = 0.4  # of the GPU's, for the decode engine's KV cache
# vLLM claims this share of the GPU at least; beyond that it counts for nothing once the KV
# cache's size is given.
_CLAIM = "0.01"
_CAPTURED = BATCHES  # the largest is also the longest prompt step in a graph


def main(descriptor: str, cores: str) -> None:
    """Serve the connection at ``descriptor``; ``cores`` are numbers with commas, or empty."""
    if cores:
        os.sched_setaffinity(0, {int(core) for core in cores.split(",")})
    wire: Connection[Any, Any] = Connection(int(descriptor))
    compat.LLMEngine  # noqa: B018  its import takes long, and touches no device
    try:
        _serve(wire, wire.recv())
    except (EOFError, BrokenPipeError):  # whoever started this is gone
        return


def _serve(wire: "Connection[Any, Any]", setup: Setup) -> None:
    try:
        engine = _start(setup)
    except UserError as error:
        wire.send(Failed(str(error)))
        return
    try:
        (facts,) = engine.collective_rpc("nexus_describe")
        (loop,) = engine.collective_rpc("nexus_loop")
        wire.send(Ready(facts, _sms(on_cpu=setup.on_cpu)))
        while (order := wire.recv()) != "quit":
            if order == "stop":
                wire.send(Stopped())
            elif order != "mark":
                _obey(wire, loop, order)
    finally:
        engine.engine_core.shutdown()


def _obey(wire: "Connection[Any, Any]", loop: Loop, order: Solo | CoRun) -> None:
    try:
        if isinstance(order, Solo):
            wire.send(loop.alone(order.point))
            return

        def say(times: Times | None) -> None:
            wire.send(times or Looping())

        def told() -> Order | None:
            return wire.recv() if wire.poll() else None

        loop.beside(order.point, say, told)
        wire.send(Stopped())
    except Exception as error:  # noqa: BLE001  whatever vLLM's step may raise
        wire.send(Failed(reason(error)))


def _start(setup: Setup) -> Any:
    if setup.cache is not None:
        os.environ["VLLM_CACHE_ROOT"] = setup.cache
    options = list(setup.options)
    if not setup.on_cpu:
        options += _room(setup)
    return start_engine(setup.model, options, setup.on_cpu, EXTENSION)


def _room(setup: Setup) -> list[str]:
    """Options that let several engines start at once on one GPU, each in its memory.

    The prefill engine's KV cache holds one longest prompt. Fewer CUDA graphs start faster.
    """
    import torch

    from nexus.runtime.vllm.options import parse_engine

    config = parse_engine(setup.model, list(setup.options)).create_engine_config()
    model, parallel = config.model_config, config.parallel_config
    item = model.get_num_layers(parallel) * model.get_num_kv_heads(parallel)
    token_bytes = 2 * item * model.get_head_size() * model.dtype.itemsize
    if setup.role == "prefill":
        size = token_bytes * (model.max_model_len + 2 * config.cache_config.block_size)
    else:
        size = int(_DECODE_MEMORY * torch.cuda.get_device_properties(0).total_memory)
    options = ["--gpu-memory-utilization", _CLAIM]
    if config.cache_config.kv_cache_memory_bytes is None:
        options += ["--kv-cache-memory-bytes", str(size)]
    if not model.enforce_eager:
        options += ["--cudagraph-capture-sizes", *map(str, _CAPTURED)]
    return options


def _sms(*, on_cpu: bool) -> int:
    """The SMs that this process sees, which are those of its share."""
    if on_cpu:
        from nexus.runtime.partition.cores import all_cores

        return all_cores()
    import torch

    return int(torch.cuda.get_device_properties(0).multi_processor_count)


if __name__ == "__main__":
    main(*sys.argv[1:])
