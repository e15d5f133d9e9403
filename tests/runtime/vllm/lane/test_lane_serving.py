"""Serving through the prefill lane on real vLLM: same tokens, nothing lost."""

import random
from typing import Any

import pytest

from nexus.core.plan import Mode

pytestmark = pytest.mark.engine

OVERLAP = Mode("overlap", 256, prefill_sms=1)
SPLIT = Mode("split", 96, prefill_sms=1, decode_sms=1)
FUSED = Mode("fused", 64)


def mixed_prompts(count: int, seed: int = 1) -> list[list[int]]:
    """Prompts of many lengths, a third of them with a beginning in common."""
    generator = random.Random(seed)
    start = [generator.randrange(3, 500) for _ in range(150)]
    prompts = []
    for index in range(count):
        length = generator.choice((2, 20, 33, 60, 200, 600, 1500))
        prompt = [generator.randrange(3, 500) for _ in range(length)]
        prompts.append(start + prompt if index % 3 == 0 else prompt)
    return prompts


def generate(llm: Any, wanted: list[list[int]], max_tokens: int = 8) -> list[tuple[int, ...]]:
    from vllm import SamplingParams

    params = SamplingParams(temperature=0, max_tokens=max_tokens, ignore_eos=True)
    outputs = llm.generate(
        [{"prompt_token_ids": prompt} for prompt in wanted], params, use_tqdm=False
    )
    return [tuple(output.outputs[0].token_ids) for output in outputs]


@pytest.fixture(scope="module")
def stock_tokens() -> dict[str, list[tuple[int, ...]]]:
    """Filled by the first test that runs stock vLLM, read by the others."""
    return {}


@pytest.mark.parametrize("caching", [True, False], ids=["prefix caching", "no prefix caching"])
@pytest.mark.parametrize("modes", [(OVERLAP,), (SPLIT, FUSED)], ids=["overlap", "split and fused"])
def test_same_tokens_as_stock_vllm(
    open_engine: Any, lane_plan: Any, stock_tokens: Any, modes: tuple[Mode, ...], caching: bool
) -> None:
    wanted = mixed_prompts(200)
    if not stock_tokens:
        with open_engine(enable_prefix_caching=False) as llm:
            stock_tokens["tokens"] = generate(llm, wanted)
    with open_engine(lane_plan(modes), lane=True, enable_prefix_caching=caching) as llm:
        assert generate(llm, wanted) == stock_tokens["tokens"]


def parts(llm: Any) -> tuple[Any, Any]:
    """The engine's scheduler and the worker's lane driver, both in this process."""
    core = llm.llm_engine.engine_core.engine_core
    worker = core.model_executor.driver_worker
    return core.scheduler, getattr(worker, "worker", worker)._nexus_driver


def add(llm: Any, name: str, prompt: list[int], max_tokens: int = 4) -> None:
    from vllm import SamplingParams

    params = SamplingParams(temperature=0, max_tokens=max_tokens, ignore_eos=True)
    llm.llm_engine.add_request(name, {"prompt_token_ids": prompt}, params)


def finish(llm: Any, steps: int = 20_000) -> dict[str, tuple[int, ...]]:
    """Step to the end, delayed frees included; the tokens of every request that was not aborted."""
    core = llm.llm_engine.engine_core.engine_core
    done: dict[str, tuple[int, ...]] = {}
    for _ in range(steps):
        if not core.scheduler.has_requests():
            return done
        for output in llm.llm_engine.step():
            if output.finished:
                done[output.request_id] = tuple(output.outputs[0].token_ids)
    raise AssertionError("requests hang")


def assert_nothing_left(llm: Any) -> None:
    scheduler, driver = parts(llm)
    pool = scheduler.kv_cache_manager.block_pool
    assert pool.get_num_free_blocks() == pool.num_gpu_blocks - 1  # vLLM keeps a null block
    assert not scheduler.requests
    assert not driver.busy
    admission = scheduler.connector.admission
    assert (admission.queued, admission.backlog) == (0, 0)
    assert not admission._requests
    assert not admission._launched


def counting_passes(driver: Any) -> list[int]:
    """Filled with the tokens of every pass launched from here on."""
    passes: list[int] = []
    launch = driver._launcher.launch

    def counted(mode: Any, rows: Any, **options: Any) -> Any:
        passes.append(sum(len(row.tokens) for row in rows))
        return launch(mode, rows, **options)

    driver._launcher.launch = counted
    return passes


def ending_later(driver: Any) -> None:
    """Let passes end some looks after they ran, as they do where they run beside steps."""
    generator = random.Random(2)
    launch = driver._launcher.launch

    class Later:
        def __init__(self, work: Any) -> None:
            self.work, self.looks = work, generator.randrange(12)

        def finished(self) -> bool:
            self.looks -= 1
            return self.looks < 0

    driver._launcher.launch = lambda *args, **options: Later(launch(*args, **options))


@pytest.mark.parametrize("order", ["deadline", "fcfs"])
def test_same_tokens_when_passes_end_late_and_modes_change(
    open_engine: Any, lane_plan: Any, order: str
) -> None:
    wanted = mixed_prompts(60, seed=7)
    with open_engine() as llm:
        expected = generate(llm, wanted)
    plan = lane_plan((FUSED, SPLIT, OVERLAP))
    with open_engine(plan, order, lane=True, scheduler="PlannedAsyncScheduler") as llm:
        driver = parts(llm)[1]
        passes = counting_passes(driver)
        ending_later(driver)
        assert generate(llm, wanted) == expected
        assert len(passes) > 5
        assert_nothing_left(llm)


def test_prompts_really_go_through_the_lane(open_engine: Any, lane_plan: Any) -> None:
    prompts = [[index + 3] * 400 for index in range(6)]
    with open_engine(lane_plan((OVERLAP,)), lane=True, enable_prefix_caching=False) as llm:
        passes = counting_passes(parts(llm)[1])
        generate(llm, prompts)
        assert sum(passes) == 6 * 399  # the last token of each runs in a step
        assert max(passes) == OVERLAP.chunk
        assert_nothing_left(llm)


@pytest.mark.parametrize("caching", [True, False], ids=["prefix caching", "no prefix caching"])
def test_same_tokens_when_a_tiny_kv_cache_forces_preemption(
    open_engine: Any, lane_plan: Any, caching: bool
) -> None:
    wanted = [prompt[:300] for prompt in mixed_prompts(12, seed=3)]
    with open_engine() as llm:
        expected = generate(llm, wanted, max_tokens=150)
    options = {"lane": True, "num_gpu_blocks_override": 17, "enable_prefix_caching": caching}
    with open_engine(lane_plan((OVERLAP, SPLIT)), **options) as llm:
        preempted: list[str] = []
        scheduler, _ = parts(llm)
        preempt = scheduler._preempt_request

        def noted(request: Any, *args: Any, **kwargs: Any) -> None:
            preempted.append(request.request_id)
            preempt(request, *args, **kwargs)

        scheduler._preempt_request = noted
        assert generate(llm, wanted, max_tokens=150) == expected
        assert preempted
        assert_nothing_left(llm)


def test_aborts_in_the_middle_of_a_lane_prefill(open_engine: Any, lane_plan: Any) -> None:
    survivor = [*range(3, 503), *range(3, 203)]
    with open_engine() as llm:
        (expected,) = generate(llm, [survivor], max_tokens=4)
    with open_engine(lane_plan((SPLIT,)), lane=True) as llm:
        scheduler, driver = parts(llm)
        for steps in range(6):
            add(llm, "long", list(range(3, 503)))
            add(llm, "survivor", survivor)
            for _ in range(steps):
                llm.llm_engine.step()
            on_lane = any(name.startswith("long") for name in driver._queue._jobs)
            llm.llm_engine.abort_request(["long"])
            assert finish(llm) == {"survivor": expected}
            assert on_lane is (steps > 0)
            assert_nothing_left(llm)
            scheduler.reset_prefix_cache()


def test_a_failed_launch_puts_its_prompts_back_to_fused(open_engine: Any, lane_plan: Any) -> None:
    import torch

    wanted = mixed_prompts(20, seed=5)
    with open_engine() as llm:
        expected = generate(llm, wanted)
    with open_engine(lane_plan((SPLIT,)), lane=True) as llm:
        _, driver = parts(llm)
        launch = driver._launcher.launch
        failures: list[bool] = []

        def failing(mode: Any, rows: Any, **options: Any) -> Any:
            failures.append(len(failures) % 3 == 1)
            if failures[-1]:
                raise torch.OutOfMemoryError("no memory, says the test")
            return launch(mode, rows, **options)

        driver._launcher.launch = failing
        assert generate(llm, wanted) == expected
        assert sum(failures) > 2
        assert_nothing_left(llm)


def test_nothing_is_lost_when_a_fifth_is_aborted(open_engine: Any, lane_plan: Any) -> None:
    generator = random.Random(11)
    with open_engine(lane_plan((OVERLAP, FUSED, SPLIT)), lane=True, max_num_seqs=32) as llm:
        ending_later(parts(llm)[1])
        aborted: set[str] = set()
        done: dict[str, tuple[int, ...]] = {}
        under_way: list[str] = []
        for index in range(2000):
            name = str(index)
            length = generator.choice((5, 40, 90))
            add(llm, name, [generator.randrange(3, 500) for _ in range(length)], max_tokens=2)
            under_way.append(name)
            if generator.random() < 0.2:
                victim = under_way.pop(generator.randrange(len(under_way)))
                if victim not in done:
                    aborted.add(victim)
                    llm.llm_engine.abort_request([victim])
            if index % 12 == 11:
                for output in llm.llm_engine.step():
                    done[output.request_id] = tuple(output.outputs[0].token_ids)
                under_way = under_way[-30:]
        done |= finish(llm)
        assert len(aborted) > 300
        assert set(done) | aborted == set(map(str, range(2000)))
        assert_nothing_left(llm)


def test_prompts_in_a_pass_that_does_not_end_fail_and_the_rest_is_served(
    open_engine: Any, lane_plan: Any
) -> None:
    wanted = [[index + 3] * 120 for index in range(8)]
    with open_engine() as llm:
        expected = generate(llm, wanted)
    with open_engine(lane_plan((OVERLAP,)), lane=True) as llm:
        scheduler, driver = parts(llm)
        driver._stuck_after_s = 0.1
        launch = driver._launcher.launch
        released: list[bool] = []

        class Endless:
            def finished(self) -> bool:
                return bool(released)

        driver._launcher.launch = lambda *args, **options: Endless()
        for index in range(4):
            add(llm, str(index), wanted[index], max_tokens=8)
        reasons = {}
        while llm.llm_engine.has_unfinished_requests():
            for output in llm.llm_engine.step():
                reasons[output.request_id] = output.outputs[0].finish_reason
        assert "error" in reasons.values()
        driver._launcher.launch = launch
        assert generate(llm, wanted) == expected
        assert scheduler.connector.admission.disabled
        released.append(True)
        finish(llm)
        assert_nothing_left(llm)
