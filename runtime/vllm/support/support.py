"""What is said of a feature of vLLM: it works beside a plan, is refused, or is none of Nexus's."""

from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any, Literal

Way = Literal["fused", "lane", "mps"]

WAYS: dict[Way, str] = {
    "fused": "a plan of batches",
    "lane": "the prefill lane",
    "mps": "--partitioner mps",
}


@dataclass(frozen=True)
class Works:
    """As with stock vLLM; ``test`` is the one that says so, below ``tests/``."""

    test: str


@dataclass(frozen=True)
class Refused:
    """An error of one line and exit code 2, before an engine starts. ``why`` is for the reader."""

    why: str


@dataclass(frozen=True)
class PassedOn:
    """Nexus has no part in it: whatever two stock engines behind a router do."""


Support = Works | Refused | PassedOn


@dataclass(frozen=True)
class Feature:
    """One row: a feature, and what each way to share the GPU does with it.

    ``options`` are vLLM's, by which MPS refuses it. ``given`` sees it in vLLM's parsed options;
    ``used`` in its whole configuration, and returns what an error is to call it.
    """

    name: str
    fused: Support
    lane: Support
    mps: Support
    options: tuple[str, ...] = ()
    given: Callable[[Any], Any] | None = None
    used: Callable[[Any], Any] | None = None

    def by(
        self,
        *options: str,
        given: Callable[[Any], Any] | None = None,
        used: Callable[[Any], Any] | None = None,
    ) -> "Feature":
        """The same, with what it is known by."""
        return replace(self, options=options, given=given, used=used)

    def is_refused(self, way: Way) -> bool:
        """Whether ``way`` does not serve it."""
        return isinstance(getattr(self, way), Refused)
