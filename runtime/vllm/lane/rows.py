"""The rows of a forward pass, and the flat arrays that vLLM's kernels take."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

BLOCK_COLUMNS = 8  # block tables are padded to a multiple of this, with vLLM's null block


@dataclass(frozen=True)
class Row:
    """Consecutive prompt tokens of one request.

    ``tokens``: the token ids to compute; ``context``: how many tokens of the request are
    in the KV cache already; ``blocks``: per KV cache group, the ids of the blocks that
    hold the request from its first token to the last of ``tokens``; ``ends``: the request's
    id where these are its last tokens on the lane.
    """

    tokens: Sequence[int]
    context: int
    blocks: tuple[Sequence[int], ...]
    ends: str | None = None


@dataclass(frozen=True)
class FlatRows:
    """Rows laid end to end; ``T`` tokens, ``R`` rows.

    ``input_ids`` int32 ``[T]``, ``positions`` int64 ``[T]``, ``query_start_loc`` int32
    ``[R + 1]``, ``contexts`` and ``seq_lens`` int32 ``[R]``; per KV cache group a
    ``block_tables`` int32 ``[R, columns]`` and ``slots`` int64 ``[T]``.
    """

    input_ids: NDArray[np.int32]
    positions: NDArray[np.int64]
    query_start_loc: NDArray[np.int32]
    contexts: NDArray[np.int32]
    seq_lens: NDArray[np.int32]
    block_tables: tuple[NDArray[np.int32], ...]
    slots: tuple[NDArray[np.int64], ...]

    @property
    def max_query_len(self) -> int:
        """Tokens of the longest row."""
        return int(np.diff(self.query_start_loc).max())

    @property
    def max_seq_len(self) -> int:
        """Tokens of the longest row, its context included."""
        return int(self.seq_lens.max())


def flatten(rows: Sequence[Row], block_sizes: Sequence[int], splits: Sequence[int]) -> FlatRows:
    """Lay ``rows`` end to end.

    Per KV cache group, ``block_sizes`` is the tokens of a block, and ``splits`` the
    kernel blocks that the attention backend sees in one.
    """
    lengths = np.array([len(row.tokens) for row in rows], dtype=np.int32)
    contexts = np.array([row.context for row in rows], dtype=np.int32)
    starts = np.zeros(len(rows) + 1, dtype=np.int32)
    np.cumsum(lengths, out=starts[1:])
    positions = np.concatenate(
        [np.arange(row.context, row.context + len(row.tokens), dtype=np.int64) for row in rows]
    )
    return FlatRows(
        input_ids=np.concatenate([np.asarray(row.tokens, dtype=np.int32) for row in rows]),
        positions=positions,
        query_start_loc=starts,
        contexts=contexts,
        seq_lens=contexts + lengths,
        block_tables=tuple(
            _block_table([row.blocks[group] for row in rows], split)
            for group, split in enumerate(splits)
        ),
        slots=tuple(
            np.concatenate([_slots(row, group, size) for row in rows])
            for group, size in enumerate(block_sizes)
        ),
    )


def _block_table(blocks: Sequence[Sequence[int]], split: int) -> NDArray[np.int32]:
    columns = max(len(ids) for ids in blocks) * split
    columns = -(-columns // BLOCK_COLUMNS) * BLOCK_COLUMNS
    table = np.zeros((len(blocks), columns), dtype=np.int32)
    for row, ids in zip(table, blocks, strict=True):
        expanded = np.asarray(ids, dtype=np.int32)[:, None] * split + np.arange(split)
        row[: expanded.size] = expanded.ravel()
    return table


def _slots(row: Row, group: int, block_size: int) -> NDArray[np.int64]:
    positions = np.arange(row.context, row.context + len(row.tokens), dtype=np.int64)
    ids: NDArray[Any] = np.asarray(row.blocks[group], dtype=np.int64)
    return ids[positions // block_size] * block_size + positions % block_size
