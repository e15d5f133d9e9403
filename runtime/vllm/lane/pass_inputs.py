"""The rows of a forward pass, and the arrays that it reads.

Rows are laid end to end as vLLM's kernels take them, and then copied to the same arrays on the
device every time, as a CUDA graph needs.
"""

from collections import deque
from collections.abc import Sequence
from dataclasses import dataclass
from math import prod
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

BLOCK_COLUMNS = 8  # block tables are padded to a multiple of this, with vLLM's null block
_ALIGNMENT = 256  # bytes; what cudaMalloc gives, and kernels expect of a tensor
_COPIES = 4  # in pinned memory: more than passes under way, so that none is waited for
_NO_SLOT = -1  # vLLM's mark of a token that is not written to the KV cache

_Layout = tuple[tuple[torch.dtype, tuple[int, ...], int], ...]


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


def trace_arguments(rows: Sequence[Row]) -> dict[str, Any]:
    """What a trace says of a pass; ``ends``: ids of the prompts that it was the last of."""
    return {
        "prompts": len(rows),
        "tokens": sum(len(row.tokens) for row in rows),
        "ends": [row.ends for row in rows if row.ends is not None],
    }


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


@dataclass(frozen=True)
class PassTensors:
    """Views of the lane's arrays for a pass of ``T`` tokens and ``R`` rows, padding included.

    ``input_ids`` int32 ``[T]``, ``positions`` int64 ``[T]``, ``query_start_loc`` int32
    ``[R + 1]``, ``seq_lens`` int32 ``[R]``; per KV cache group ``slots`` int64 ``[T]`` and
    ``block_tables`` int32 ``[R, columns]``.
    """

    input_ids: torch.Tensor
    positions: torch.Tensor
    query_start_loc: torch.Tensor
    seq_lens: torch.Tensor
    slots: tuple[torch.Tensor, ...]
    block_tables: tuple[torch.Tensor, ...]

    def cut(self, tokens: int, rows: int) -> "PassTensors":
        """The same for fewer tokens and rows."""
        return PassTensors(
            self.input_ids[:tokens],
            self.positions[:tokens],
            self.query_start_loc[: rows + 1],
            self.seq_lens[:rows],
            tuple(slots[:tokens] for slots in self.slots),
            tuple(table[:rows] for table in self.block_tables),
        )


_Host = tuple[torch.Tensor, PassTensors, torch.cuda.Event | None]  # memory, views, when copied


class PassInputs:
    """Written anew for each pass, by one copy to the device."""

    def __init__(
        self, device: torch.device, max_tokens: int, max_rows: int, columns: Sequence[int]
    ) -> None:
        """``columns`` of the block table, per KV cache group."""
        layout, size = _layout(max_tokens, max_rows, columns)
        self._groups = len(columns)
        memory = torch.zeros(size, dtype=torch.uint8, device=device)
        self.tensors = _tensors(memory, layout, self._groups)
        self._device: torch.Tensor | None = None
        hosts = [memory]
        if device.type != "cpu":
            self._device = memory
            hosts = [torch.zeros(size, dtype=torch.uint8, pin_memory=True) for _ in range(_COPIES)]
        self._hosts: deque[_Host] = deque(
            (host, _tensors(host, layout, self._groups), None) for host in hosts
        )

    def write(self, batch: FlatRows, tokens: int, rows: int) -> PassTensors:
        """Copy ``batch`` to the device on the current stream, padded to ``tokens`` and ``rows``.

        A padding token is written nowhere and a padding row has no tokens.
        """
        host, arrays, copied = self._hosts.popleft()
        if copied is not None:
            copied.synchronize()
        _fill(arrays.cut(tokens, rows), batch)
        if self._device is not None:
            last = arrays.block_tables[-1][: len(batch.seq_lens)]
            end = last.data_ptr() + last.nbytes - host.data_ptr()
            self._device[:end].copy_(host[:end], non_blocking=True)
            copied = torch.cuda.Event()
            copied.record()
        self._hosts.append((host, arrays, copied))
        return self.tensors.cut(tokens, rows)


def _layout(max_tokens: int, max_rows: int, columns: Sequence[int]) -> tuple[_Layout, int]:
    """Type, shape and offset of each array, block tables last, and the bytes of all."""
    shapes: list[tuple[torch.dtype, tuple[int, ...]]] = [
        (torch.int32, (max_tokens,)),
        (torch.int64, (max_tokens,)),
        (torch.int32, (max_rows + 1,)),
        (torch.int32, (max_rows,)),
        *((torch.int64, (max_tokens,)) for _ in columns),
        *((torch.int32, (max_rows, count)) for count in columns),
    ]
    layout, offset = [], 0
    for dtype, shape in shapes:
        layout.append((dtype, shape, offset))
        offset += -(-prod(shape) * dtype.itemsize // _ALIGNMENT) * _ALIGNMENT
    return tuple(layout), offset


def _tensors(memory: torch.Tensor, layout: _Layout, groups: int) -> PassTensors:
    arrays = [
        memory[offset : offset + prod(shape) * dtype.itemsize].view(dtype).view(shape)
        for dtype, shape, offset in layout
    ]
    input_ids, positions, starts, seq_lens, *rest = arrays
    return PassTensors(
        input_ids, positions, starts, seq_lens, tuple(rest[:groups]), tuple(rest[groups:])
    )


def _fill(arrays: PassTensors, batch: FlatRows) -> None:
    _pad(arrays.input_ids, batch.input_ids, 0)
    _pad(arrays.positions, batch.positions, 0)
    _pad(arrays.query_start_loc, batch.query_start_loc, int(batch.query_start_loc[-1]))
    _pad(arrays.seq_lens, batch.seq_lens, 0)
    for tensor, slots in zip(arrays.slots, batch.slots, strict=True):
        _pad(tensor, slots, _NO_SLOT)
    for tensor, table in zip(arrays.block_tables, batch.block_tables, strict=True):
        array = tensor.numpy()
        array[: len(table), : table.shape[1]] = table
        array[: len(table), table.shape[1] :] = 0


def _pad(tensor: torch.Tensor, values: NDArray[np.int32] | NDArray[np.int64], pad: int) -> None:
    array = tensor.numpy()
    array[: len(values)] = values
    array[len(values) :] = pad
