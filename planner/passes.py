"""Which sizes passes on the prefill lane are padded to: each has a CUDA graph of its own."""

_SHORTEST_PASS = 64
_STEP = 128
"""Tokens. GEMMs compute in tiles of as many rows, so padding to them costs next to nothing."""


def pass_sizes(chunk: int) -> list[int]:
    """Tokens of the graphs that passes of up to ``chunk`` tokens are padded to.

    Steps grow with the size, so that padding stays below an eighth beyond 1,024 tokens.
    """
    sizes, size = [], _SHORTEST_PASS
    while size < chunk:
        sizes.append(size)
        step = max(_STEP, 1 << (size // 8).bit_length() - 1)
        size = (size // step + 1) * step
    return [*sizes, chunk]
