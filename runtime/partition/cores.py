"""CPU cores in the place of SMs: how many threads a forward pass may use.

vLLM's CPU kernels and torch share one OpenMP thread pool. vLLM disables
``torch.set_num_threads`` once it runs, so the underlying binding is used.
"""

import os
from collections.abc import Iterator
from contextlib import contextmanager

import torch

from nexus.core.errors import PartitionError


def all_cores() -> int:
    """The cores that this process may run on."""
    return len(os.sched_getaffinity(0))


@contextmanager
def confined_to(cores: int) -> Iterator[None]:
    """Let the OpenMP pool use ``cores`` threads inside the block."""
    if not 1 <= cores <= all_cores():
        raise PartitionError(f"{cores} cores asked for, {all_cores()} are here")
    before = torch.get_num_threads()
    torch._C.set_num_threads(cores)
    try:
        yield
    finally:
        torch._C.set_num_threads(before)
