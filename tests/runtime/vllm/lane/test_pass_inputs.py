"""What a pass reads: its rows, and padding that is written nowhere."""

import torch
from hypothesis import given
from hypothesis import strategies as st

from nexus.runtime.vllm.lane.pass_inputs import FlatRows, PassInputs, Row, flatten

TOKENS, ROWS, COLUMNS = 64, 4, 16


def flat(lengths: list[int], context: int = 0) -> FlatRows:
    rows, block = [], 1
    for length in lengths:
        count = -(-(length + context) // 4)
        rows.append(Row(list(range(5, 5 + length)), context, (list(range(block, block + count)),)))
        block += count
    return flatten(rows, [4], [1])


@given(st.lists(st.integers(1, 15), min_size=1, max_size=ROWS), st.integers(0, 4))
def test_rows_come_first_and_padding_is_written_nowhere(lengths: list[int], more: int) -> None:
    inputs = PassInputs(torch.device("cpu"), TOKENS, ROWS, [COLUMNS])
    inputs.write(flat([16, 16, 16, 16]), TOKENS, ROWS)  # what came before must not be seen
    batch = flat(lengths, context=3)
    total = sum(lengths)
    size = min(TOKENS, total + more)
    tensors = inputs.write(batch, size, ROWS)
    assert tensors.input_ids[:total].tolist() == batch.input_ids.tolist()
    assert tensors.positions[:total].tolist() == batch.positions.tolist()
    assert tensors.slots[0][:total].tolist() == batch.slots[0].tolist()
    assert set(tensors.slots[0][total:].tolist()) <= {-1}
    starts, rows = tensors.query_start_loc.tolist(), len(lengths)
    assert starts[: rows + 1] == batch.query_start_loc.tolist()
    assert set(starts[rows:]) == {total}  # the others have no tokens
    assert tensors.seq_lens.tolist() == batch.seq_lens.tolist() + [0] * (ROWS - rows)
    table = tensors.block_tables[0][:rows]
    width = batch.block_tables[0].shape[1]
    assert table[:, :width].tolist() == batch.block_tables[0].tolist()
    assert not table[:, width:].any()


def test_a_pass_always_reads_the_same_memory() -> None:
    inputs = PassInputs(torch.device("cpu"), TOKENS, ROWS, [COLUMNS, 8])
    twice = flatten([Row([1, 2], 0, ([1], [2]))], [4, 4], [1, 1])
    first, second = (inputs.write(twice, 16, ROWS) for _ in range(2))
    assert first.input_ids.data_ptr() == second.input_ids.data_ptr()
    assert first.block_tables[1].data_ptr() == second.block_tables[1].data_ptr()
    start = first.input_ids.data_ptr()
    arrays = (first.positions, first.seq_lens, *first.slots, *first.block_tables)
    assert all((array.data_ptr() - start) % 256 == 0 for array in arrays)
