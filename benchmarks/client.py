"""``vllm bench serve``, called from Python, in a process of its own that can be stopped.

A fork server imports vLLM's client once; every run is a fork of it.
"""

import json
import multiprocessing
import os
import sys
import time
from collections.abc import Callable
from contextlib import redirect_stderr, redirect_stdout
from multiprocessing.process import BaseProcess
from pathlib import Path
from typing import Any

from nexus.benchmarks.workloads import as_timed_trace, chunk_of
from nexus.core.errors import EngineError
from nexus.planner.workload.requests import Requests

_CLIENT = "vllm.benchmarks.serve"
_GLANCE_S = 0.5
_TOKENIZERS = ("tokenizer.json", "tokenizer.model", "tokenizer_config.json", "vocab.json")


class RunError(EngineError):
    """A run brought no result: the client failed, took too long, or its server died."""


class TooSlowError(RunError):
    """A run was not done in its time; the server may well be fine."""


class TokenIds:
    """A tokenizer whose ``decode`` leaves ids as they are.

    vLLM 0.26 turns the trace's token ids into text, which a server encodes to another
    number of tokens; later releases send the ids. With this, so does 0.26.
    """

    def __init__(self, tokenizer: Any) -> None:
        """``tokenizer`` answers everything else."""
        self._tokenizer = tokenizer

    def __getattr__(self, name: str) -> Any:
        return getattr(self._tokenizer, name)

    def decode(self, token_ids: list[int], **_: Any) -> list[int]:
        """The very ids."""
        return token_ids


def replay(
    model: str,
    port: int,
    requests: Requests,
    folder: Path,
    limit_s: float,
    check: Callable[[], None],
    run: int = 0,
) -> dict[str, Any]:
    """Send the requests at their times; vLLM's result with its details.

    ``check`` is called twice a second and raises when the server is gone. Prompts of another
    ``run`` have other tokens. Writes to ``folder``; raises TooSlowError after ``limit_s``,
    RunError when the client fails.
    """
    result, log, trace = folder / "result.json", folder / "client.log", folder / "trace.jsonl"
    result.unlink(missing_ok=True)
    trace.write_text(as_timed_trace(requests, run), encoding="utf-8")
    argv = [
        *("--backend", "openai", "--endpoint", "/v1/completions"),
        *("--host", "127.0.0.1", "--port", str(port), "--model", model),
        *("--dataset-name", "timed_trace", "--dataset-path", str(trace)),
        *("--timed-trace-chunk-hash-size", str(chunk_of(requests))),
        *("--num-prompts", str(len(requests.arrivals_s))),
        *("--temperature", "0", "--percentile-metrics", "ttft,tpot,itl", "--disable-tqdm"),
        *("--save-result", "--save-detailed", "--result-dir", str(folder)),
        *("--result-filename", result.name),
    ]
    process = _fork_server().Process(target=_run, args=(argv, log), daemon=True)
    process.start()
    try:
        _join(process, limit_s, check)
    finally:
        _stop(process)
    if process.exitcode != 0 or not result.exists():
        raise RunError(f"the client failed: {_last_line(log)}")
    found: dict[str, Any] = json.loads(result.read_text(encoding="utf-8"))
    return found


def _run(argv: list[str], log: Path) -> None:
    with log.open("w", encoding="utf-8") as file, redirect_stdout(file), redirect_stderr(file):
        from vllm.benchmarks import serve
        from vllm.utils.argparse_utils import FlexibleArgumentParser

        stock = serve.get_samples
        serve.get_samples = lambda args, tokenizer: stock(args, TokenIds(tokenizer))
        parser = FlexibleArgumentParser()
        serve.add_cli_args(parser)
        serve.main(parser.parse_args(argv))


def _join(process: BaseProcess, limit_s: float, check: Callable[[], None]) -> None:
    end = time.monotonic() + limit_s
    while process.is_alive():
        process.join(_GLANCE_S)
        if process.is_alive():
            check()
            if time.monotonic() > end:
                raise TooSlowError(f"not done after {limit_s:.0f} s")


def _stop(process: BaseProcess) -> None:
    if process.is_alive():
        process.kill()
    process.join()


def _last_line(log: Path) -> str:
    lines = log.read_text(encoding="utf-8", errors="replace").splitlines() if log.exists() else []
    return next((line.strip() for line in reversed(lines) if line.strip()), "it said nothing")


def prepare() -> None:
    """Begin to import vLLM's client, beside whatever else has to start."""
    _fork_server()


def _fork_server() -> Any:
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload([_CLIENT])
    from multiprocessing import forkserver

    # vLLM seeds a prompt's tokens with ``hash`` of a string: the same in every run.
    before = os.environ.get("PYTHONHASHSEED")
    os.environ["PYTHONHASHSEED"] = "0"
    try:
        with redirect_stdout(sys.stderr):
            forkserver.ensure_running()
    finally:
        os.environ.pop("PYTHONHASHSEED")
        if before is not None:
            os.environ["PYTHONHASHSEED"] = before
    return context


def with_tokenizer(model: str, folder: Path) -> str:
    """``model``, or where it is a folder without a tokenizer, a copy in ``folder`` with one.

    One word a token, over the whole vocabulary of its ``config.json``: text and ids then
    tell each other exactly, and a server has its usual work with both.
    """
    source = Path(model)
    if not (source / "config.json").is_file() or any((source / n).exists() for n in _TOKENIZERS):
        return model
    from tokenizers import Tokenizer, models, pre_tokenizers
    from transformers import PreTrainedTokenizerFast

    copy = folder / source.resolve().name
    copy.mkdir(exist_ok=True, parents=True)
    for file in filter(Path.is_file, source.iterdir()):
        (copy / file.name).unlink(missing_ok=True)
        (copy / file.name).symlink_to(file.resolve())
    size = json.loads((source / "config.json").read_text(encoding="utf-8"))["vocab_size"]
    special = {"unk_token": "w0", "bos_token": "w1", "eos_token": "w2"}
    vocabulary = {f"w{number}": number for number in range(size)}
    words = Tokenizer(models.WordLevel(vocabulary, unk_token=special["unk_token"]))
    words.pre_tokenizer = pre_tokenizers.Whitespace()
    PreTrainedTokenizerFast(tokenizer_object=words, **special).save_pretrained(copy)
    return str(copy)
