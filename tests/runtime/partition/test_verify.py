from nexus.runtime.partition.base import Partition
from nexus.runtime.partition.verify import Evidence


def _evidence(prefill: range, decode: range, *, clusters: bool = True) -> Evidence:
    return Evidence(
        Partition(84, 48, 132), frozenset(prefill), frozenset(decode), clusters, clusters
    )


def test_a_good_split_has_no_problems() -> None:
    assert _evidence(range(48, 132), range(48)).problems == ()


def test_shared_sms_and_wrong_counts_are_named() -> None:
    problems = _evidence(range(40, 132), range(48)).problems
    assert problems == ("the phases share 8 SMs", "prefill ran on 92 SMs, not on 84")


def test_an_overlap_may_share() -> None:
    seen = Evidence(
        Partition(84, 132, 132),
        frozenset(range(84)),
        frozenset(range(132)),
        prefill_clusters=True,
        decode_clusters=True,
    )
    assert seen.problems == ()


def test_missing_clusters_are_named() -> None:
    problems = _evidence(range(48, 132), range(48), clusters=False).problems
    assert problems[0] == "prefill's 84 SMs cannot run thread-block clusters"
