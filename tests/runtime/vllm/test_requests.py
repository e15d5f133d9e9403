"""What a request may say of itself, and what is refused before it reaches the engine."""

import math
import threading
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import openai
import pytest
from hypothesis import given
from hypothesis import strategies as st

from nexus.core.prefill.admission import LateRefusal
from nexus.core.slo import Bounds
from nexus.runtime.server_process import Server
from nexus.runtime.vllm.front_end.requests import TTFT_ARG, RequestCheck, own_ttft_s

PROMPT = {"prompt_token_ids": [1] * 100}


def test_a_request_brings_its_own_bound() -> None:
    assert own_ttft_s({TTFT_ARG: 300}) == 0.3
    assert own_ttft_s({TTFT_ARG: 0.5, "other": "x"}) == 0.0005
    assert own_ttft_s({"other": 1}) is own_ttft_s({}) is own_ttft_s(None) is None


@given(st.one_of(st.text(), st.floats(max_value=0.0), st.just(math.nan), st.just(math.inf)))
def test_what_is_no_positive_number_is_refused(value: Any) -> None:
    with pytest.raises(ValueError, match="not a positive number"):
        own_ttft_s({TTFT_ARG: value})


def test_an_unknown_argument_of_nexus_is_refused_and_others_are_not_its_own() -> None:
    with pytest.raises(ValueError, match="nexus_ttft is unknown; there is nexus_ttft_ms"):
        own_ttft_s({"nexus_ttft": 300})


def test_batch_requests_and_those_with_a_loose_bound_are_not_refused() -> None:
    pytest.importorskip("vllm")
    check = RequestCheck(Bounds(1000.0, 50.0), LateRefusal(2.0, 1000.0))
    waiting = [50] * 60  # three seconds of work
    loose, params = SimpleNamespace(extra_args={TTFT_ARG: 4000}), SimpleNamespace(extra_args=None)
    with pytest.raises(Exception, match="no first token within 2 times the bound"):
        check.check(PROMPT, params, 0, waiting)
    check.check(PROMPT, params, 1, waiting)
    check.check(PROMPT, loose, 0, waiting)
    check.check(PROMPT, params, 0, [])
    assert check.retry_after_s == 1


@pytest.mark.engine
def test_a_server_checks_each_request(tiny_model: Path, make_plan: Any, tmp_path: Path) -> None:
    """Bad values get 400, also of a stream; who comes too late 503; priorities are taken."""
    options = "--dtype float32 --enforce-eager --kv-cache-memory-bytes 64M --max-model-len 512"
    plan = f"--table {make_plan((64,))} --force --refuse-late 1 --scheduling-policy priority"
    words = [str(tiny_model), *plan.split(), *options.split(), "--max-num-seqs", "4"]
    with (
        Server(words, tmp_path / "serve.log", start_s=400) as server,
        openai.OpenAI(base_url=f"{server.url}/v1", api_key="none", max_retries=0) as client,
    ):

        def ask(tokens: int = 100, stream: bool = False, **extra: Any) -> Any:
            return client.completions.create(
                model=str(tiny_model),
                prompt="w7 " * tokens,
                max_tokens=2,
                stream=stream,
                extra_body=extra,
            )

        assert ask(vllm_xargs={TTFT_ARG: 300}).usage.completion_tokens == 2
        assert ask(priority=5).usage.completion_tokens == 2
        for stream in (False, True):
            for bad in ({TTFT_ARG: -1}, {TTFT_ARG: "soon"}, {"nexus_ttf_ms": 1}):
                with pytest.raises(openai.BadRequestError, match="nexus_tt"):
                    ask(stream=stream, vllm_xargs=bad)
        refused = _refused_among(ask, 30)
        assert refused
        assert {error.status_code for error in refused} == {503}
        assert {error.response.headers["retry-after"] for error in refused} == {"2"}
        assert ask().usage.completion_tokens == 2


def _refused_among(ask: Any, count: int) -> list[openai.InternalServerError]:
    """Of so many requests at once, those that were refused."""
    refused: list[openai.InternalServerError] = []

    def one() -> None:
        try:
            ask(400)
        except openai.InternalServerError as error:
            refused.append(error)

    threads = [threading.Thread(target=one) for _ in range(count)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    return refused
