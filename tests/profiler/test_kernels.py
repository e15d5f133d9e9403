import pytest
from hypothesis import given
from hypothesis import strategies as st

from nexus.profiler.kernels import KernelRecord, kernel_class, kernel_samples, overlap_ms

NAMES = {
    "nvjet_tst_128x256_64x4_2x1_v_bz_TNT": "gemm",
    "void cublasLt::splitKreduce_kernel<32, 16, int, float>": "gemm",
    "void cutlass::device_kernel<cutlass::gemm::kernel::GemmUniversal<...>>": "gemm",
    "void cutlass::device_kernel<flash::enable_sm90_or_later<flash::FlashAttnFwdSm90<...>>>": (
        "attention"
    ),
    "flash::prepare_varlen_num_blocks_kernel(...)": "attention",
    "void vllm::reshape_and_cache_flash_kernel<__nv_bfloat16, ...>": "kv_write",
    "void vllm::fused_add_rms_norm_kernel<c10::BFloat16, 8>": "norm_activation",
    "void vllm::act_and_mul_kernel<c10::BFloat16, &vllm::silu_kernel>": "norm_activation",
    "triton_red_fused__to_copy_add_mean_mul_pow_rsqrt_2": "norm_activation",
    "void vllm::rotary_embedding_kernel<c10::BFloat16, true>": "norm_activation",
    "_gumbel_sample_kernel": "sampling",
    "void at::native::reduce_kernel<512, 1, at::native::ReduceOp<float, ArgMaxOps<float>>>": (
        "sampling"
    ),
    "void at::native::vectorized_elementwise_kernel<4, FillFunctor<int>>": "other",
    "_gather_block_tables_kernel": "other",
}


@pytest.mark.parametrize(("name", "expected"), NAMES.items())
def test_kernels_are_sorted_by_name(name: str, expected: str) -> None:
    assert kernel_class(name) == expected


def test_samples_are_a_steps_mean() -> None:
    records = [
        KernelRecord("nvjet_a", 0, 1_000_000),
        KernelRecord("nvjet_b", 0, 3_000_000),
        KernelRecord("_gumbel_sample_kernel", 0, 500_000),
        KernelRecord("_gumbel_sample_kernel", 0, 500_000),
    ]
    samples = kernel_samples(records, "decode", sms=48, steps=2, context=128, batch=8)
    found = {sample.kernel_class: (sample.count, sample.ms) for sample in samples}
    assert found == {"gemm": (1, 2.0), "sampling": (1, 0.5)}
    assert {(sample.sms, sample.batch, sample.chunk) for sample in samples} == {(48, 8, 0)}


def test_overlap_counts_time_not_kernels() -> None:
    ms = 1_000_000
    records = [
        KernelRecord("a", 0, 10 * ms, stream=7),
        KernelRecord("b", 2 * ms, 4 * ms, stream=9),
        KernelRecord("c", 3 * ms, 5 * ms, stream=9),
        KernelRecord("d", 9 * ms, 12 * ms, stream=9),
        KernelRecord("e", 0, 20 * ms, stream=1),
    ]
    assert overlap_ms(records, 7, 9) == 4.0


@given(st.lists(st.tuples(st.integers(0, 50), st.integers(1, 9), st.sampled_from([1, 2]))))
def test_overlap_is_what_counting_every_instant_gives(
    spans: list[tuple[int, int, int]],
) -> None:
    records = [KernelRecord("k", start, start + long, stream=s) for start, long, s in spans]
    busy = {
        stream: {t for start, long, s in spans if s == stream for t in range(start, start + long)}
        for stream in (1, 2)
    }
    assert overlap_ms(records, 1, 2) * 1e6 == pytest.approx(len(busy[1] & busy[2]))
