"""How many tokens texts have: counted with a model's tokenizer, or estimated."""

from collections.abc import Callable
from pathlib import Path

import numpy as np

from nexus.core.arrays import Ints
from nexus.core.errors import UserError

_BATCH = 1000  # texts encoded at once


def counter_of(tokenizer: str) -> Callable[[list[str]], Ints]:
    """What counts the tokens of texts; raises UserError.

    ``tokenizer`` is a number of tokens per character, or a model's folder or hub id.
    """
    try:
        per_character = float(tokenizer)
    except ValueError:
        return _counter_of_model(tokenizer)
    if not 0 < per_character <= 1e3:
        raise UserError(f"--tokenizer {tokenizer}: wanted are tokens per character, as 0.25")
    return lambda texts: np.array(
        [round(per_character * len(text)) or bool(text) for text in texts], dtype=np.int64
    )


def _counter_of_model(model: str) -> Callable[[list[str]], Ints]:
    try:
        from tokenizers import Tokenizer
    except ImportError:
        raise UserError(
            "--tokenizer MODEL needs the package tokenizers; or give tokens per character, as 0.25"
        ) from None
    file = Path(model) / "tokenizer.json"
    try:
        found = (
            Tokenizer.from_file(str(file)) if file.exists() else Tokenizer.from_pretrained(model)
        )
    except Exception as error:
        reason = str(error).strip().splitlines()[:1]
        raise UserError(f"--tokenizer {model}: {': '.join(reason) or 'no tokenizer'}") from error

    def count(texts: list[str]) -> Ints:
        lengths: list[int] = []
        for start in range(0, len(texts), _BATCH):
            lengths += map(len, found.encode_batch(texts[start : start + _BATCH]))
        return np.array(lengths, dtype=np.int64)

    return count
