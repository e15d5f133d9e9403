"""Points go where the model knows least, and stop where it knows enough."""

from dataclasses import replace
from pathlib import Path

import pytest

from nexus.profiler.adaptive import WorstFirst
from nexus.profiler.points import Point
from nexus.profiles.schema import Profile, Sample, read_profile
from nexus.profiles.shipped import shipped_profiles


@pytest.fixture(scope="module")
def profile() -> Profile:
    (path,) = [path for path in shipped_profiles() if path == _of_8b(path)]
    return read_profile(path)


def _of_8b(path: Path) -> Path:
    return path.with_name("llama-3.1-8b.yaml")


def _decodes(profile: Profile) -> list[Sample]:
    return [s for s in profile.measured if s.mode == "decode" and s.decode_sms == 132]


def _without(profile: Profile, sample: Sample) -> Profile:
    return replace(profile, samples=tuple(s for s in profile.samples if s is not sample))


DECODE = Point("decode", 0, 132, decode_batch=24, decode_context=700)
SPLIT = Point("split", 84, 48, 1024, 0, 24, 700)


def test_curves_never_predicted_come_first_in_the_order_of_need(profile: Profile) -> None:
    chooser = WorstFirst()
    assert chooser.pick([DECODE, SPLIT]) == DECODE
    for sample in _decodes(profile)[:2]:
        chooser.saw(_without(profile, sample), sample)
    assert chooser.pick([DECODE, SPLIT]) == SPLIT


def test_a_curve_that_is_predicted_well_is_left_alone(profile: Profile) -> None:
    chooser = WorstFirst()
    for sample in _decodes(profile)[3:5]:
        chooser.saw(profile, sample)
    assert chooser.pick([DECODE]) is None


def test_a_surprise_brings_its_curve_back(profile: Profile) -> None:
    chooser = WorstFirst()
    for sample in _decodes(profile)[3:5]:
        chooser.saw(profile, sample)
    odd = _decodes(profile)[5]
    chooser.saw(profile, replace(odd, decode_ms=2 * (odd.decode_ms or 1.0)))
    assert chooser.pick([DECODE]) == DECODE


def test_failures_and_too_few_samples_teach_nothing(profile: Profile) -> None:
    chooser = WorstFirst()
    sample = _decodes(profile)[0]
    chooser.saw(replace(profile, samples=()), sample)
    chooser.saw(profile, replace(sample, decode_ms=None, error="out of memory"))
    assert chooser.pick([DECODE, SPLIT]) == DECODE
