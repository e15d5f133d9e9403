"""What the prefill lane gives to other folders."""

import pytest

from nexus.runtime.vllm import lane

ON_A_GPU = {"Partitions"}


def test_gives_every_name_that_it_lists() -> None:
    names = {name for names in lane._MODULES.values() for name in names}
    for name in names - ON_A_GPU:
        assert getattr(lane, name).__name__ == name


def test_gives_nothing_else() -> None:
    with pytest.raises(AttributeError, match="no FlatRows for others"):
        _ = lane.FlatRows
