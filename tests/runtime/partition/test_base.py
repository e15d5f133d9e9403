import pytest
from hypothesis import assume, given
from hypothesis import strategies as st

from nexus.errors import PartitionError
from nexus.runtime.partition.base import Cut, Partition, choose_cut, choose_side, side_sizes


def test_a_split_is_disjoint_and_an_overlap_is_not() -> None:
    assert Partition(84, 48, 132).disjoint
    assert not Partition(84, 132, 132).disjoint


@pytest.mark.parametrize(
    ("prefill", "decode", "cut"),
    [
        (84, 48, Cut(48, group_first=True)),
        (48, 84, Cut(48, group_first=False)),
        (66, 66, Cut(72, group_first=True)),
        (130, 2, Cut(8, group_first=True)),
    ],
)
def test_the_group_goes_where_the_pair_comes_nearest(prefill: int, decode: int, cut: Cut) -> None:
    assert choose_cut(prefill, decode, 8, 132) == cut


def test_two_sm_steps_give_every_even_pair_exactly() -> None:
    for decode in range(2, 132, 2):
        assert choose_cut(132 - decode, decode, 2, 132) == Cut(decode, group_first=True)


@given(st.integers(1, 131), st.integers(1, 131), st.sampled_from([1, 2, 8, 16]))
def test_both_sides_get_sms_and_all_are_used(prefill: int, decode: int, step: int) -> None:
    assume(prefill + decode <= 132)
    cut = choose_cut(prefill, decode, step, 132)
    assert 0 < cut.group_sms < 132
    assert cut.group_sms % step == 0


@pytest.mark.parametrize(("prefill", "decode"), [(100, 40), (0, 8), (8, 0), (-8, 8)])
def test_impossible_pairs_are_refused(prefill: int, decode: int) -> None:
    with pytest.raises(PartitionError):
        choose_cut(prefill, decode, 8, 132)


@pytest.mark.parametrize(
    ("sms", "cut"),
    [
        (48, Cut(48, group_first=True)),
        (84, Cut(48, group_first=False)),
        (50, Cut(80, group_first=False)),
        (1, Cut(128, group_first=False)),
        (132, Cut(132, group_first=True)),
    ],
)
def test_one_side_is_the_smallest_that_is_large_enough(sms: int, cut: Cut) -> None:
    assert choose_side(sms, 8, 132) == cut


@given(st.integers(1, 132), st.sampled_from([1, 2, 8, 16]))
def test_sides_have_the_sizes_that_are_listed(sms: int, step: int) -> None:
    cut = choose_side(sms, step, 132)
    size = cut.group_sms if cut.group_first else 132 - cut.group_sms
    assert size == min(each for each in side_sizes(step, 132) if each >= sms)


@pytest.mark.parametrize("sms", [0, -1, 133])
def test_more_or_less_than_there_are_is_refused(sms: int) -> None:
    with pytest.raises(PartitionError, match="132"):
        choose_side(sms, 8, 132)
