"""The planned scheduler on real vLLM: same tokens, the plan's chunks, the plan's order."""

import random
from dataclasses import replace
from typing import Any

import pytest

from nexus.core.plan import Table, read_plan, write_plan
from nexus.core.slo import Bounds

pytestmark = pytest.mark.engine

CHUNKS = [(16,), (1024,), (32, 300, 64)]


def prompts(count: int, seed: int = 1) -> list[list[int]]:
    generator = random.Random(seed)
    lengths = [generator.choice((5, 20, 60, 200, 600, 1500)) for _ in range(count)]
    return [[generator.randrange(3, 500) for _ in range(length)] for length in lengths]


def generate(llm: Any, wanted: list[list[int]], max_tokens: int = 8) -> list[tuple[int, ...]]:
    from vllm import SamplingParams

    params = SamplingParams(temperature=0, max_tokens=max_tokens, ignore_eos=True)
    outputs = llm.generate(
        [{"prompt_token_ids": prompt} for prompt in wanted], params, use_tqdm=False
    )
    return [tuple(output.outputs[0].token_ids) for output in outputs]


def bounded(path: Any, tbt_ms: float) -> Any:
    """The plan with another bound on TBT, which its rows hold."""
    plan = read_plan(path)
    write_plan(path, replace(plan, bounds=Bounds(plan.bounds.ttft_ms, tbt_ms)))
    return path


class Stepper:
    """Drives an engine by hand, one step at a time, in the tests' own time."""

    def __init__(self, llm: Any) -> None:
        self.engine = llm.llm_engine
        self.scheduler = self.engine.engine_core.engine_core.scheduler
        self.now_s = 1e6
        self.scheduler.nexus_clock = lambda: self.now_s
        self.steps: list[Any] = []
        self.tokens: dict[str, list[int]] = {}
        self.first_step: dict[str, int] = {}
        schedule = self.scheduler.schedule

        def recorded(*args: Any, **kwargs: Any) -> Any:
            output = schedule(*args, **kwargs)
            self.steps.append(output)
            return output

        self.scheduler.schedule = recorded

    def add(self, name: str, prompt: list[int], arrival_s: float, max_tokens: int = 4) -> None:
        from vllm import SamplingParams

        params = SamplingParams(temperature=0, max_tokens=max_tokens, ignore_eos=True)
        self.engine.add_request(name, {"prompt_token_ids": prompt}, params, arrival_time=arrival_s)

    def step(self) -> None:
        for output in self.engine.step():
            name = output.request_id
            self.tokens[name] = list(output.outputs[0].token_ids)
            self.first_step.setdefault(name, len(self.steps))

    def finish(self) -> None:
        while self.engine.has_unfinished_requests():
            self.step()


@pytest.fixture(scope="module")
def stock_tokens() -> dict[str, list[tuple[int, ...]]]:
    """Filled by the first test that runs stock vLLM, read by the others."""
    return {}


@pytest.mark.parametrize("order", ["deadline", "fcfs"])
@pytest.mark.parametrize("chunks", CHUNKS, ids=str)
def test_same_tokens_as_stock_vllm(
    open_engine: Any, make_plan: Any, stock_tokens: Any, chunks: tuple[int, ...], order: str
) -> None:
    wanted = prompts(50)
    if "tokens" not in stock_tokens:
        with open_engine() as llm:
            stock_tokens["tokens"] = generate(llm, wanted)
    with open_engine(make_plan(chunks), order) as llm:
        assert generate(llm, wanted) == stock_tokens["tokens"]


@pytest.mark.parametrize("order", ["deadline", "fcfs"])
def test_same_tokens_through_the_asynchronous_scheduler(
    open_engine: Any, make_plan: Any, order: str
) -> None:
    wanted = prompts(20, seed=2)
    with open_engine() as llm:
        expected = generate(llm, wanted)
    with open_engine(make_plan((64, 256)), order, scheduler="PlannedAsyncScheduler") as llm:
        assert generate(llm, wanted) == expected


def test_same_tokens_when_a_tiny_kv_cache_forces_preemption(
    open_engine: Any, make_plan: Any
) -> None:
    wanted = [prompt[:300] for prompt in prompts(12, seed=3)]
    with open_engine() as llm:
        expected = generate(llm, wanted, max_tokens=150)
    with open_engine(make_plan((96,)), num_gpu_blocks_override=17) as llm:
        driver = Stepper(llm)
        got = generate(llm, wanted, max_tokens=150)
        preempted = sum(len(step.preempted_req_ids or ()) for step in driver.steps)
    assert got == expected
    assert preempted > 0


def test_every_step_has_the_batch_that_the_table_names(open_engine: Any, make_plan: Any) -> None:
    path = bounded(make_plan((32, 300, 64)), 60_000.0)
    table = Table(read_plan(path))
    batches = []
    with open_engine(path, "fcfs") as llm:
        driver = Stepper(llm)
        for index, prompt in enumerate(prompts(30)):
            driver.add(str(index), prompt, arrival_s=float(index))
        while driver.engine.has_unfinished_requests():
            running = list(driver.scheduler.running)
            waiting = list(driver.scheduler.waiting)
            prefilling = [r for r in running if r.num_computed_tokens < r.num_prompt_tokens]
            backlog = sum(r.num_prompt_tokens - r.num_computed_tokens for r in prefilling)
            backlog += sum(r.num_prompt_tokens for r in waiting)
            decodes = len(running) - len(prefilling)
            kv_tokens = sum(r.num_computed_tokens for r in running)
            row = table.row(decodes, kv_tokens, backlog)
            chunk = max(table.modes[row.mode].chunk - decodes, 16)
            driver.step()
            scheduled = driver.steps[-1].total_num_scheduled_tokens
            assert scheduled == decodes + min(chunk, backlog)
            batches.append(row.mode)
    assert len(set(batches)) == 3


def test_short_prompts_pass_a_long_one(open_engine: Any, make_plan: Any) -> None:
    mean_wait = {}
    for order in ("deadline", "spf", "fcfs"):
        with open_engine(make_plan((128,)), order) as llm:
            driver = Stepper(llm)
            driver.add("long", [7] * 1500, arrival_s=driver.now_s)
            for index in range(20):
                driver.add(f"short-{index}", [index + 3] * 16, arrival_s=driver.now_s)
            driver.finish()
        assert len(driver.tokens["long"]) == 4
        waits = [step for name, step in driver.first_step.items() if name != "long"]
        mean_wait[order] = sum(waits) / 20
    assert mean_wait["fcfs"] >= 3 * max(mean_wait["spf"], mean_wait["deadline"])


@pytest.mark.parametrize("short", [20, 100], ids=["shares the step", "takes the step"])
def test_short_prompts_pass_a_partially_prefilled_long_one(
    open_engine: Any, make_plan: Any, short: int
) -> None:
    with open_engine(make_plan((128,)), "spf") as llm:
        driver = Stepper(llm)
        driver.add("long", list(range(3, 483)) * 3, arrival_s=driver.now_s)
        driver.step()
        driver.step()
        driver.add("short", list(range(5, 5 + short)), arrival_s=driver.now_s + 0.1)
        driver.step()
        assert "short" in driver.tokens
        assert "long" not in driver.tokens
        driver.finish()
        assert driver.scheduler.max_num_running_reqs == 64
    with open_engine() as llm:
        stock = Stepper(llm)
        stock.add("long", list(range(3, 483)) * 3, arrival_s=stock.now_s)
        stock.add("short", list(range(5, 5 + short)), arrival_s=stock.now_s + 0.1)
        stock.finish()
    assert driver.tokens == stock.tokens


def test_a_partially_prefilled_prompt_does_not_wait_for_one_that_there_is_no_room_for(
    open_engine: Any, make_plan: Any
) -> None:
    """16 blocks of 128: 7 decode, 9 are half a prompt's, and both need one more."""
    path = bounded(
        make_plan((16,)), 0.001
    )  # nobody has_late_budget to have the prompt done at once
    with open_engine(path, num_gpu_blocks_override=17) as llm:
        driver = Stepper(llm)
        driver.add("decodes", list(range(3, 383)) * 2, arrival_s=0.0, max_tokens=300)
        while "decodes" not in driver.tokens:
            driver.step()
        driver.add("partially prefilled", list(range(5, 505)) * 2 + [7] * 270, arrival_s=0.0)
        pool = driver.scheduler.kv_cache_manager.block_pool
        for _ in range(80):
            driver.step()
            if pool.get_num_free_blocks() == 0:
                break
        assert pool.get_num_free_blocks() == 0
        driver.add("short", [11] * 100, arrival_s=0.0)
        for _ in range(600):
            driver.step()
        assert not driver.engine.has_unfinished_requests()
    assert {name: len(tokens) for name, tokens in driver.tokens.items()} == {
        "decodes": 300,
        "partially prefilled": 4,
        "short": 4,
    }


@pytest.mark.parametrize(("share", "starves"), [(0.5, False), (0.05, True)])
def test_a_late_prompt_keeps_its_share_while_others_are_on_time(
    open_engine: Any, make_plan: Any, share: float, starves: bool
) -> None:
    with open_engine(make_plan((64,)), "spf", late_share=share) as llm:
        driver = Stepper(llm)
        driver.add("late", [7] * 1500, arrival_s=driver.now_s - 10.0)
        for step in range(60):  # each fills a whole step on its own
            driver.add(f"short-{step}", [step + 3] * 64, arrival_s=driver.now_s)
            driver.step()
        assert ("late" in driver.tokens) is not starves
        driver.finish()
    assert len(driver.tokens["late"]) == 4


def test_a_prompt_that_is_late_lets_those_pass_that_are_not(
    open_engine: Any, make_plan: Any
) -> None:
    with open_engine(make_plan((64,)), "spf") as llm:
        driver = Stepper(llm)
        now = driver.now_s
        driver.add("late", [7] * 300, arrival_s=now - 10.0)  # the bound is 2 s
        driver.add("on time", [9] * 600, arrival_s=now)
        driver.finish()
        assert driver.first_step["on time"] < driver.first_step["late"]


@pytest.mark.parametrize(("order", "first"), [("deadline", "older"), ("spf", "shorter")])
def test_an_older_prompt_goes_first_where_both_can_be_on_time_only_so(
    open_engine: Any, make_plan: Any, order: str, first: str
) -> None:
    with open_engine(make_plan((64,)), order) as llm:
        driver = Stepper(llm)
        now = driver.now_s  # the bound is 2 s, and 1000 tokens take one
        driver.add("older", [7] * 700, arrival_s=now - 1.1)
        driver.add("shorter", [9] * 600, arrival_s=now)
        driver.add("hopeless", [5] * 1600, arrival_s=now - 0.3)
        driver.finish()
    assert min(driver.first_step, key=driver.first_step.__getitem__) == first
    assert max(driver.first_step, key=driver.first_step.__getitem__) == "hopeless"


def test_a_partially_prefilled_prompt_that_is_to_be_on_time_is_not_passed(
    open_engine: Any, make_plan: Any
) -> None:
    with open_engine(make_plan((64,)), "deadline") as llm:
        driver = Stepper(llm)
        now = driver.now_s
        driver.add("partially prefilled", [7] * 1000, arrival_s=now - 0.7)
        driver.step()
        driver.step()
        driver.add("shorter", [9] * 500, arrival_s=now)
        driver.finish()
    assert driver.first_step["partially prefilled"] < driver.first_step["shorter"]


def test_a_prompt_becomes_late_while_it_waits(open_engine: Any, make_plan: Any) -> None:
    with open_engine(make_plan((64,)), "spf") as llm:
        driver = Stepper(llm)
        queue = driver.scheduler.waiting
        now = driver.now_s
        for name, length, waited_s in (("a", 50, 1.9), ("b", 100, 0.0), ("c", 300, 1.95)):
            driver.add(name, [7] * length, arrival_s=now - waited_s)
        assert [request.request_id[0] for request in queue] == ["a", "b", "c"]
        queue.step(now, [], 0.0)
        assert [request.request_id[0] for request in queue] == ["a", "b", "c"]
        queue.step(now + 0.2, [], 0.0)
        assert [request.request_id[0] for request in queue] == ["b", "c", "a"]
        queue.step(now, [], 0.0)  # clocks are set back at times
        assert [request.request_id[0] for request in queue] == ["b", "c", "a"]
        driver.finish()
    assert {len(tokens) for tokens in driver.tokens.values()} == {4}


def test_all_that_waits_is_computed_at_once_while_everyone_affords_a_late_gap(
    open_engine: Any, make_plan: Any
) -> None:
    with open_engine(bounded(make_plan((64,)), 60_000.0)) as llm:
        driver = Stepper(llm)
        driver.add("old", [7] * 40, arrival_s=0.0, max_tokens=64)
        for _ in range(10):
            driver.step()
        driver.add("first", [5] * 500, arrival_s=0.0, max_tokens=1)
        driver.step()
        assert driver.steps[-1].total_num_scheduled_tokens == 64  # nobody can afford it so far
        for _ in range(15):
            driver.step()
        driver.add("second", [3] * 500, arrival_s=0.0, max_tokens=1)
        driver.step()
        assert driver.steps[-1].total_num_scheduled_tokens == 501
        driver.finish()


def test_batches_shrink_where_gaps_are_late_and_the_tokens_stay(
    open_engine: Any, make_plan: Any
) -> None:
    wanted = prompts(12, seed=4)
    with open_engine() as llm:
        expected = generate(llm, wanted, max_tokens=30)
    with open_engine(bounded(make_plan((512,)), 0.001)) as llm:
        driver = Stepper(llm)
        assert generate(llm, wanted, max_tokens=30) == expected
        scheduler = driver.scheduler
        assert scheduler.nexus_policy.controller.scale < 0.95
        assert max(step.total_num_scheduled_tokens for step in driver.steps[-20:]) < 512
        scheduler._late_gaps.update({f"gone-{n}": 1 for n in range(100)})
        assert generate(llm, wanted[:2], max_tokens=30) == expected[:2]
        assert len(scheduler._late_gaps) < 70  # those that left are forgotten
