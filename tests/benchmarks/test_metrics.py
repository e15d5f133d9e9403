import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from nexus.benchmarks.metrics import OBJECTIVES, Objective, PerRequest, summarize
from nexus.core.errors import UserError

DETAILS = {
    "duration": 4.0,
    "errors": ["", "", "", "Internal Server Error"],
    "ttfts": [0.1, 0.4, 0.2, 0.0],
    "itls": [[0.01] * 19 + [0.5], [0.02, 0.02], [], []],
    "input_lens": [100, 200, 50, 400],
    "output_lens": [21, 5, 1, 0],
}


def test_a_run_is_summed_up() -> None:
    metrics, each = summarize(DETAILS)
    assert (metrics.completed, metrics.failed) == (3, 1)
    assert metrics.requests_per_s == 0.75
    assert metrics.input_tokens_per_s == 350 / 4
    assert metrics.output_tokens_per_s == 27 / 4
    assert metrics.ttft is not None
    assert metrics.tbt is not None
    assert metrics.tpot is not None
    assert metrics.normalized is not None
    assert metrics.ttft.mean == pytest.approx(700 / 3, abs=1e-3)
    assert metrics.tbt.p50 == 10.0
    assert metrics.tbt_max_ms == 500.0
    assert metrics.tpot.mean == pytest.approx((690 / 20 + 40 / 4) / 2)
    assert metrics.normalized.mean == pytest.approx((790 / 21 + 440 / 5 + 200) / 3, abs=1e-3)
    assert metrics.merged_share == pytest.approx(2 / 27, abs=1e-4)
    assert each.ttft_ms == (100.0, 400.0, 200.0, None)
    assert each.tbt_p95_ms == (34.5, 20.0, 0.0, None)


def test_a_failed_request_meets_nothing_and_counts() -> None:
    _, each = summarize(DETAILS)
    assert each.attainment(Objective(1000.0, 1000.0)) == 0.75
    assert each.attainment(Objective(1000.0, 20.0)) == 0.5
    assert each.attainment(Objective(150.0, 1000.0)) == 0.25
    assert each.attainment(Objective(1000.0, 9.0)) == 0.25
    assert each.attainment(Objective(1000.0, 30.0, tpot=True)) == 0.5


def test_nothing_done_has_no_times() -> None:
    failed = {**DETAILS, "errors": ["x"] * 4}
    metrics, each = summarize(failed)
    assert (metrics.completed, metrics.failed, metrics.ttft, metrics.tbt) == (0, 4, None, None)
    assert each.attainment(Objective(1e9, 1e9)) == 0.0


@given(st.lists(st.lists(st.floats(1e-4, 2.0), max_size=30), min_size=1, max_size=20))
def test_every_gap_counts(itls: list[list[float]]) -> None:
    count = len(itls)
    metrics, each = summarize(
        {
            "duration": 1.0,
            "errors": [""] * count,
            "ttfts": [0.1] * count,
            "itls": itls,
            "input_lens": [1] * count,
            "output_lens": [len(gaps) + 1 for gaps in itls],
        }
    )
    gaps = 1e3 * np.concatenate([np.asarray(one, dtype=float) for one in itls])
    assert metrics.merged_share == 0.0
    assert (metrics.tbt is None) == (len(gaps) == 0)
    if metrics.tbt is not None:
        assert metrics.tbt.p99 == pytest.approx(float(np.percentile(gaps, 99)), abs=1e-3)
    shares = [each.attainment(Objective(200.0, bound)) for bound in (1.0, 10.0, 100.0, 5000.0)]
    assert shares == sorted(shares)
    assert shares[-1] == 1.0


def test_a_bound_with_a_slope_is_later_for_longer_prompts() -> None:
    sloped = Objective.parse("1000+40/25")
    assert sloped.name == "1000+40/25"
    assert Objective.of(sloped.bounds) == sloped
    assert Objective.parse("1000/25").within(sloped)
    assert not sloped.within(Objective.parse("1000/25"))
    none = (0.0, 0.0)
    each = PerRequest((1000, 5000), (1, 1), (1050.0, 1050.0), none, none)
    assert each.attainment(sloped) == 0.5


def test_bounds_have_names() -> None:
    assert [Objective.parse(one.name) for one in OBJECTIVES] == list(OBJECTIVES)
    assert Objective.of(Objective.parse("500/15").bounds) == Objective(500.0, 15.0)


@pytest.mark.parametrize("text", ["", "500", "500/", "/15", "500/15:p99", "-1/5", "a/b", "0/0"])
def test_other_bounds_are_refused(text: str) -> None:
    with pytest.raises(UserError, match="bounds"):
        Objective.parse(text)
