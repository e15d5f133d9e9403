"""What every way of sharing the SMs has in common."""

from dataclasses import dataclass

from nexus.core.errors import PartitionError


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


def group_sizes(step: int, total: int) -> tuple[int, ...]:
    """Every number of SMs that one phase can be confined to, in steps of ``step``, and all."""
    return (*range(step, total, step), total)


def group_for(sms: int, step: int, total: int) -> int:
    """The smallest of ``group_sizes`` with at least ``sms`` SMs.

    Raises PartitionError for less than one SM or more than there are.
    """
    if not 1 <= sms <= total:
        raise PartitionError(f"{sms} SMs asked for, this GPU has {total}")
    return min(-(-sms // step) * step, total)


def group_of_split(prefill_sms: int, decode_sms: int, step: int, total: int) -> int:
    """Prefill's group in a split that comes nearest to the SMs asked for.

    Decode has what the group leaves. Raises PartitionError for more SMs than there are, or a
    side without any.
    """
    if min(prefill_sms, decode_sms) < 1 or prefill_sms + decode_sms > total:
        raise PartitionError(f"{prefill_sms} + {decode_sms} SMs asked for, this GPU has {total}")
    groups = group_sizes(step, total)[:-1]
    if not groups:
        raise PartitionError(f"{total} SMs cannot be split in steps of {step}")
    return min(groups, key=lambda sms: abs(sms - prefill_sms) + abs(total - sms - decode_sms))
