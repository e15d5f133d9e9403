"""Steps found in a profiler's trace."""

import gzip
from pathlib import Path
from typing import Any

import pytest

from nexus.core.errors import DocumentError
from nexus.evidence.steps import main, traced_steps


def kernel(name: str, ts: float, dur: float) -> dict[str, Any]:
    """An activity on the GPU; microseconds."""
    return {"cat": "kernel", "name": name, "ts": ts, "dur": dur}


def test_a_step_is_what_runs_from_one_sample_to_the_next() -> None:
    events = [
        {"ph": "M", "name": "process_name"},
        kernel("_gumbel_sample_kernel", 0.0, 10.0),
        {"cat": "gpu_user_annotation", "name": "execute_context_1(90)_generation_7(7)",
         "ts": 20.0, "dur": 5000.0},
        kernel("nvjet_sm90_tst", 110.0, 2000.0),
        kernel("flash::FlashAttnFwdSm90", 2110.0, 800.0),
        kernel("flash::FlashAttnFwdCombine", 2910.0, 100.0),
        kernel("triton_poi_fused", 3000.0, 500.0),
        kernel("_gumbel_sample_kernel", 3500.0, 10.0),
    ]  # fmt: skip
    (step,) = traced_steps(events)
    assert (step.prompts, step.prompt_tokens, step.decodes) == (1, 90, 7)
    assert (step.ms, step.idle) == (3.5, 0.1)
    assert (step.products, step.attention, step.combine) == (2.0, 0.9, 0.1)


def test_a_trace_is_not_written_over(tmp_path: Path) -> None:
    trace = tmp_path / "trace.json.gz"
    trace.write_bytes(gzip.compress(b'{"traceEvents": []}'))
    main(trace, tmp_path / "steps.json")
    assert (tmp_path / "steps.json").read_text() == "[\n\n]\n"
    with pytest.raises(DocumentError, match="would overwrite"):
        main(trace, trace)


def test_a_trace_without_annotations_has_no_steps() -> None:
    events = [kernel("_gumbel_sample_kernel", at, 1.0) for at in (0.0, 10.0, 20.0)]
    assert list(traced_steps(events)) == []
