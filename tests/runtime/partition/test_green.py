"""Green contexts on a real GPU: what ``%smid`` shows of every partition."""

import time
from collections.abc import Iterator

import pytest

torch = pytest.importorskip("torch")

from nexus.core.errors import PartitionError  # noqa: E402
from nexus.runtime.partition.green import GreenContexts  # noqa: E402
from nexus.runtime.partition.verify import SmReader, stream_context  # noqa: E402

pytestmark = pytest.mark.gpu


@pytest.fixture
def contexts() -> Iterator[GreenContexts]:
    made = GreenContexts()
    yield made
    made.close()


@pytest.fixture(scope="module")
def reader() -> SmReader:
    return SmReader()


def test_every_split_is_disjoint_and_as_large_as_it_says(
    contexts: GreenContexts, reader: SmReader
) -> None:
    for prefill, decode in contexts.pairs():
        evidence = reader.examine(contexts.split(prefill, decode))
        assert evidence.partition.prefill_sms == prefill
        assert evidence.partition.decode_sms == decode
        assert evidence.problems == ()
        assert len(evidence.prefill | evidence.decode) == contexts.total_sms


def test_overlap_confines_prefill_alone(contexts: GreenContexts, reader: SmReader) -> None:
    lanes = contexts.overlap(64)
    evidence = reader.examine(lanes)
    assert evidence.problems == ()
    assert len(evidence.prefill) == 64
    assert len(evidence.decode) == contexts.total_sms
    assert lanes.decode.priority < lanes.prefill.priority


def test_every_listed_size_is_given(contexts: GreenContexts, reader: SmReader) -> None:
    for sms in contexts.sizes():
        lanes = contexts.alone(sms)
        assert lanes.partition.prefill_sms == lanes.partition.decode_sms == sms
        assert len(reader.sms_of(lanes.decode)) == sms


def test_two_sm_steps(reader: SmReader) -> None:
    contexts = GreenContexts(fine=True)
    for decode in (2, 6, 30):
        evidence = reader.examine(contexts.split(contexts.total_sms - decode, decode))
        assert len(evidence.decode) == decode
        assert not evidence.prefill & evidence.decode
    contexts.close()


def test_a_graph_keeps_the_sms_it_was_captured_on(
    contexts: GreenContexts, reader: SmReader
) -> None:
    lanes = contexts.split(contexts.total_sms - 48, 48)
    sms, nodes = reader.sms_of_graph(lanes.decode, replayed_on=lanes.prefill)
    assert sms == reader.sms_of(lanes.decode)
    assert nodes == {stream_context(lanes.decode)}
    assert stream_context(lanes.decode) != stream_context(lanes.prefill)


def test_equal_requests_share_streams(contexts: GreenContexts) -> None:
    first, again = contexts.split(80, 52), contexts.split(80, 52)
    assert first == again
    assert contexts.overlap(80).prefill == first.prefill


def test_a_whole_set_is_made_in_half_a_second() -> None:
    start = time.perf_counter()
    contexts = GreenContexts()
    for prefill, decode in contexts.pairs():
        contexts.split(prefill, decode)
    seconds = time.perf_counter() - start
    contexts.close()
    assert seconds < 0.5  # a bound users were promised, not a benchmark


def test_too_many_sms_are_refused(contexts: GreenContexts) -> None:
    with pytest.raises(PartitionError):
        contexts.split(contexts.total_sms, 8)
