"""Prompt tokens of a step, so that no multimodal item is cut where vLLM would not cut it."""

from collections.abc import Iterable

from vllm.v1.request import Request


def chunk_of_whole_items(chunk: int, prompts: Iterable[tuple[Request, int]]) -> int:
    """``chunk``, or as many tokens more as the items need at which ``prompts`` have arrived.

    ``prompts`` are in the order in which they have tokens of the step, each with the number of
    its tokens that are computed or cached. With ``--disable-chunked-mm-input`` vLLM ends a
    prompt's tokens before an item that does not fit in the step as a whole; of an item that
    comes first it takes what there is room for, as its own budget is larger than any item.
    """
    taken = 0
    for request, computed in prompts:
        if taken >= chunk:
            break
        spans = [(f.mm_position.offset, f.mm_position.length) for f in request.mm_features]
        for start, length in spans:
            if start <= computed < start + length:
                chunk = max(chunk, taken + start + length - computed)
        end = min(request.num_tokens, computed + chunk - taken)
        end = min((s for s, length in spans if computed < s < end < s + length), default=end)
        taken += end - computed
    return chunk
