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

    ``decode_gets_group`` says which side is decode's.
    """

    group_sms: int
    decode_gets_group: bool


def round_to_step(sms: int, step: int, total: int) -> int:
    """``sms`` rounded up to what a driver can group: a multiple of ``step``, or all SMs.

    Raises PartitionError for less than one SM or more than there are.
    """
    if not 1 <= sms <= total:
        raise PartitionError(f"{sms} SMs asked for, this GPU has {total}")
    return min(-(-sms // step) * step, total)


def choose_cut(prefill_sms: int, decode_sms: int, step: int, total: int) -> Cut:
    """The cut whose two sides come nearest to the SMs asked for.

    A driver makes one group of a multiple of ``step`` SMs and leaves a remainder, so
    either phase can be the group. Decode is, where both cuts are equally near: its
    small kernels gain the most from a group's guarantees. Raises PartitionError for
    more SMs than there are, or a side without any.
    """
    if prefill_sms + decode_sms > total:
        raise PartitionError(f"{prefill_sms} + {decode_sms} SMs asked for, this GPU has {total}")
    cuts = []
    for decode_gets_group, wanted in ((True, decode_sms), (False, prefill_sms)):
        group = round_to_step(wanted, step, total)
        if group < total:
            decode = group if decode_gets_group else total - group
            distance = abs(decode - decode_sms) + abs(total - decode - prefill_sms)
            cuts.append((distance, Cut(group, decode_gets_group)))
    if not cuts:
        raise PartitionError(f"{total} SMs cannot be split in steps of {step}")
    return min(cuts, key=lambda entry: entry[0])[1]
