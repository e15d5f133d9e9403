"""The share of the prefill work that prompts keep which are too late for their bound.

One account a class, in tokens. While anyone of the class is late and it is not their turn, a
step of T prompt tokens adds share x T, less what the late got of it. Above 0 it is their turn:
they go first, and pay for what they get beyond their share, until nothing is left. What they
take when nobody else wants it is free, so nothing is held against them later; and what they
cannot take is not saved up beyond two steps. So, as long as someone of the class waits late and
turns are kept, the late of the class get at least their share of all prompt tokens, less those
of three steps.

The share is the one that is promised, for batch prompts always. Of interactive ones it grows
once the oldest has waited ten times its bound: with twice the wait it is twice as much. When the
queue is long this is what shortens it most for the fewest prompts that miss their bound for it:
what an earlier turn gives a late prompt counts for all that wait behind it.
"""

CLASSES = 2
"""Interactive (0) and batch (1)."""

DEFAULT_LATE_SHARE = 0.1
LEAST_LATE_SHARE = 0.01
MOST_LATE_SHARE = 0.5  # of either class, so that both together have no more than all

STEPS_OF_SLACK = 3
_SAVED_STEPS = 2

_BOUNDS_AT_THE_PROMISED_SHARE = 10.0
_GROWS_TO = 0.7


class LateShare:
    """The accounts of all classes."""

    def __init__(self, share: float) -> None:
        """``share`` of the prefill work is promised to the late of each class."""
        assert LEAST_LATE_SHARE <= share <= MOST_LATE_SHARE
        self.promised = share
        self._shares = [share] * CLASSES
        self._credit = [0.0] * CLASSES
        self._largest_step = 0

    def of(self, number: int) -> float:
        """The present share of class ``number``, if anyone of it is late."""
        return self._shares[number]

    def oldest_waited(self, bounds: float, batch_waits: bool) -> None:
        """The oldest interactive prompt that is late has waited so many times its bound.

        ``batch_waits``: whether a batch prompt is late too, whose share it cannot have.
        """
        grown = self.promised * bounds / _BOUNDS_AT_THE_PROMISED_SHARE
        most = min(_GROWS_TO, 1.0 - self.promised) if batch_waits else _GROWS_TO
        self._shares[0] = max(self.promised, min(grown, most))

    def has_turn(self, number: int) -> bool:
        """Whether the late of class ``number`` go first."""
        return self._credit[number] > 0.0

    def computed(self, tokens: int, late: list[int], waits: list[bool]) -> None:
        """A step had ``tokens`` prompt tokens, ``late`` of them by class; in which some wait."""
        self._largest_step = max(self._largest_step, tokens)
        most = float(_SAVED_STEPS * self._largest_step)
        for number in range(CLASSES):
            owed = self._shares[number] * tokens - late[number]
            credit = self._credit[number]
            if not waits[number]:
                self._credit[number] = 0.0
            elif credit > 0.0:
                self._credit[number] = min(credit + owed, most)
            else:
                self._credit[number] = credit + max(owed, 0.0)
