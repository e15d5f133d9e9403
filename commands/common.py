"""What the commands share: the model and vLLM's options, and defaults that are said."""

from pathlib import Path
from typing import Annotated

import typer

from nexus.core.errors import UserError
from nexus.core.io.outputs import check_writable
from nexus.core.io.terminal import assume

# For commands that hand what they do not know on to vLLM.
PASS_ON = {"allow_extra_args": True, "ignore_unknown_options": True}
Rest = Annotated[
    list[str] | None,
    typer.Argument(
        metavar="MODEL] [VLLM OPTION",
        help="A folder or hub id, which comes first; then any option of vLLM.",
    ),
]


def model_and_options(
    rest: list[str] | None, output: Path | None = None
) -> tuple[str | None, list[str]]:
    """The model, if one is named, and the options meant for vLLM, those of ``--config`` first.

    Raises UserError, also where ``output`` would overwrite a file that is named.
    """
    from nexus.runtime.vllm.options import files_of, from_file, without

    words = list(rest or [])
    model = words.pop(0) if words and not words[0].startswith("-") else None
    if output is not None:
        check_writable(output, *files_of(model, words))
    models, options = without(from_file(words), "--model")
    return model or (models[-1] if models else None), options


def demo_model() -> str:
    """The demo's model, said to be assumed."""
    from nexus.demo.model import ensure_demo_model

    model = str(ensure_demo_model())
    assume(f"model {model} (the demo's)")
    return model


def profile_here() -> Path:
    """``profile.yaml`` in this folder, else a shipped profile of this machine."""
    from nexus.profiles.shipped import PROFILE_HERE, profile_of
    from nexus.runtime.machine import this_machine

    if PROFILE_HERE.exists():
        assume(f"profile {PROFILE_HERE}")
        return PROFILE_HERE
    found = profile_of(this_machine())
    if found is None:
        raise UserError("no profile given, no ./profile.yaml, none shipped for this machine")
    assume(f"profile {found} (shipped)")
    return found
