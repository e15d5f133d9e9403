"""``nexus doctor``: what is here, and what Nexus can do with it."""

import importlib.util
import os
from collections.abc import Callable
from dataclasses import dataclass

from nexus.core.errors import UserError
from nexus.runtime.machine import is_tested, software, this_machine, vllm_version
from nexus.runtime.mps.support import describe_daemon, describe_parts


@dataclass(frozen=True)
class Finding:
    """One thing looked at: whether it is fine, and what was seen.

    ``needed_by`` names the command that cannot run without it, if any.
    """

    name: str
    ok: bool
    seen: str
    needed_by: str = ""


def examine() -> list[Finding]:
    """Every finding, in the order a reader wants them."""
    looks: list[tuple[str, str, Callable[[], tuple[bool, str]]]] = [
        ("device", "serve", _device),
        ("vllm", "serve", _vllm),
        ("torch", "serve", _torch),
        ("memory", "", _memory),
        ("green contexts", "", _green_contexts),
        ("mps", "", _mps),
        ("mps serving", "", describe_parts),
        ("cupti", "", _cupti),
    ]
    findings = []
    for name, needed_by, look in looks:
        try:
            ok, seen = look()
        except UserError as error:
            ok, seen = False, str(error)
        findings.append(Finding(name, ok, seen, needed_by))
    return findings


def can_serve(findings: list[Finding]) -> bool:
    """Whether ``nexus serve`` can run here."""
    return all(finding.ok for finding in findings if finding.needed_by == "serve")


def _device() -> tuple[bool, str]:
    if importlib.util.find_spec("torch") is None:
        return False, f"{os.cpu_count()} CPU cores; torch is missing, so no GPU can be seen"
    machine = this_machine()
    if machine.device == "cpu":
        return True, f"{machine.name}, {machine.sms} cores (no GPU: plans use fused modes only)"
    return True, (
        f"{machine.name}, {machine.sms} SMs, driver {machine.driver}, CUDA {machine.cuda}"
    )


def _vllm() -> tuple[bool, str]:
    version = vllm_version()
    return True, f"{version} ({'tested' if is_tested(version) else 'not a tested version'})"


def _torch() -> tuple[bool, str]:
    if importlib.util.find_spec("torch") is None:
        return False, "not installed"
    return True, software()["torch"]


def _memory() -> tuple[bool, str]:
    import psutil

    memory = psutil.virtual_memory()
    gib = 1 << 30
    return True, f"{memory.available / gib:.1f} of {memory.total / gib:.1f} GiB free on the host"


def _green_contexts() -> tuple[bool, str]:
    if not _has_gpu():
        return False, "no GPU"
    if importlib.util.find_spec("cuda.core") is None:
        return False, "cuda-core is not installed"
    from nexus.runtime.partition.verify import describe_support

    return describe_support()


def _mps() -> tuple[bool, str]:
    if not _has_gpu():
        return False, "no GPU"
    return describe_daemon()


def _cupti() -> tuple[bool, str]:
    if not _has_gpu():
        return False, "no GPU"
    if importlib.util.find_spec("cupti") is None:
        return False, "cupti-python is not installed"
    return True, "cupti-python is importable"


def _has_gpu() -> bool:
    return importlib.util.find_spec("torch") is not None and this_machine().device == "cuda"
