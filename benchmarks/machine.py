"""Where a benchmark runs: looked up outside of this process, and watched during a run.

This process never opens the GPU, whose memory belongs to the server.
"""

import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass

import numpy as np

from nexus import __version__
from nexus.benchmarks.results import Condition
from nexus.core.machine import Machine
from nexus.profiler.nvml import GpuCondition
from nexus.profiles.schema import Profile
from nexus.runtime.machine import config_hash, seen_apart, software, this_machine

_EVERY_S = 0.5
_HOST_WORK = 10_000  # numbers to add, in some 100 µs


@dataclass(frozen=True)
class Here:
    """This machine and what is installed, and the model's identity and longest context."""

    machine: Machine
    software: dict[str, str]
    model_hash: str
    max_positions: int | None
    gpu_uuid: str | None = None


def here(model: str) -> Here:
    """Look around in a process of its own; raises EngineError when there is no such model."""
    return seen_apart(_look, model)


def where_measured(profile: Profile) -> Here:
    """The same from a profile that was measured here just now, on a machine without a GPU."""
    software = {**profile.provenance.software, "nexus": __version__}
    model = profile.model
    return Here(profile.machine, software, model.config_hash, model.max_model_len)


def _look(model: str) -> Here:
    import torch
    from transformers import PretrainedConfig

    model_hash = config_hash(model)
    config, _ = PretrainedConfig.get_config_dict(model)
    machine = this_machine()
    on_gpu = machine.device == "cuda"
    return Here(
        machine=machine,
        software={**software(), "nexus": __version__},
        model_hash=model_hash,
        max_positions=config.get("max_position_embeddings"),
        gpu_uuid=str(torch.cuda.get_device_properties(0).uuid) if on_gpu else None,
    )


@contextmanager
def watched(where: Here) -> Iterator[Callable[[], Condition | None]]:
    """Read the machine's condition twice a second; what is yielded tells of it afterwards.

    It tells None without a GPU, or when NVML says nothing.
    """
    seen: list[tuple[float, float, float]] = []
    host_us: list[float] = []
    done = threading.Event()

    def condition() -> Condition | None:
        if not seen:
            return None
        mhz, watts, celsius = np.array(seen).T
        return Condition(
            sm_mhz=round(float(mhz.mean()), 1),
            power_w=round(float(watts.mean()), 1),
            temperature_c=float(celsius.max()),
            host_us=round(float(np.median(host_us)), 1),
        )

    def watch(gpu: GpuCondition) -> None:
        while not done.wait(_EVERY_S):
            now = gpu.read()
            host_us.append(_host_us())
            if None not in (now.sm_mhz, now.power_w, now.temperature_c):
                seen.append((now.sm_mhz or 0, now.power_w or 0, now.temperature_c or 0))

    if where.gpu_uuid is None:
        yield condition
        return
    thread = threading.Thread(target=watch, args=(GpuCondition(where.gpu_uuid),), daemon=True)
    thread.start()
    try:
        yield condition
    finally:
        done.set()
        thread.join()


def _host_us() -> float:
    """What a fixed piece of Python takes now, in microseconds."""
    began = time.perf_counter()
    sum(range(_HOST_WORK))
    return 1e6 * (time.perf_counter() - began)
