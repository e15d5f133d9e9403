"""Writes docs/features.md from the table of features; run it after changing that."""

from pathlib import Path

from nexus.core.io.outputs import write_atomically
from nexus.runtime.vllm.support.features import FEATURES
from nexus.runtime.vllm.support.support import WAYS, Feature, PassedOn, Way, Works

PAGE = Path(__file__).resolve().parent.parent / "docs" / "features.md"
HEAD = """# What works beside a plan

Written by `python scripts/features.py` from `runtime/vllm/support/features.py`, from which the refusals come
too.

- *works*: as with stock vLLM; the test below compares them, or sees it at work.
- *refused*: an error of one line and exit code 2 before an engine starts.
- *passed on*: Nexus has no part in it. With `--partitioner mps` two stock engines behind a router do
  whatever they do.

A plan of batches is one whose modes are all `fused`; the prefill lane serves those that share SMs.
"""


def page() -> str:
    """The whole document."""
    ways = list(WAYS)
    rows = ["| | " + " | ".join(WAYS.values()) + " |", "| --- " * (1 + len(ways)) + "|"]
    rows += [_row(each, ways) for each in FEATURES]
    reasons = [
        f"- {each.name}, {WAYS[way]}: {getattr(each, way).why}"
        for each in FEATURES
        for way in ways
        if each.is_refused(way)
    ]
    tests = [line for each in FEATURES for line in _tests(each)]
    parts = [HEAD, *rows, "\n## Why some are refused\n", *reasons, "\n## The tests\n", *tests]
    return "\n".join(parts) + "\n"


def _row(feature: Feature, ways: list[Way]) -> str:
    named = ", ".join(f"`{option}`" for option in feature.options if option.startswith("--"))
    name = (
        feature.name if feature.name.startswith("--") or not named else f"{feature.name} ({named})"
    )
    return "| " + " | ".join([name, *(_word(feature, way) for way in ways)]) + " |"


def _word(feature: Feature, way: Way) -> str:
    support = getattr(feature, way)
    if isinstance(support, Works):
        return "works"
    return "passed on" if isinstance(support, PassedOn) else "refused"


def _tests(feature: Feature) -> list[str]:
    found = {
        support.test: None
        for support in (feature.fused, feature.lane, feature.mps)
        if isinstance(support, Works)
    }
    return [f"- {feature.name}: `tests/{test}`" for test in found]


if __name__ == "__main__":
    write_atomically(PAGE, page())
