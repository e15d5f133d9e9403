"""Which columns of a trace say when a request came and how long it was."""

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from nexus.core.errors import UserError
from nexus.planner.workload.trace_file import shown, wrong

Wanted = Mapping[str, str]  # from what a column says to its name

# In letters and digits alone, small ones.
_NAMES = {
    "time": ("timestamp", "time", "arrivaltime", "arrival"),
    "input": (
        *("contexttokens", "requesttokens", "inputlength"),
        *("inputtokens", "prompttokens", "input"),
    ),
    "output": (
        *("generatedtokens", "responsetokens", "outputlength"),
        *("outputtokens", "completiontokens", "output"),
    ),
    "cached": ("cachedtokens", "cached"),
    "hash_ids": ("hashids",),
}
_REQUIRED = ("time", "input", "output")
_KINDS = {"contexttokens": "Azure", "requesttokens": "BurstGPT"}
_IN_MS = re.compile(r"[^a-z]ms\W*$")
_MOST_SHOWN = 8


@dataclass(frozen=True)
class Columns:
    """The name of the column for each of ``time``, ``input`` and so on that there is.

    ``in_ms``: times are in milliseconds; None where the names do not say. ``kind`` is whose
    format it is, empty if no one's.
    """

    names: Mapping[str, str]
    in_ms: bool | None
    kind: str


def parse_columns(text: str) -> dict[str, str]:
    """From ``time=a,input=b``; raises UserError."""
    known = (*_NAMES, "time_ms")
    wanted: dict[str, str] = {}
    for part in filter(None, (part.strip() for part in text.split(","))):
        key, mark, name = (word.strip() for word in part.partition("="))
        if key not in known or not mark or not name:
            raise UserError(f"--columns {shown(part)}: wanted is {'=…, '.join(known)}=…")
        wanted[key] = name
    return wanted


def find_columns(
    path: Path, line: int | str, names: Sequence[str], wanted: Wanted, *, timed: bool
) -> Columns:
    """Those of ``names``, of any case, that are wanted or known; raises DocumentError.

    ``timed``: there has to be a time.
    """
    plain = {_plain(name): name for name in reversed(names)}
    found: dict[str, str] = {}
    asked = {key.removesuffix("_ms"): name for key, name in wanted.items()}
    for role, known in _NAMES.items():
        if role in asked:
            if _plain(asked[role]) not in plain:
                raise wrong(path, line, f"no column {shown(asked[role])}, but {_told(names)}")
            found[role] = plain[_plain(asked[role])]
            continue
        matches = (plain[name] for name in known if name in plain)
        if match := next(matches, None):
            found[role] = match
    missing = [role for role in _REQUIRED if role not in found and (timed or role != "time")]
    if missing:
        raise wrong(
            path,
            line,
            f"not a trace that is known: no {' and no '.join(missing)} among {_told(names)}; "
            "name them, as --columns time=…,input=…,output=…",
        )
    in_ms = None
    if "time" in found and ("time" in asked or _IN_MS.search(found["time"].lower())):
        in_ms = "time_ms" in wanted or bool(_IN_MS.search(found["time"].lower()))
    return Columns(found, in_ms, _KINDS.get(_plain(found["input"]), ""))


def _plain(name: str) -> str:
    """Without case, blanks and signs, and without a unit of time."""
    return re.sub(r"[\W_]", "", _IN_MS.sub("", name.strip().lower()))


def _told(names: Sequence[str]) -> str:
    told = ", ".join(shown(name) for name in names[:_MOST_SHOWN])
    return f"{told} and {len(names) - _MOST_SHOWN} more" if len(names) > _MOST_SHOWN else told
