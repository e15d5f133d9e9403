import pytest
from hypothesis import assume, given
from hypothesis import strategies as st

from nexus.core.errors import PartitionError
from nexus.runtime.partition.base import Partition, group_for, group_of_split, group_sizes


def test_a_split_is_disjoint_and_an_overlap_is_not() -> None:
    assert Partition(80, 48, 132).disjoint
    assert not Partition(80, 132, 132).disjoint


@pytest.mark.parametrize(
    ("prefill", "decode", "group"),
    [(80, 52, 80), (84, 48, 80), (66, 66, 64), (130, 2, 128), (2, 130, 8), (48, 48, 48)],
)
def test_a_pair_comes_as_near_as_the_driver_allows(prefill: int, decode: int, group: int) -> None:
    assert group_of_split(prefill, decode, 8, 132) == group


def test_two_sm_steps_give_every_even_pair_exactly() -> None:
    for decode in range(2, 132, 2):
        assert group_of_split(132 - decode, decode, 2, 132) == 132 - decode


@given(st.integers(1, 131), st.integers(1, 131), st.sampled_from([1, 2, 8, 16]))
def test_both_sides_get_sms(prefill: int, decode: int, step: int) -> None:
    assume(prefill + decode <= 132)
    group = group_of_split(prefill, decode, step, 132)
    assert 0 < group < 132
    assert group % step == 0


@pytest.mark.parametrize(("prefill", "decode"), [(100, 40), (0, 8), (8, 0), (-8, 8)])
def test_impossible_pairs_are_refused(prefill: int, decode: int) -> None:
    with pytest.raises(PartitionError):
        group_of_split(prefill, decode, 8, 132)


@pytest.mark.parametrize(("sms", "size"), [(48, 48), (50, 56), (1, 8), (129, 132), (132, 132)])
def test_one_side_is_the_smallest_that_is_large_enough(sms: int, size: int) -> None:
    assert group_for(sms, 8, 132) == size


@given(st.integers(1, 132), st.sampled_from([1, 2, 8, 16]))
def test_sides_have_the_sizes_that_are_listed(sms: int, step: int) -> None:
    listed = group_sizes(step, 132)
    assert group_for(sms, step, 132) == min(size for size in listed if size >= sms)


@pytest.mark.parametrize("sms", [0, -1, 133])
def test_more_or_less_than_there_are_is_refused(sms: int) -> None:
    with pytest.raises(PartitionError, match="132"):
        group_for(sms, 8, 132)
