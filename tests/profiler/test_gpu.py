"""Measuring on a real GPU, with a real but tiny model."""

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from nexus.profiler.points import Point

pytestmark = [
    pytest.mark.gpu,
    pytest.mark.engine,
    pytest.mark.filterwarnings("ignore"),  # of libraries that a GPU's vLLM alone imports
]

POINTS = [
    Point("prefill", 64, 0, chunk=256),
    Point("prefill", 132, 0, chunk=64, prefill_context=128),
    Point("decode", 0, 48, decode_batch=4, decode_context=100),
    Point("decode", 0, 132, decode_batch=3, decode_context=100),
    Point("fused", 132, 132, 128, 0, 4, 100),
    Point("split", 80, 52, 256, 0, 4, 100),
    Point("overlap", 80, 132, 256, 0, 4, 100),
]


@pytest.fixture(scope="module")
def llm(tiny_model: Path) -> Iterator[Any]:
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("VLLM_ENABLE_V1_MULTIPROCESSING", "0")
        from vllm import LLM
        from vllm.distributed import cleanup_dist_env_and_memory

        engine = LLM(
            model=str(tiny_model),
            dtype="bfloat16",
            enable_prefix_caching=False,
            kv_cache_memory_bytes=1 << 28,
            max_model_len=2048,
            max_num_batched_tokens=2048,
            max_num_seqs=16,
        )
        yield engine
        engine.llm_engine.engine_core.shutdown()
        del engine
        cleanup_dist_env_and_memory()


def _measure(worker: Any) -> tuple[list[Any], list[Any]]:
    from nexus.profiler.worker import meter_of

    meter = meter_of(worker)
    if meter.contexts.total_sms != 132:
        pytest.skip("the points are an H200's")
    samples = [meter.measure(point) for point in POINTS]
    before = worker.model_runner.cudagraph_manager
    stock = meter.stock(POINTS[4])
    assert worker.model_runner.cudagraph_manager is before
    kernels = [sample for point in POINTS[::2][:2] for sample in meter.kernels(point)]
    return [*samples, stock], kernels


def test_every_mode_is_measured(llm: Any) -> None:
    ((samples, kernels),) = llm.collective_rpc(_measure)
    assert [sample.key for sample in samples] == [point.key for point in (*POINTS, POINTS[4])]
    assert all(sample.repeats >= 5 for sample in samples)
    assert all(sample.sm_mhz for sample in samples)
    for phase in ("prefill", "decode"):
        classes = {sample.kernel_class for sample in kernels if sample.phase == phase}
        assert classes >= {"gemm", "attention", "norm_activation", "kv_write"}


def _tokens_of_confined_steps(worker: Any) -> list[list[Any]]:
    from nexus.profiler.gpu import QueuedSteps
    from nexus.runtime.partition.green import GreenContexts
    from nexus.runtime.vllm.graphs.decode import DecodeLane

    class Kept(QueuedSteps):
        def settle(self, leave: int = 0) -> None:
            while len(self._queued) > leave:
                kept.append(self._queued.popleft().get_output().sampled_token_ids)

    contexts = GreenContexts()
    lane, steps, runs = DecodeLane(worker.model_runner), Kept(worker), []
    sides = (contexts.total_sms, 48, 16)
    streams = [contexts.alone(sms).decode for sms in sides]
    captures = zip(streams[1:], sides[1:], strict=True)
    graph_sets = [None, *(lane.capture(stream, sms, [1, 2, 4]) for stream, sms in captures)]
    for stream, graphs in zip(streams, graph_sets, strict=True):
        kept: list[Any] = []
        steps.begin(4, 50, 20)
        with lane.on(stream, graphs):
            for _ in range(12):
                steps.launch()
                steps.settle(1)
            steps.settle()
        lane.leave()
        steps.end()
        runs.append(kept[:12])
    return runs


def test_confined_decode_gives_the_same_tokens(llm: Any) -> None:
    (runs,) = llm.collective_rpc(_tokens_of_confined_steps)
    assert len(runs[0]) == 12
    # With other SMs a GEMM may round otherwise, and two tokens may be as likely; a graph that
    # read another's inputs would agree nowhere.
    for confined in runs[1:]:
        agreed = [
            first == second
            for step, other in zip(runs[0][:4], confined[:4], strict=True)
            for first, second in zip(step, other, strict=True)
        ]
        assert sum(agreed) >= len(agreed) / 2
