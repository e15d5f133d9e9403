import pytest
from hypothesis import given
from hypothesis import strategies as st

from nexus.profiler.kernels import KernelRecord, busy, kernel_class, kernel_samples

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


@given(st.lists(st.tuples(st.integers(0, 50), st.integers(1, 9))))
def test_busy_times_are_disjoint_and_hold_every_instant_of_a_kernel(
    spans: list[tuple[int, int]],
) -> None:
    found = busy(KernelRecord("k", start, start + long) for start, long in spans)
    instants = [instant for start, end in found for instant in range(start, end)]
    assert instants == sorted({t for start, long in spans for t in range(start, start + long)})
