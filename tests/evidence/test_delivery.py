"""Tokens at the client beside the steps that made them."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from nexus.evidence.delivery import Delivered, delivered, told

STEPS_MS = st.lists(st.floats(5.0, 50.0), min_size=12, max_size=40)
DELAYS_MS = st.lists(st.floats(0.1, 4.9), min_size=4, max_size=9)


@given(STEPS_MS, DELAYS_MS, st.integers(0, 3))
def test_each_token_finds_its_step(
    steps_ms: list[float], delays_ms: list[float], first: int
) -> None:
    ends_s = 100.0 + np.cumsum(steps_ms) / 1e3
    engine_s = ends_s[first : first + len(delays_ms)]
    client_s = engine_s + np.array(delays_ms) / 1e3
    found = delivered(ends_s, 99.0, client_s[0] - 99.0, list(np.diff(client_s)))
    assert found is not None
    assert found.engine_s == pytest.approx(engine_s)
    assert found.client_s == pytest.approx(client_s)


def test_tokens_without_steps_are_left_out() -> None:
    ends_s = np.array([1.0, 1.02, 1.04])
    assert delivered(ends_s, 0.0, 0.5, [0.02]) is None  # no step had ended
    assert delivered(ends_s, 0.0, 1.03, [0.02, 0.02]) is None  # the trace ends before


def test_lateness_is_told_of_both_sides() -> None:
    engine_s = 0.02 * np.arange(41, dtype=np.float64)
    delays_s = np.resize([0.002, 0.008], 41)
    found = told([Delivered(engine_s, engine_s + delays_s)], 25.0)
    assert found["delay_ms"]["p50"] == 2.0
    assert found["late_by_engine"] == {"gaps": 0.0, "requests": 0}
    assert found["late_by_client"] == {"gaps": 0.5, "requests": 1}
