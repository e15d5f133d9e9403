"""What every way of sharing the SMs has in common."""

from dataclasses import dataclass

from nexus.errors import PartitionError


@dataclass(frozen=True)
class Partition:
    """The SMs (cores on a CPU) that each phase may use, as realized, not as asked for."""

    prefill_sms: int
    decode_sms: int
    total_sms: int

    @property
    def disjoint(self) -> bool:
        """Whether no SM serves both phases (a split, not an overlap)."""
        return self.prefill_sms + self.decode_sms <= self.total_sms


@dataclass(frozen=True)
class Cut:
    """One way to divide the device: a group of ``group_sms``, and all the rest.

    ``group_first`` says whether the group, not the rest, is for whom the cut was chosen.
    """

    group_sms: int
    group_first: bool


def side_sizes(step: int, total: int) -> tuple[int, ...]:
    """Every number of SMs that one side of a cut can have, and ``total``."""
    groups = range(step, total, step)
    return tuple(sorted({*groups, *(total - group for group in groups), total}))


def choose_side(sms: int, step: int, total: int) -> Cut:
    """The cut with the smallest side that has at least ``sms`` SMs.

    The group may be all ``total`` SMs. Raises PartitionError for less than one SM or
    more than there are.
    """
    if not 1 <= sms <= total:
        raise PartitionError(f"{sms} SMs asked for, this GPU has {total}")
    group = min(-(-sms // step) * step, total)
    others = (total - sms) // step * step
    if others and total - others < group:
        return Cut(others, group_first=False)
    return Cut(group, group_first=True)


def choose_cut(prefill_sms: int, decode_sms: int, step: int, total: int) -> Cut:
    """The cut, chosen for decode, whose sides come nearest to the SMs asked for.

    A driver makes one group of a multiple of ``step`` SMs and leaves a remainder, so
    either phase can be the group. Decode is, where both cuts are equally near: its
    small kernels gain the most from a group's guarantees. Raises PartitionError for
    more SMs than there are, or a side without any.
    """
    if min(prefill_sms, decode_sms) < 1 or prefill_sms + decode_sms > total:
        raise PartitionError(f"{prefill_sms} + {decode_sms} SMs asked for, this GPU has {total}")
    cuts = []
    for group_first, wanted in ((True, decode_sms), (False, prefill_sms)):
        group = -(-wanted // step) * step
        if group < total:
            decode = group if group_first else total - group
            distance = abs(decode - decode_sms) + abs(total - decode - prefill_sms)
            cuts.append((distance, Cut(group, group_first)))
    if not cuts:
        raise PartitionError(f"{total} SMs cannot be split in steps of {step}")
    return min(cuts, key=lambda entry: entry[0])[1]
