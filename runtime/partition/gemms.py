"""Matrix products that size themselves for a partition, not for the whole GPU.

cuBLAS picks tiles, and launches persistent kernels, for all SMs that the device has. On
fewer, its last blocks wait for a second wave. A green context does not tell it, so we do,
where its SMs are whole groups. Graphs keep what was picked while they were captured.
"""

import ctypes
from collections.abc import Iterator
from contextlib import contextmanager
from functools import cache

import torch

from nexus.core.errors import PartitionError


@contextmanager
def sized_for(sms: int | None) -> Iterator[None]:
    """Have this thread's cuBLAS calls inside the block count on ``sms`` SMs.

    None leaves it as it is. cuBLAS: cublasSetSmCountTarget; what PyTorch hands to cuBLASLt
    (products with a bias) heeds its SM carveout. Raises PartitionError where cuBLAS
    refuses or cannot be found.
    """
    if sms is None:
        yield
        return
    before = sm_count_target()
    total = torch.cuda.get_device_properties(torch.cuda.current_device()).multi_processor_count
    carved = torch._C._get_sm_carveout_experimental()
    whole = sms >= total
    _call("cublasSetSmCountTarget", ctypes.c_int(0 if whole else sms))
    torch._C._set_sm_carveout_experimental(None if whole else total - sms)
    try:
        yield
    finally:
        torch._C._set_sm_carveout_experimental(carved)
        _call("cublasSetSmCountTarget", ctypes.c_int(before))


def sm_count_target() -> int:
    """How many SMs this thread's cuBLAS counts on; 0 for all there are."""
    count = ctypes.c_int()
    _call("cublasGetSmCountTarget", ctypes.byref(count))
    return count.value


@cache
def _library() -> ctypes.CDLL:
    """The cuBLAS that PyTorch has loaded, by its name."""
    major = str(torch.version.cuda).split(".")[0]
    try:
        return ctypes.CDLL(f"libcublas.so.{major}")
    except OSError as error:
        raise PartitionError(f"partitions need PyTorch's own cuBLAS: {error}") from error


def _call(name: str, argument: object) -> None:
    handle = ctypes.c_void_p(torch.cuda.current_blas_handle())
    status = getattr(_library(), name)(handle, argument)
    if status != 0:
        raise PartitionError(f"{name} returned cuBLAS status {status}")
