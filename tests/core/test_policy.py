"""The policy: what the table says, without flapping."""

from hypothesis import given
from hypothesis import strategies as st

from nexus.core.plan import Axes, Mode, Row, Table
from nexus.core.policy import Policy, State
from nexus.core.tbt import TbtController


class _Plan:
    """As much of a plan as a table indexes."""

    def __init__(self, axes: Axes, modes: dict[str, Mode], rows: list[Row]) -> None:
        self.axes, self.modes, self.rows = axes, modes, rows


def table(modes: list[Mode], batches: tuple[int, ...]) -> Table:
    axes = Axes(batches, (0,), (0,))
    rows = [Row(*state, mode=mode.name) for state, mode in zip(axes.states(), modes, strict=True)]
    return Table(_Plan(axes, {mode.name: mode for mode in modes}, rows))  # type: ignore[arg-type]


def policy_of(lookup: Table) -> Policy:
    """Under a bound that nothing breaks."""
    return Policy(lookup, TbtController(1e9, 512, frozenset()))


def nobody() -> bool:
    return False


FUSED, SPLIT, OVERLAP = Mode("fused", 512), Mode("split", 1024, 84, 48), Mode("overlap", 1024, 100)


@given(st.lists(st.integers(0, 300), min_size=1, max_size=50))
def test_fused_chunks_follow_the_table_at_every_step(batches: list[int]) -> None:
    modes = [Mode("fused", chunk) for chunk in (512, 256, 128)]
    lookup = table(modes, (8, 64, 256))
    policy = policy_of(lookup)
    for batch in batches:
        mode, row = policy.decide(State(batch, 0, 0), nobody)
        assert row == lookup.row(batch, 0, 0)
        assert mode == lookup.modes[row.mode]


def test_a_partition_is_kept_across_noise_at_a_grid_line() -> None:
    policy = policy_of(table([OVERLAP, SPLIT], (100, 200)))
    seen = [
        policy.decide(State(batch, 0, 0), nobody)[0].mode for batch in (99, 101, 99, 103, 120, 101)
    ]
    assert seen == ["overlap", "overlap", "overlap", "overlap", "split", "split"]


def test_leaving_upwards_and_coming_back_takes_the_whole_band() -> None:
    policy = policy_of(table([OVERLAP, SPLIT], (100, 200)))
    modes = [policy.decide(State(batch, 0, 0), nobody)[0].mode for batch in (150, 98, 90, 98)]
    assert modes == ["split", "split", "overlap", "overlap"]
