"""The systems compared: each is a command line of ``nexus serve`` and, but for stock vLLM, a plan.

The grid of Nexus systems keeps its parts apart: the order of prompts, the chunk chosen
step by step, one partition for all loads, and the whole plan.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from nexus.core.errors import UserError
from nexus.core.prefill.ranking import ORDERS, PrefillOrder
from nexus.runtime.vllm.options import given, value_of

Sharing = Literal["fused", "split", "overlap", "plan", "mps"]


@dataclass(frozen=True)
class System:
    """One server to measure.

    ``budget`` is stock vLLM's --max-num-batched-tokens in tokens, None for its default;
    ``queue`` its --max-num-queued-tokens: beyond so many prompt tokens that wait it refuses.
    ``sharing`` says which plan it serves with: only fused modes, the best single split,
    the best single overlap, or all of it; ``mps`` is the best static share of two stock
    engines; None is stock vLLM.
    """

    name: str
    budget: int | None = None
    queue: int | None = None
    sharing: Sharing | None = None
    order: PrefillOrder = "fcfs"

    def words(self, model: str, shared: tuple[str, ...], table: Path | None) -> list[str]:
        """What follows ``nexus serve``; ``shared`` are options that all systems get.

        Raises UserError for a --max-num-seqs among them that is no plain number.
        """
        assert (table is None) == (self.sharing is None)
        words = [model, *shared, *self._limits(shared)]
        if table is not None:
            order = ["--prefill-order", self.order]
            words += ["--table", str(table)]
            words += ["--partitioner", "mps"] if self.sharing == "mps" else order
        return words

    def _limits(self, shared: tuple[str, ...]) -> list[str]:
        words = [] if self.queue is None else ["--max-num-queued-tokens", str(self.queue)]
        if self.budget is None:
            return words
        words += ["--max-num-batched-tokens", str(self.budget)]
        # vLLM wants room for a token of every sequence, and sees to it where no limit is given.
        limited = given(shared, "--max-num-seqs")
        if limited and number_in(shared, "--max-num-seqs") > self.budget:
            words += ["--max-num-seqs", str(self.budget)]
        return words


def number_in(options: Sequence[str], wanted: str) -> int:
    """The number that the option ``wanted`` is given as, which must be there; raises UserError."""
    text = value_of(options, wanted)
    if text is None:
        raise UserError(f"{wanted} is not given")
    if not text.isdigit() or int(text) <= 1:
        raise UserError(f"{wanted} {text}: a plain number is needed here")
    return int(text)


def _stock(budget: int | None, queue: int | None = None) -> System:
    limited = "" if queue is None else f"-queue-{queue}"
    return System(f"vllm-{budget or 'default'}{limited}", budget, queue)


def _nexus(order: PrefillOrder, sharing: Sharing) -> System:
    return System(f"nexus-{order}-{sharing}", sharing=sharing, order=order)


# The systems that decide whether Nexus is worth running, then what tells its parts apart.
DECISIVE = (
    _stock(None),
    _stock(512),
    _stock(2048),
    *(_nexus(order, "plan") for order in ORDERS),
)
OTHERS = (
    *(_nexus(order, sharing) for sharing in ("fused", "split", "overlap") for order in ORDERS),
    System("nexus-mps", sharing="mps"),
    _stock(256),
    _stock(320),
    _stock(384),
    _stock(1024),
    _stock(8192),
    # A second of prompts at the rate at which that budget computes the conversation.
    _stock(512, queue=20_000),
)
SYSTEMS = {system.name: system for system in (*DECISIVE, *OTHERS)}


def systems_called(names: str) -> tuple[System, ...]:
    """Systems by name, separated by commas: ``all``, ``decisive`` and ``stock`` are groups.

    Raises UserError for an unknown name.
    """
    groups = {
        "all": tuple(SYSTEMS.values()),
        "decisive": DECISIVE,
        "stock": tuple(system for system in SYSTEMS.values() if system.sharing is None),
    }
    chosen: dict[str, System] = {}
    for name in filter(None, (part.strip() for part in names.split(","))):
        if name not in groups and name not in SYSTEMS:
            raise UserError(f"no system {name!r}; there are {', '.join([*groups, *SYSTEMS])}")
        members = groups.get(name) or (SYSTEMS[name],)
        chosen.update({system.name: system for system in members})
    if not chosen:
        raise UserError("no system is named")
    return tuple(chosen.values())
