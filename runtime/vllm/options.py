"""vLLM's command-line options: parsed by vLLM, with the defaults that Nexus adds.

What the user gives wins, on the command line over the file of ``--config``. Nexus adds only
what a plan or a CPU needs:

- on a CPU: the data type that is fast there, where the model can be computed in it, a KV cache
  of fixed size (vLLM's own default claims nearly all memory and refuses to start beside other
  programs), one process for engine and worker, and every core;
- from a profile or plan: the engine limits, parallel sizes and data type it was measured with;
- on a GPU: CUDA graphs for the plan's batches. vLLM makes them up to 512 tokens, and where a
  host is slow, launching a longer step operator by operator takes it longer than the step.
"""

import argparse
import logging
import os
import textwrap
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from itertools import chain
from pathlib import Path
from typing import Any, NoReturn

import yaml
from pydantic import ValidationError

from nexus.core.errors import EngineError
from nexus.core.io.documents import first_problem
from nexus.core.machine import PARALLEL_SIZES, Engine, Model
from nexus.runtime.machine import config_of, has_fast_bf16
from nexus.runtime.vllm.graphs.sizes import MOST_MIXED_TOKENS

CPU_KV_CACHE_BYTES = 1 << 30
_USUAL_GRAPH_TOKENS = 512
_MOST_WORDS = 400  # characters of a complaint
_GRAPHS = (
    *("--max-cudagraph-capture-size", "--cudagraph-capture-sizes", "--enforce-eager"),
    *("--compilation-config", "-cc", "-O", "--optimization-level"),
)
_PARALLEL = {
    f"--{name.replace('_', '-')}": f"-{''.join(word[0] for word in name.split('_')[:-1])}"
    for name in PARALLEL_SIZES
}
"""vLLM's options for the parallel sizes, long and short."""

# A folder may hold other files, such as what a command wrote there.
_MODEL_FILES = ("*config.json", "*token*", "*.safetensors*", "*.bin", "*.gguf")


def spelled(option: str) -> str:
    """An option's name, without a value that follows ``=`` or a field that follows a dot.

    ``--max_num_seqs=8`` is, as to vLLM, ``--max-num-seqs``, and ``-O2`` is ``-O``.
    """
    name = option.partition("=")[0]
    if name.startswith("-"):
        name = name.partition(".")[0]
    if name.startswith("-O"):
        return "-O"
    return name.replace("_", "-") if name.startswith("--") else name


def given(options: Sequence[str], *names: str) -> bool:
    """Whether any of ``names`` is among the options, in any spelling."""
    return any(spelled(option) in names for option in options)


def without(options: Sequence[str], name: str) -> tuple[list[str], list[str]]:
    """All that ``name`` is given as, the last of which counts, and the options but for it."""
    values, others = [], []
    words = iter(options)
    for option in words:
        if spelled(option) != name:
            others.append(option)
        else:
            _, mark, value = option.partition("=")
            values.append(value if mark else next(words, ""))
    return values, others


def value_of(options: Sequence[str], name: str) -> str | None:
    """What an option is given as, None where it is not; of several the last, as to vLLM."""
    values, _ = without(options, name)
    return values[-1] if values else None


def from_file(options: Sequence[str]) -> list[str]:
    """``options`` with those of the file that ``--config`` names before them, read by vLLM.

    Of an option that is there twice the last counts. Raises EngineError.
    """
    paths, others = without(options, "--config")
    if not paths:
        return others
    if len(paths) > 1:
        raise EngineError("--config is there more than once")
    path = paths[0]
    _, serve, _ = _parsers()
    try:
        with quietly():
            return [*serve.load_config_file(path), *others]
    except OSError as error:
        raise EngineError(f"--config {path}: {error.strerror or error}") from error
    except (ValueError, yaml.YAMLError) as error:
        raise EngineError(f"--config {path}: {one_line(error)}") from error
    except (AttributeError, TypeError, RecursionError) as error:
        raise EngineError(f"--config {path}: no options and their values") from error


def files_of(model: str | None, options: Sequence[str]) -> list[Path]:
    """The files that ``model`` is made of, if it is here, and those that ``options`` name."""
    words = [model or "", *options, *(option.partition("=")[2] for option in options)]
    named = [Path(word) for word in words if os.path.isfile(word)]  # noqa: PTH113  of any length
    if model is None:
        return named
    return named + [file for pattern in _MODEL_FILES for file in Path(model).glob(pattern)]


def with_defaults(
    options: Sequence[str],
    on_cpu: bool,
    model: Model | None = None,
    engine: Engine | None = None,
    batches: Sequence[int] = (),
) -> list[str]:
    """``options`` and, where they do not say otherwise, the ``defaults``."""
    added = defaults(lambda *names: given(options, *names), on_cpu, model, engine, batches)
    words = [(name,) if value is True else (name, str(value)) for name, value in added.items()]
    return [*options, *chain.from_iterable(words)]


def defaults(
    is_given: Callable[..., bool],
    on_cpu: bool,
    model: Model | None = None,
    engine: Engine | None = None,
    batches: Sequence[int] = (),
) -> dict[str, Any]:
    """The defaults above, by option, but for those that ``is_given(*names)`` says are given.

    ``batches``: the tokens of the plan's fused modes.
    """
    added: dict[str, Any] = {}

    def default(name: str, value: Any, *also: str) -> None:
        if not is_given(name, *also):
            added[name] = value

    if engine is not None:
        default("--max-num-batched-tokens", engine.max_num_batched_tokens)
        default("--max-num-seqs", engine.max_num_seqs)
        if engine.enforce_eager:
            default("--enforce-eager", True, "--no-enforce-eager")  # noqa: FBT003  a flag
        for (name, short), size in zip(_PARALLEL.items(), engine.parallel.values(), strict=True):
            if size > 1:
                default(name, size, short)
    graphs = min(max(batches, default=0), MOST_MIXED_TOKENS)
    if not on_cpu and "--enforce-eager" not in added and graphs > _USUAL_GRAPH_TOKENS:
        default("--max-cudagraph-capture-size", graphs, *_GRAPHS)
    if model is not None:
        default("--dtype", model.dtype)
        default("--max-model-len", model.max_model_len)
    if on_cpu:
        if model is None:
            default("--dtype", "auto" if has_fast_bf16() else "float32")
        default("--kv-cache-memory-bytes", CPU_KV_CACHE_BYTES, "--gpu-memory-utilization")
        if not added.keys() & _PARALLEL.keys():
            sizes = (*_PARALLEL, *_PARALLEL.values())
            default("--distributed-executor-backend", "uni", *sizes)
    return added


def with_needed_type(model: str, options: Sequence[str]) -> list[str]:
    """``options`` and, where they name no data type, the model's own if a CPU computes no other.

    vLLM's CPU kernels for gated delta nets are for bfloat16 alone. Raises EngineError when there
    is no such model.
    """
    if given(options, "--dtype"):
        return [*options]
    config = config_of(
        model, value_of(options, "--hf-config-path"), value_of(options, "--revision")
    )
    parts = (config, config.get("text_config") or {})
    is_gated_delta_net = any("linear_num_value_heads" in part for part in parts)
    return [*options, "--dtype", "auto"] if is_gated_delta_net else [*options]


def use_every_core() -> None:
    """Stop vLLM's CPU worker from leaving a core to the front end, unless told to."""
    os.environ.setdefault("VLLM_CPU_OMP_THREADS_BIND", "nobind")


def parse_serve(model: str, options: Sequence[str]) -> argparse.Namespace:
    """What ``vllm serve MODEL OPTIONS`` would parse to; raises EngineError."""
    parser, _, command = _parsers()
    arguments = parser.parse_args(["serve", model, *options])
    arguments.model = model
    arguments.command = command
    try:
        command.validate(arguments)
    except (ValueError, TypeError) as error:
        raise EngineError(f"vLLM: {one_line(error)}") from error
    return arguments


def _parsers() -> tuple[Any, Any, Any]:
    """The parser of ``vllm``'s commands, that of ``vllm serve``, and what runs it."""
    from nexus.runtime.vllm.compat import FlexibleArgumentParser, cmd_init

    (command,) = cmd_init()
    parser = FlexibleArgumentParser(prog="nexus")
    serve = command.subparser_init(parser.add_subparsers())
    for each in (parser, serve):
        each.error = _refuse
    return parser, serve, command


def parse_profile(model: str, options: Sequence[str]) -> argparse.Namespace:
    """What the options of an engine without a server parse to; raises EngineError."""
    from nexus.runtime.vllm.compat import EngineArgs, FlexibleArgumentParser

    parser = EngineArgs.add_cli_args(FlexibleArgumentParser(prog="nexus profile"))
    parser.error = _refuse
    parsed: argparse.Namespace = parser.parse_args(["--model", model, *options])
    return parsed


def parse_engine(model: str, options: Sequence[str]) -> Any:
    """The same options as vLLM's ``EngineArgs``; raises EngineError."""
    from nexus.runtime.vllm.compat import EngineArgs

    return EngineArgs.from_cli_args(parse_profile(model, options))


def one_line(error: BaseException) -> str:
    """The gist of vLLM's (often pydantic's, often long) complaint."""
    if isinstance(error, ValidationError):
        return first_problem(error, whole="")
    return _gist(str(error)) or repr(error)


def _gist(text: str) -> str:
    """The first line and what else fits, up to what pydantic adds for developers."""
    first = text.strip().partition("\n")[0]
    told = " ".join(text.split()).partition(" [type=")[0]
    return textwrap.shorten(told, max(len(first) + 4, _MOST_WORDS), placeholder=" ...")


@contextmanager
def quietly() -> Iterator[None]:
    """Log nothing meanwhile: what matters is raised, or said again later."""
    before = logging.root.manager.disable
    logging.disable(logging.ERROR)
    try:
        yield
    finally:
        logging.disable(before)


def _refuse(message: str) -> NoReturn:
    raise EngineError(f"vLLM: {_gist(message)}")
