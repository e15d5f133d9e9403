"""Matrix products of a partition's size, on a real GPU."""

import pytest

torch = pytest.importorskip("torch")

from nexus.runtime.partition.gemms import sized_for, sm_count_target  # noqa: E402
from nexus.runtime.partition.green import GreenContexts  # noqa: E402

pytestmark = pytest.mark.gpu


def test_blocks_nest_and_end() -> None:
    assert sm_count_target() == 0
    with sized_for(64):
        assert sm_count_target() == 64
        with sized_for(None):
            assert sm_count_target() == 64
        with sized_for(32):
            assert sm_count_target() == 32
        assert sm_count_target() == 64
    assert sm_count_target() == 0


def test_all_sms_are_as_if_nothing_was_said() -> None:
    sms = torch.cuda.get_device_properties(0).multi_processor_count
    with sized_for(sms):
        assert sm_count_target() == 0


def test_a_product_sized_for_its_partition_is_the_same_product() -> None:
    contexts = GreenContexts()
    lanes = contexts.alone(64)
    left, right = torch.randn(2, 2048, 2048, device="cuda", dtype=torch.bfloat16)
    expected = left @ right
    torch.cuda.synchronize()
    with torch.cuda.stream(lanes.prefill), sized_for(lanes.partition.prefill_sms):
        product = left @ right
        lanes.prefill.synchronize()
    torch.testing.assert_close(product, expected, rtol=2e-2, atol=0.5)
    contexts.close()
