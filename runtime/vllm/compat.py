"""The one door to vLLM: what Nexus imports, subclasses, reassigns or reads goes through here.

``from nexus.runtime.vllm.compat import Request`` is vLLM's class. It is imported when it is asked
for, so that this module costs nothing where vLLM is not needed. ``compat.yaml`` lists every name;
the source of a release is searched for them, before an engine starts, without an import.
"""

import logging
import re
from collections.abc import Collection, Iterator
from dataclasses import dataclass
from functools import cache
from importlib import import_module
from importlib.util import find_spec
from pathlib import Path
from typing import Any, Literal, get_args

import yaml

from nexus.core.errors import EngineError
from nexus.runtime.machine import TESTED_VLLM, is_tested, vllm_version
from nexus.runtime.source import Source, Wanted

Room = Literal["options", "server", "scheduler", "worker", "lane", "graphs", "profiler"]
Device = Literal["cpu", "cuda"]

ROOMS: tuple[Room, ...] = get_args(Room)

# The releases that brought what Nexus does otherwise from then on.
RUNNER_TAKES_LONGEST_QUERY = "0.28.0"
LAUNCHERS = "0.29.0"
ERRORS_WITH_A_STATUS = "0.29.0"
NO_LENGTHS_ON_HOST = "0.30.0"
GRAPHS_NAME_THEIR_STREAM = "0.30.0"
SEATS_BESIDE_HELD_BLOCKS = "0.31.0"
GROUPS_BUILD_METADATA = "0.32.0"
NO_COMMON_PREFIXES = "0.32.0"

_MOST_NAMED = 3  # missing names in an error's one line

log = logging.getLogger("vllm.nexus")  # below vLLM's own, whose handlers and level are the user's


@dataclass(frozen=True)
class Names:
    """Names of ``owner``, or of ``module`` itself where that is empty; ``compat.yaml`` says more.

    ``why`` is what Nexus needs them for.
    """

    room: Room
    module: str
    owner: str
    wanted: tuple[Wanted, ...]
    why: str
    device: Device | None = None
    since: str = ""
    before: str = ""

    def needed(self, release: str, rooms: Collection[Room], device: Device | None) -> bool:
        """Whether ``rooms`` need them in ``release``, on ``device`` or, if that is None, on any."""
        return (
            self.room in rooms
            and (device is None or self.device in (None, device))
            and (not self.since or _is_at_least(release, self.since))
            and not (self.before and _is_at_least(release, self.before))
        )


@dataclass(frozen=True)
class Missing:
    """A name that a release lacks, and what it is needed for."""

    name: str
    why: str


@cache
def all_names() -> tuple[Names, ...]:
    """What ``compat.yaml`` lists."""
    path = Path(__file__).with_suffix(".yaml")
    rooms = yaml.safe_load(path.read_text(encoding="utf-8"))
    return tuple(_names(room, **entry) for room in ROOMS for entry in rooms[room])


def _names(room: Room, of: str, names: str, **rest: Any) -> Names:
    module, _, owner = of.partition(":")
    return Names(room, module, owner, Wanted.parse(names), **rest)


def __getattr__(name: str) -> Any:
    """The class, function or module of vLLM that has this name."""
    module = _modules().get(name)
    if module is None:
        raise AttributeError(f"compat.yaml names no {name} of vLLM")
    if module.endswith(f".{name}"):
        return import_module(module)
    return getattr(import_module(module), name)


@cache
def _modules() -> dict[str, str]:
    """Where to import what from, by name: classes, what modules hold, and modules themselves."""
    found: dict[str, str] = {}
    for each in all_names():
        found.setdefault(each.module.rpartition(".")[2], each.module)
        for name in [each.owner] if each.owner else [wanted.name for wanted in each.wanted]:
            found.setdefault(name, each.module)
    return found


@cache
def since(release: str) -> bool:
    """Whether the installed vLLM is ``release`` or a later one."""
    return _is_at_least(vllm_version(), release)


def check_installed(*rooms: Room, device: Device) -> None:
    """Look for all that ``rooms`` need of the installed vLLM, and warn where it is not tested.

    Raises EngineError, in one line, where vLLM is absent or lacks a name.
    """
    release = vllm_version()
    spec = find_spec("vllm")
    if spec is None or not spec.submodule_search_locations:
        raise EngineError(f"vLLM {release} has no package vllm")
    source = Source(Path(spec.submodule_search_locations[0]).parent, "vllm")
    missing = list(find_missing(source, release, rooms, device))
    tested = f"tested with Nexus: {', '.join(TESTED_VLLM)}"
    if missing:
        names = ", ".join(each.name for each in missing[:_MOST_NAMED])
        more = f" and {len(missing) - _MOST_NAMED} more" if len(missing) > _MOST_NAMED else ""
        raise EngineError(f"vLLM {release} lacks {names}{more} ({missing[0].why}); {tested}")
    if not is_tested(release):
        logging.getLogger("nexus").warning(
            "warning: vLLM %s is not a tested release; %s", release, tested
        )


def find_missing(
    source: Source, release: str, rooms: Collection[Room] = ROOMS, device: Device | None = None
) -> Iterator[Missing]:
    """What ``rooms`` need of a release and its ``source`` does not declare."""
    for each in needed_names(release, rooms, device):
        for name in source.missing(each.module, each.owner, each.wanted):
            yield Missing(name, each.why)


def needed_names(
    release: str, rooms: Collection[Room] = ROOMS, device: Device | None = None
) -> list[Names]:
    """What ``rooms`` need of a release, on ``device`` or, if that is None, on any."""
    return [each for each in all_names() if each.needed(release, rooms, device)]


def _is_at_least(release: str, other: str) -> bool:
    """Whether ``release`` is ``other`` or later; what has no number of its own is the newest."""
    numbers = _numbers(release)
    return numbers < _numbers(TESTED_VLLM[0]) or numbers >= _numbers(other)


def _numbers(release: str) -> tuple[int, ...]:
    return tuple(map(int, re.findall(r"\d+", release.partition("+")[0])[:3]))
