"""The rules of the prefill lane, as the server and the simulator follow them."""

MAX_PASSES = 2
"""Passes that are launched and not over, at most."""

PASSES_AHEAD = 3
"""A prompt goes to the lane, and is given KV blocks, when at most as many passes' tokens
go before it: one to replace each pass under way, and one while the step's report travels."""

MIN_LANE_TOKENS = 32
"""Shorter prompts cost a fused step next to nothing, and wait for no pass there."""

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
