"""Who is refused: whoever would wait longer than so many bounds, and nobody else."""

from hypothesis import given
from hypothesis import strategies as st

from nexus.core.prefill.admission import LateRefusal

TOKENS = st.integers(1, 100_000)


def test_only_shorter_prompts_are_waited_for() -> None:
    refusal = LateRefusal(factor=2.0, tokens_per_s=1000.0)
    waiting = [100, 900, 5000]
    assert refusal.wait_s(1000, waiting) == 2.0
    assert not refusal.refuses(1000, waiting, ttft_s=1.0)
    assert refusal.refuses(1001, waiting, ttft_s=1.0)
    assert refusal.backlog_limit(1.0) == 2000


@given(TOKENS, st.floats(0.01, 100.0), st.floats(1.0, 10.0))
def test_an_idle_server_refuses_nobody(tokens: int, ttft_s: float, factor: float) -> None:
    assert not LateRefusal(factor, 1000.0).refuses(tokens, [], ttft_s)


@given(TOKENS, st.lists(TOKENS), TOKENS, st.floats(0.01, 100.0))
def test_more_that_wait_never_help(
    tokens: int, waiting: list[int], more: int, ttft_s: float
) -> None:
    refusal = LateRefusal(2.0, 1000.0)
    if refusal.refuses(tokens, waiting, ttft_s):
        assert refusal.refuses(tokens, [*waiting, more], ttft_s)
        assert refusal.refuses(tokens, waiting, ttft_s / 2)
