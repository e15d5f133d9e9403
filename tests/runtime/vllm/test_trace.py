"""The trace of ``nexus serve``."""

import json
import logging
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from vllm import SamplingParams

from nexus.core.errors import UserError
from nexus.core.plan import Mode
from nexus.runtime.vllm import trace
from nexus.runtime.vllm.front_end.server import serve
from nexus.runtime.vllm.trace import STEPS, ServeTrace


def test_a_trace_takes_the_place_of_nothing_that_is_read(
    tiny_model: Path, make_plan: Any, tmp_path: Path
) -> None:
    table, config = make_plan((64,)), tmp_path / "options.yaml"
    config.write_text("port: 0\n")
    for path in (table, config, tiny_model / "tokenizer.json"):
        before = path.read_bytes()
        words = ["--port", "0", f"--config={config}"]
        with pytest.raises(UserError, match="would overwrite") as caught:
            serve(str(tiny_model), words, table, "deadline", 500.0, force=True, trace=path)
        assert "\n" not in str(caught.value)
        assert path.read_bytes() == before
    with pytest.raises(UserError, match="--trace needs --table"):
        serve(str(tiny_model), [], None, "deadline", 500.0, force=True, trace=tmp_path / "new")


def test_engines_that_are_data_parallel_have_lanes_of_their_own(tmp_path: Path) -> None:
    path = tmp_path / "trace.json"
    begun = ServeTrace(path, begin=True)
    for engine in (0, 1):
        ServeTrace(path, engine=engine).span(STEPS, "step", 1.0, 2.0)
    begun.end()
    events = json.loads(path.read_text())
    assert [event["pid"] for event in events if event["ph"] == "X"] == [1, 2]
    named = {event["pid"] for event in events if event["name"] == "thread_name"}
    assert named == {1, 2}


FULL = "nexus: the trace ends here: No space left on device"
WRITES_UNTIL_FULL = """
import json, logging, resource, sys
from pathlib import Path
from nexus.runtime.vllm.trace import PASSES, STEPS, ServeTrace

logging.basicConfig(format="%(message)s")
path, most = Path(sys.argv[1]), int(sys.argv[2])
resource.setrlimit(resource.RLIMIT_FSIZE, (most, most))
begun, scheduler, worker = ServeTrace(path, begin=True), ServeTrace(path), ServeTrace(path)
for n in range(60):
    scheduler.span(STEPS, f"step {n}", n, n + 0.5, decodes=n)
    worker.span(PASSES, f"pass {n}", n, n + 0.5, ends=["id" * (n % 40)])
begun.end()
"""


@pytest.mark.parametrize("room", [3000, 3001, 3050, 3113, 4096, 500, 240, 60, 3, 1, 0, 1 << 20])
def test_a_full_disk_ends_the_trace_with_whole_lines(tmp_path: Path, room: int) -> None:
    """The limit on a file's size cuts a line as a full disk does."""
    path = tmp_path / "trace.json"
    words = [sys.executable, "-c", WRITES_UNTIL_FULL, str(path), str(room)]
    done = subprocess.run(words, capture_output=True, text=True, check=True)
    told = ["nexus: the trace ends here: File too large"] if room < 1 << 20 else []
    assert done.stderr.splitlines() == told
    text = path.read_text()
    assert len(text) <= room
    if room <= 60:  # no room for an array that has been ended
        assert text == ""
        return
    events = json.loads(text)
    assert len(text) > room - 300 or room == 1 << 20
    assert events[-1]["name"] == "end"
    boxes = [event["name"] for event in events if event["ph"] == "X"]
    both = [f"{kind} {n}" for n in range(60) for kind in ("step", "pass")]
    assert boxes == both[: len(boxes)]
    assert room < 1 << 20 or boxes == both


@pytest.fixture
def told(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """What is logged of traces; not by vLLM's handlers, which come and go with its engines."""
    lines: list[str] = []

    class Handler(logging.Handler):
        def emit(self, record: logging.LogRecord) -> None:
            lines.append(record.getMessage())

    log = logging.Logger("told")
    log.addHandler(Handler())
    monkeypatch.setattr(trace, "log", log)
    return lines


def test_what_is_no_ordinary_file_is_written_to_as_long_as_it_takes_it(
    tmp_path: Path, told: list[str]
) -> None:
    for path, lines in (
        (Path("/dev/null"), []),
        (Path("/dev/full"), [FULL]),
        (
            tmp_path / "none" / "trace.json",
            ["nexus: the trace ends here: No such file or directory"],
        ),
    ):
        writer = ServeTrace(path, begin=True)
        writer.level("lane", 1.0, prompts=1)
        writer.end()
        assert told == lines
        told.clear()


@pytest.mark.engine
def test_requests_go_on_when_the_trace_cannot(
    open_engine: Any, lane_plan: Any, told: list[str]
) -> None:
    plan = lane_plan((Mode("overlap", 256, prefill_sms=1),))
    with open_engine(plan, lane=True, trace=Path("/dev/full"), enable_prefix_caching=False) as llm:
        prompts = [{"prompt_token_ids": [7 + n] * 400} for n in range(4)]
        asked = SamplingParams(max_tokens=8, ignore_eos=True)
        answers = llm.generate(prompts, asked, use_tqdm=False)
    assert [len(answer.outputs[0].token_ids) for answer in answers] == [8] * 4
    assert told == [FULL, FULL]  # steps and passes
