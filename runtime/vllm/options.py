"""vLLM's command-line options: parsed by vLLM, with the defaults that Nexus adds.

Whatever the user gives wins. Nexus adds only what a plan or a CPU needs:

- on a CPU: the data type that is fast there, where the model can be computed in it, a KV cache
  of fixed size (vLLM's own default claims nearly all memory and refuses to start beside other
  programs), one process for engine and worker, and every core;
- from a profile or plan: the engine limits, parallel sizes and data type it was measured with;
- on a GPU: CUDA graphs for the plan's batches. vLLM makes them up to 512 tokens, and where a
  host is slow, launching a longer step operator by operator takes it longer than the step.
"""

import argparse
import os
from collections.abc import Sequence
from typing import Any, NoReturn

from nexus.errors import EngineError
from nexus.profiles.schema import PARALLEL_SIZES, Engine, Model
from nexus.runtime.machine import config_of, has_fast_bf16
from nexus.runtime.vllm.graph_sizes import MOST_MIXED_TOKENS

CPU_KV_CACHE_BYTES = 1 << 30
_USUAL_GRAPH_TOKENS = 512
_GRAPHS = (
    *("--max-cudagraph-capture-size", "--cudagraph-capture-sizes", "--enforce-eager"),
    *("--compilation-config", "-cc", "-O", "--optimization-level"),
)
_PARALLEL = {
    f"--{name.replace('_', '-')}": f"-{''.join(word[0] for word in name.split('_')[:-1])}"
    for name in PARALLEL_SIZES
}
"""vLLM's options for the parallel sizes, long and short."""


def spelled(option: str) -> str:
    """An option's name, without a value that follows ``=``: ``--max_num_seqs=8`` is, as to vLLM,
    ``--max-num-seqs``.
    """
    name = option.partition("=")[0]
    return name.replace("_", "-") if name.startswith("--") else name


def given(options: Sequence[str], *names: str) -> bool:
    """Whether any of ``names`` is among the options, in any spelling."""
    return any(spelled(option) in names for option in options)


def value_of(options: Sequence[str], name: str) -> str | None:
    """What an option is given as, None where it is not; of several the last, as to vLLM."""
    found = None
    for option, following in zip(options, [*options, ""][1:], strict=True):
        if spelled(option) == name:
            _, mark, value = option.partition("=")
            found = value if mark else following
    return found


def with_defaults(
    options: Sequence[str],
    on_cpu: bool,
    model: Model | None = None,
    engine: Engine | None = None,
    batches: Sequence[int] = (),
) -> list[str]:
    """``options`` and, where they do not say otherwise, the defaults above.

    ``batches``: the tokens of the plan's fused modes. Raises EngineError for --config beside a
    plan: what that file says would be overridden.
    """
    if engine is not None and given(options, "--config"):
        raise EngineError("--config cannot be combined with --table: give its options instead")
    added: list[str] = []

    def default(name: str, value: str | None = None) -> None:
        if not given(options, name):
            added.extend([name] if value is None else [name, value])

    if engine is not None:
        default("--max-num-batched-tokens", str(engine.max_num_batched_tokens))
        default("--max-num-seqs", str(engine.max_num_seqs))
        if engine.enforce_eager and not given(options, "--no-enforce-eager"):
            default("--enforce-eager")
        for (name, short), size in zip(_PARALLEL.items(), engine.parallel.values(), strict=True):
            if size > 1 and not given(options, short):
                default(name, str(size))
    graphs = min(max(batches, default=0), MOST_MIXED_TOKENS)
    eager = any(spelled(option).startswith(_GRAPHS) for option in (*options, *added))
    if not on_cpu and not eager and graphs > _USUAL_GRAPH_TOKENS:
        default("--max-cudagraph-capture-size", str(graphs))
    if model is not None:
        default("--dtype", model.dtype)
        default("--max-model-len", str(model.max_model_len))
    if on_cpu:
        if model is None:
            default("--dtype", "auto" if has_fast_bf16() else "float32")
        if not given(options, "--gpu-memory-utilization"):
            default("--kv-cache-memory-bytes", str(CPU_KV_CACHE_BYTES))
        if not given([*options, *added], *_PARALLEL, *_PARALLEL.values()):
            default("--distributed-executor-backend", "uni")
    return [*options, *added]


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
    from vllm.entrypoints.cli.serve import cmd_init
    from vllm.utils.argparse_utils import FlexibleArgumentParser

    (command,) = cmd_init()
    parser = FlexibleArgumentParser(prog="nexus")
    serve = command.subparser_init(parser.add_subparsers())
    for each in (parser, serve):
        each.error = _refuse
    arguments = parser.parse_args(["serve", model, *options])
    arguments.model = model
    arguments.command = command
    try:
        command.validate(arguments)
    except (ValueError, TypeError) as error:
        raise EngineError(f"vLLM: {one_line(error)}") from error
    return arguments


def parse_profile(model: str, options: Sequence[str]) -> argparse.Namespace:
    """What the options of an engine without a server parse to; raises EngineError."""
    from vllm.engine.arg_utils import EngineArgs
    from vllm.utils.argparse_utils import FlexibleArgumentParser

    parser = EngineArgs.add_cli_args(FlexibleArgumentParser(prog="nexus profile"))
    parser.error = _refuse
    parsed: argparse.Namespace = parser.parse_args(["--model", model, *options])
    return parsed


def parse_engine(model: str, options: Sequence[str]) -> Any:
    """The same options as vLLM's ``EngineArgs``; raises EngineError."""
    from vllm.engine.arg_utils import EngineArgs

    return EngineArgs.from_cli_args(parse_profile(model, options))


def one_line(error: BaseException) -> str:
    """The gist of vLLM's (often pydantic's, often long) complaint."""
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    told = [line for line in lines if line.startswith("Value error, ")]
    text = told[0].removeprefix("Value error, ") if told else (lines[0] if lines else repr(error))
    return text.partition(" [type=")[0]


def _refuse(message: str) -> NoReturn:
    raise EngineError(f"vLLM: {message}")
