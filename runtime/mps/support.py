"""What ``nexus doctor`` says of MPS: whether it can share this GPU, and what is missing."""

from importlib import metadata
from pathlib import Path

from nexus.core.errors import EngineError, PartitionError
from nexus.runtime.mps.daemon import CONTROL, find_control, refuse_others
from nexus.runtime.mps.folder import check_folder, default_folder, holder, left_behind
from nexus.runtime.mps.recipes import Programs, check_installed

_DISTRIBUTIONS = ("nixl", "vllm-router")


def describe_daemon(control: str = CONTROL, folder: Path | None = None) -> tuple[bool, str]:
    """Whether a daemon of our own can be started here, and why not; touches nothing."""
    folder = folder or default_folder()
    try:
        program = find_control(control)
        check_folder(folder)
        ours = left_behind(folder)
        refuse_others(control, ours)
    except PartitionError as error:
        return False, str(error)
    process = holder(folder)
    if process:
        return True, f"{program}; Nexus runs with MPS now (process {process})"
    if ours:
        return True, f"{program}; the next start cleans up {len(ours)} processes of a killed run"
    return True, program


def describe_parts(programs: Programs | None = None) -> tuple[bool, str]:
    """Whether the router and the KV connector are installed, and in which versions."""
    try:
        check_installed(programs or Programs())
    except EngineError as error:
        return False, str(error)
    return True, ", ".join(f"{name} {_version(name)}" for name in _DISTRIBUTIONS)


def _version(distribution: str) -> str:
    try:
        return metadata.version(distribution)
    except metadata.PackageNotFoundError:
        return "of unknown version"
