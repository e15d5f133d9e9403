"""A tokenizer for a model that is only a shape, so that it can be served as a model is."""

import json
from pathlib import Path

_TOKENIZERS = ("tokenizer.json", "tokenizer.model", "tokenizer_config.json", "vocab.json")


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
