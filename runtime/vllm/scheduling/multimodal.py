"""Prompt tokens of a step, so that no multimodal item is cut where vLLM would not cut it."""

from collections.abc import Sequence

from nexus.runtime.vllm.compat import Request


def chunk_of_whole_items(chunk: int, most: int, prompts: Sequence[tuple[Request, int]]) -> int:
    """``chunk``, or more, up to ``most``, where an item needs more; less where that is not enough.

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
            wanted = taken + start + length - computed
            if start <= computed < start + length and wanted > chunk:
                if wanted > most:
                    return taken or most
                # With a larger chunk, prompts before the item may take more of it.
                return chunk_of_whole_items(wanted, most, prompts)
        end = min(request.num_tokens, computed + chunk - taken)
        end = min((s for s, length in spans if computed < s < end < s + length), default=end)
        taken += end - computed
    return chunk
