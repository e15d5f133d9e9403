"""The trace of ``nexus serve``."""

from pathlib import Path
from typing import Any

import pytest

from nexus.errors import UserError
from nexus.runtime.vllm.server import serve


def test_a_trace_takes_the_place_of_nothing_that_is_read(
    tiny_model: Path, make_plan: Any, tmp_path: Path
) -> None:
    table, config = make_plan((64,)), tmp_path / "options.yaml"
    config.write_text("port: 0\n")
    for trace in (table, config, tiny_model / "tokenizer.json"):
        before = trace.read_bytes()
        words = ["--port", "0", f"--config={config}"]
        with pytest.raises(UserError, match="would overwrite") as caught:
            serve(str(tiny_model), words, table, "deadline", 500.0, force=True, trace=trace)
        assert "\n" not in str(caught.value)
        assert trace.read_bytes() == before
    with pytest.raises(UserError, match="--trace needs --table"):
        serve(str(tiny_model), [], None, "deadline", 500.0, force=True, trace=tmp_path / "new")
