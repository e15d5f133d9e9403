"""Whatever comes, in whatever order: the planned scheduler moves, ends requests, starves nobody.

vLLM's own scheduler and KV cache manager, with an executor in the place of the worker: it says
that each prompt that is whole gives a token, and proposes drafts.
"""

import copy
import random
from collections import Counter, deque
from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import cache, partial
from itertools import accumulate
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, example, given, settings
from hypothesis import strategies as st

from nexus.core.prefill.ranking import ORDERS

pytestmark = pytest.mark.engine

BLOCK = 16
MAX_MODEL_LEN = 1024
MAX_TOKENS = 256
WINDOW = 64
CHUNKS = [(16,), (64,), (512,), (16, 300, 64)]


@dataclass(frozen=True)
class Arrival:
    """A request that comes before step ``step`` and is given up at ``aborted`` if it is there."""

    step: int
    prompt: int
    output: int
    prefix: int
    waited_s: float
    aborted: int | None


@dataclass(frozen=True)
class Server:
    """What the scheduler has: seats, KV blocks and groups, drafts, and how it is driven."""

    seats: int
    blocks: int
    groups: str
    drafts: int
    ahead: bool
    caching: bool
    order: Any
    chunks: tuple[int, ...]
    step_s: float = 0.01


arrivals = st.lists(
    st.builds(
        Arrival,
        step=st.integers(0, 40),
        prompt=st.integers(1, 900),
        output=st.integers(1, 60),
        prefix=st.sampled_from([0, 0, 40, 400]),
        waited_s=st.floats(0, 4),
        aborted=st.none() | st.integers(0, 80),
    ),
    min_size=1,
    max_size=24,
)
servers = st.builds(
    Server,
    seats=st.sampled_from([1, 2, 4, 16]),
    blocks=st.integers(1, 4),
    groups=st.sampled_from(["full", "full", "full and sliding"]),
    drafts=st.sampled_from([0, 0, 3]),
    ahead=st.booleans(),
    caching=st.booleans(),
    order=st.sampled_from(ORDERS),
    chunks=st.sampled_from(CHUNKS),
    step_s=st.sampled_from([0.001, 0.05, 0.5]),
)


class Drive:
    """A scheduler, and an executor that does what it is asked to."""

    def __init__(self, config: Any, server: Server, plan: Path) -> None:
        import torch
        from vllm.v1.core.kv_cache_utils import get_request_block_hasher, init_none_hash
        from vllm.v1.kv_cache_interface import (
            FullAttentionSpec,
            KVCacheConfig,
            KVCacheGroupSpec,
            SlidingWindowSpec,
        )
        from vllm.v1.structured_output import StructuredOutputManager

        from nexus.runtime.vllm.context import ServeContext
        from nexus.runtime.vllm.scheduling.scheduler import PlannedAsyncScheduler, PlannedScheduler

        init_none_hash(hash)
        shape = {"block_size": BLOCK, "num_kv_heads": 1, "head_size": 32, "dtype": torch.float32}
        groups = [KVCacheGroupSpec(["full"], FullAttentionSpec(**shape))]
        if server.groups != "full":
            sliding = SlidingWindowSpec(**shape, sliding_window=WINDOW)
            groups += [KVCacheGroupSpec([f"sliding {n}"], sliding) for n in range(2)]
        # Room for the longest request, and some more; in a window for the steps under way too.
        window = (1 + server.ahead) * MAX_TOKENS + WINDOW
        longest = (MAX_MODEL_LEN + (len(groups) - 1) * window) // BLOCK + 2 * len(groups)
        blocks = 1 + longest * (1 + server.blocks) // 2
        config = copy.copy(config)
        config.scheduler_config = copy.copy(config.scheduler_config)
        config.scheduler_config.max_num_seqs = server.seats
        config.cache_config = copy.copy(config.cache_config)
        config.cache_config.num_gpu_blocks = blocks
        config.cache_config.enable_prefix_caching = server.caching
        config.additional_config = ServeContext(plan, server.order)
        make = PlannedAsyncScheduler if server.ahead else PlannedScheduler
        self.server = server
        self.scheduler = make(
            config,
            KVCacheConfig(num_blocks=blocks, kv_cache_tensors=[], kv_cache_groups=groups),
            StructuredOutputManager(config),
            block_size=BLOCK,
            hash_block_size=BLOCK,
        )
        self.now_s = 1e9
        self.scheduler.nexus_clock = lambda: self.now_s
        self.hasher = get_request_block_hasher(BLOCK, partial(_digest))
        self.under_way: deque[Any] = deque()
        self.missed: Counter[str] = Counter()
        self.steps: list[Any] = []
        self.first_step: dict[str, int] = {}

    def see_images(self) -> None:
        """As vLLM sets itself up for a model whose images are never cut."""
        from vllm.v1.core.encoder_cache_manager import EncoderCacheManager

        self.scheduler.scheduler_config.disable_chunked_mm_input = True
        self.scheduler.max_num_encoder_input_tokens = MAX_TOKENS
        self.scheduler.encoder_cache_manager = EncoderCacheManager(8 * MAX_TOKENS)

    def add(self, name: str, arrival: Arrival, images: Sequence[tuple[int, int]] = ()) -> None:
        """``images``: the first token and the number of tokens of each."""
        from vllm import SamplingParams
        from vllm.multimodal.inputs import MultiModalFeatureSpec, PlaceholderRange
        from vllm.v1.request import Request

        numbers = random.Random(name)
        prefix = [7] * min(arrival.prefix, arrival.prompt - 1)
        tokens = prefix + [numbers.randrange(8, 500) for _ in range(arrival.prompt - len(prefix))]
        params = SamplingParams(max_tokens=arrival.output, ignore_eos=True)
        params.update_from_generation_config({}, eos_token_id=2)
        self.scheduler.add_request(
            Request(
                name,
                tokens,
                params,
                None,
                arrival_time=self.now_s - arrival.waited_s,
                mm_features=[
                    MultiModalFeatureSpec(
                        data=None,
                        modality="image",
                        identifier=f"{name}-{start}",
                        mm_position=PlaceholderRange(offset=start, length=length),
                    )
                    for start, length in images
                ],
                block_hasher=self.hasher,
            )
        )

    def abort(self, name: str) -> None:
        from vllm.v1.request import RequestStatus

        if name in self.scheduler.requests:
            self.scheduler.finish_requests(name, RequestStatus.FINISHED_ABORTED)

    @property
    def busy(self) -> bool:
        return bool(self.scheduler.requests)

    def step(self) -> None:
        """Schedule one step; its result comes at once, or after the next is scheduled."""
        scheduler = self.scheduler
        decoding = {r.request_id: r for r in scheduler.running if not r.is_prefill_chunk}
        self.now_s += self.server.step_s
        output = scheduler.schedule()
        scheduled = output.num_scheduled_tokens
        idle = not scheduled and not self.under_way
        assert not (idle and self.busy), "nothing is scheduled, and nothing is under way"
        running = {request.request_id for request in scheduler.running}
        for name, request in decoding.items():
            ends = request.num_output_tokens + request.num_output_placeholders
            sits_out = name not in scheduled and name in running and ends < request.max_tokens
            self.missed[name] = self.missed[name] + 1 if sits_out else 0
            assert self.missed[name] < 2, f"{name} decodes and missed two steps in a row"
        ends_prompt = {name: not scheduler.requests[name].is_prefill_chunk for name in scheduled}
        self.steps.append(output)
        for name, ends in ends_prompt.items():
            if ends:
                self.first_step.setdefault(name, len(self.steps))
        self.under_way.append((output, ends_prompt))
        while len(self.under_way) > (1 if self.server.ahead and scheduled else 0):
            self._end(*self.under_way.popleft())

    def _end(self, output: Any, ends_prompt: dict[str, bool]) -> None:
        from vllm.v1.outputs import DraftTokenIds, ModelRunnerOutput

        names = list(output.num_scheduled_tokens)
        sampled: list[list[int]] = []
        for name in names:
            drafts = output.scheduled_spec_decode_tokens.get(name, [])
            kept = len(drafts) // 2  # half of them are right
            sampled.append([11] * (1 + kept) if ends_prompt[name] else [])
        result = ModelRunnerOutput(
            req_ids=names,
            req_id_to_index={name: index for index, name in enumerate(names)},
            sampled_token_ids=sampled,
        )
        self.scheduler.update_from_output(output, result)
        if self.server.drafts and not self.server.ahead:
            proposed = [[13] * self.server.drafts for _ in names]
            self.scheduler.update_draft_token_ids(DraftTokenIds(names, proposed))


def _digest(value: Any) -> bytes:
    return hash(value).to_bytes(8, "little", signed=True)


@pytest.fixture(scope="module")
def config_of(tiny_model: Path) -> Any:
    """vLLM's configuration, with or without drafts."""
    from vllm.engine.arg_utils import EngineArgs

    @cache
    def make(drafts: int) -> Any:
        more = {}
        if drafts:
            more["speculative_config"] = {
                "method": "ngram",
                "num_speculative_tokens": drafts,
                "prompt_lookup_max": 4,
            }
        return EngineArgs(
            model=str(tiny_model),
            dtype="float32",
            enforce_eager=True,
            max_model_len=MAX_MODEL_LEN,
            max_num_batched_tokens=MAX_TOKENS,
            max_num_seqs=16,
            kv_cache_memory_bytes=1 << 28,
            block_size=BLOCK,
            **more,
        ).create_engine_config()

    return make


@pytest.fixture
def plan_of(make_plan: Any) -> Any:
    """The plan of so many chunks, written once."""
    return cache(make_plan)


@settings(suppress_health_check=[HealthCheck.function_scoped_fixture], max_examples=150)
@given(server=servers, requests=arrivals)
def test_every_step_moves_and_every_request_ends(
    config_of: Any, plan_of: Any, server: Server, requests: list[Arrival]
) -> None:
    drive = Drive(config_of(server.drafts), server, plan_of(server.chunks))
    coming = sorted(enumerate(requests), key=lambda each: each[1].step)
    most = 100 + 4 * sum(each.prompt + each.output for each in requests)
    for step in range(most):
        while coming and coming[0][1].step <= step:
            number, arrival = coming.pop(0)
            drive.add(str(number), arrival)
        for number, arrival in enumerate(requests):
            if arrival.aborted == step:
                drive.abort(str(number))
        if not (drive.busy or coming):
            return
        drive.step()
    raise AssertionError(f"not done after {most} steps: {list(drive.scheduler.requests)}")


def come(prompt: int, output: int = 4, prefix: int = 0, waited_s: float = 0.0) -> Arrival:
    return Arrival(0, prompt, output, prefix, waited_s, None)


SERVER = Server(16, 4, "full", 0, ahead=False, caching=True, order="deadline", chunks=(64,))


def run(drive: Drive, until: str | None = None) -> None:
    while drive.busy and until not in drive.first_step:
        drive.step()


@pytest.mark.parametrize("seats", [1, 2, 4])
@pytest.mark.parametrize("order", ["deadline", "spf"])
def test_prompts_that_hold_all_seats_do_not_sit_out(
    config_of: Any, plan_of: Any, seats: int, order: str
) -> None:
    drive = Drive(config_of(0), replace(SERVER, seats=seats, order=order), plan_of((64,)))
    for number in range(seats - 1):
        drive.add(f"decodes {number}", come(20, 200))
    for _ in range(5):
        drive.step()
    drive.add("long", come(900))
    for _ in range(5):
        drive.step()
    drive.add("short", come(100))
    run(drive, "long")
    assert drive.first_step["long"] <= 10 + 900 // (64 - seats)
    run(drive)
    assert "short" in drive.first_step


def test_a_prompt_with_room_in_one_kv_group_alone_is_not_waited_for(
    config_of: Any, plan_of: Any
) -> None:
    server = replace(SERVER, blocks=1, groups="full and sliding", caching=False, order="spf")
    drive = Drive(config_of(0), server, plan_of((64,)))
    drive.add("partially prefilled", come(1000))
    for _ in range(4):
        drive.step()
    drive.add("waiting", come(700))
    run(drive, "partially prefilled")
    assert drive.first_step["partially prefilled"] <= 20
    run(drive)


@pytest.mark.parametrize("order", ORDERS)
def test_a_prompt_with_a_cached_prefix_ranks_by_what_is_left(
    config_of: Any, plan_of: Any, order: str
) -> None:
    drive = Drive(config_of(0), replace(SERVER, order=order), plan_of((64,)))
    drive.add("first turn", come(800, prefix=799))
    run(drive)
    drive.add("follow-up", come(840, prefix=799, waited_s=0.01))
    for number in range(12):
        drive.add(f"cold {number}", come(400))
    start = len(drive.steps)
    run(drive)
    assert drive.first_step["follow-up"] <= start + 2


def test_a_prefix_that_another_computes_meanwhile_counts(config_of: Any, plan_of: Any) -> None:
    drive = Drive(config_of(0), SERVER, plan_of((64,)))
    drive.add("computes", come(800, prefix=799))
    drive.step()
    drive.add("cold", come(900, waited_s=0.5))
    drive.add("same beginning", come(840, prefix=799))
    cache, waiting = drive.scheduler._prefix_cache, drive.scheduler.waiting
    _, waits = sorted(waiting, key=lambda request: request.request_id)
    pool = drive.scheduler.kv_cache_manager.block_pool
    free = pool.get_num_free_blocks()
    assert cache.tokens_left(waits) == 840 - 64  # cached as soon as they are scheduled
    assert pool.get_num_free_blocks() == free
    run(drive)
    assert drive.first_step["same beginning"] < drive.first_step["cold"]


def test_evicted_blocks_no_longer_count(config_of: Any, plan_of: Any) -> None:
    drive = Drive(config_of(0), replace(SERVER, seats=1, blocks=1), plan_of((64,)))
    drive.add("first turn", come(800, prefix=799))
    run(drive)
    drive.add("evicts", come(1000))
    drive.step()
    drive.add("follow-up", come(840, prefix=799))
    (waiting,) = drive.scheduler.waiting
    cache = drive.scheduler._prefix_cache
    assert cache.tokens_left(waiting) == 840 - 784
    run(drive, "evicts")
    assert cache.tokens_left(waiting) > 700


def test_prompts_and_decodes_go_on_beside_drafts(config_of: Any, plan_of: Any) -> None:
    drive = Drive(config_of(7), replace(SERVER, drafts=7), plan_of((16,)))
    for number in range(15):
        drive.add(f"decodes {number}", come(20, 400))
    run(drive, "decodes 14")
    start = len(drive.steps)
    drive.add("prompt", come(640))
    run(drive, "prompt")
    assert drive.first_step["prompt"] <= start + 640 / 16 + 1
    for output in drive.steps[start + 2 :]:
        assert len(output.scheduled_spec_decode_tokens) == 15
    run(drive)


layouts = st.lists(  # of each prompt: text, image, text, image, ..., text
    st.lists(st.integers(0, 90) | st.integers(65, 200), min_size=1, max_size=5), max_size=6
)
# A text would sit out for a shorter one, and an image be the first of what follows that.
PASSED_BY_A_TEXT = [[0, 47, 78, 123], [82, 82, 84, 84], [71, 74, 78, 99, 193], [6], [75], [46]]


@settings(suppress_health_check=[HealthCheck.function_scoped_fixture], max_examples=60)
@given(
    layouts=layouts,
    order=st.sampled_from(ORDERS),
    ahead=st.booleans(),
    step_s=st.sampled_from([0.001, 0.05, 0.5]),
)
@example(layouts=PASSED_BY_A_TEXT, order="deadline", ahead=False, step_s=0.01)
@example(layouts=PASSED_BY_A_TEXT, order="deadline", ahead=False, step_s=0.05)
def test_an_image_is_never_cut(
    config_of: Any, plan_of: Any, layouts: list[list[int]], order: str, ahead: bool, step_s: float
) -> None:
    server = replace(SERVER, order=order, ahead=ahead, step_s=step_s)
    drive = Drive(config_of(0), server, plan_of((64,)))
    drive.see_images()
    drive.add("decodes", come(30, 60))
    images: dict[str, list[tuple[int, int]]] = {}
    for number, parts in enumerate(layouts):
        ends = list(accumulate(parts, initial=0))
        name, pairs = str(number), list(zip(ends, parts, strict=False))
        images[name] = [(start, length) for start, length in pairs[1::2] if length]
        drive.add(name, come(ends[-1] + 1), images[name])
    while drive.busy:
        drive.step()
        for name, spans in images.items():
            request = drive.scheduler.requests.get(name)
            done = request.num_computed_tokens if request else 0
            assert not [1 for start, length in spans if start < done < start + length]
