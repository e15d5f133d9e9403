"""The policy: what the table says, without flapping; and prompts' order."""

from itertools import pairwise

from hypothesis import given
from hypothesis import strategies as st

from nexus.planner.table import Axes, Mode, Row, Table
from nexus.runtime.policy import Policy, State, prefill_rank


class _Plan:
    """As much of a plan as a table indexes."""

    def __init__(self, axes: Axes, modes: dict[str, Mode], rows: list[Row]) -> None:
        self.axes, self.modes, self.rows = axes, modes, rows


def table(modes: list[Mode], batches: tuple[int, ...]) -> Table:
    axes = Axes(batches, (0,), (0,))
    rows = [Row(*state, mode=mode.name) for state, mode in zip(axes.states(), modes, strict=True)]
    return Table(_Plan(axes, {mode.name: mode for mode in modes}, rows))  # type: ignore[arg-type]


FUSED, SPLIT, OVERLAP = Mode("fused", 512), Mode("split", 1024, 84, 48), Mode("overlap", 1024, 100)


@given(st.lists(st.integers(0, 300), min_size=1, max_size=50))
def test_fused_chunks_follow_the_table_at_every_step(batches: list[int]) -> None:
    modes = [Mode("fused", chunk) for chunk in (512, 256, 128)]
    lookup = table(modes, (8, 64, 256))
    policy = Policy(lookup)
    for batch in batches:
        mode, row = policy.decide(State(batch, 0, 0))
        assert row == lookup.row(batch, 0, 0)
        assert mode == lookup.modes[row.mode]


def test_a_partition_is_kept_across_noise_at_a_grid_line() -> None:
    policy = Policy(table([OVERLAP, SPLIT], (100, 200)), hysteresis=0.05)
    seen = [policy.decide(State(batch, 0, 0))[0].mode for batch in (99, 101, 99, 103, 120, 101)]
    assert seen == ["overlap", "overlap", "overlap", "overlap", "split", "split"]


def test_leaving_upwards_and_coming_back_takes_the_whole_band() -> None:
    policy = Policy(table([OVERLAP, SPLIT], (100, 200)), hysteresis=0.05)
    modes = [policy.decide(State(batch, 0, 0))[0].mode for batch in (150, 98, 90, 98)]
    assert modes == ["split", "split", "overlap", "overlap"]


@given(st.lists(st.tuples(st.integers(1, 10_000), st.floats(0, 1e5)), min_size=2, max_size=20))
def test_spf_order_is_that_of_length_minus_aging_at_any_moment(
    prompts: list[tuple[int, float]],
) -> None:
    now, gamma = 2e5, 500.0
    by_rank = sorted(prompts, key=lambda p: prefill_rank(p[0], p[1], "spf", gamma))
    scores = [length - gamma * (now - arrival) for length, arrival in by_rank]
    assert all(a <= b + 1e-3 for a, b in pairwise(scores))


@given(st.lists(st.tuples(st.integers(1, 10_000), st.floats(0, 1e5)), min_size=2, max_size=20))
def test_fcfs_order_is_that_of_arrival(prompts: list[tuple[int, float]]) -> None:
    by_rank = sorted(prompts, key=lambda p: prefill_rank(p[0], p[1], "fcfs"))
    arrivals = [arrival for _, arrival in by_rank]
    assert arrivals == sorted(arrivals)
