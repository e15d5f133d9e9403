import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from nexus.runtime.vllm.lane.pass_inputs import BLOCK_COLUMNS, Row, flatten


def test_two_rows_are_laid_end_to_end() -> None:
    rows = [Row([5, 6, 7], 0, ([3],)), Row([8, 9], 5, ([9, 1],))]
    flat = flatten(rows, [4], [1])
    assert flat.input_ids.tolist() == [5, 6, 7, 8, 9]
    assert flat.positions.tolist() == [0, 1, 2, 5, 6]
    assert flat.query_start_loc.tolist() == [0, 3, 5]
    assert flat.seq_lens.tolist() == [3, 7]
    assert flat.slots[0].tolist() == [12, 13, 14, 5, 6]
    assert flat.block_tables[0][:, :2].tolist() == [[3, 0], [9, 1]]
    assert (flat.max_query_len, flat.max_seq_len) == (3, 7)


def test_large_blocks_are_split_for_the_backend() -> None:
    flat = flatten([Row([1] * 9, 0, ([4, 2],))], [8], [2])
    assert flat.block_tables[0][0, :4].tolist() == [8, 9, 4, 5]
    assert flat.slots[0].tolist() == [*range(32, 40), 16]


@given(
    st.lists(st.tuples(st.integers(1, 40), st.integers(0, 60)), min_size=1, max_size=5),
    st.sampled_from([1, 4, 16]),
    st.sampled_from([1, 2]),
)
def test_every_token_has_its_own_slot_in_its_own_block(
    shapes: list[tuple[int, int]], size: int, split: int
) -> None:
    rows, block = [], 1
    for tokens, context in shapes:
        count = -(-(tokens + context) // size)
        rows.append(Row(list(range(tokens)), context, (list(range(block, block + count)),)))
        block += count
    flat = flatten(rows, [size], [split])
    assert len(set(flat.slots[0].tolist())) == len(flat.positions)
    owner = np.repeat(np.arange(len(rows)), np.diff(flat.query_start_loc))
    for slot, row in zip(flat.slots[0], owner, strict=True):
        assert slot // size in rows[row].blocks[0]
    assert flat.block_tables[0].shape[1] % BLOCK_COLUMNS == 0


def test_blocks_must_reach_the_last_token() -> None:
    with pytest.raises(IndexError):
        flatten([Row([1] * 9, 0, ([4],))], [8], [1])
