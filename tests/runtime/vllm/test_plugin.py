"""``NEXUS_TABLE`` in vLLM's own commands: what it sets, what it refuses, and that it is not there."""

import re
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from nexus.core.errors import EngineError, UserError
from nexus.runtime.vllm.context import ServeContext
from nexus.runtime.vllm.front_end import plugin
from nexus.runtime.vllm.front_end.server import with_plan

ASLEEP = """
import sys
from nexus.runtime.plugin import register
register()
assert not {"torch", "vllm", "nexus.core"} & sys.modules.keys()
"""


def test_without_the_variable_nothing_is_imported(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("NEXUS_TABLE", "")
    subprocess.run([sys.executable, "-c", ASLEEP], check=True)
    monkeypatch.delenv("NEXUS_TABLE")
    subprocess.run([sys.executable, "-c", ASLEEP], check=True)


@pytest.mark.parametrize(
    ("name", "value", "told"),
    [
        ("NEXUS_PREFILL_ORDER", "lifo", "Input should be 'deadline'"),
        ("NEXUS_LATE_SHARE", "much", "a valid number"),
        ("NEXUS_FORCE", "perhaps", "valid boolean"),
    ],
)
def test_a_variable_that_is_none_is_named(
    monkeypatch: pytest.MonkeyPatch, name: str, value: str, told: str
) -> None:
    monkeypatch.setenv("NEXUS_TABLE", "plan.yaml")
    monkeypatch.setenv("NEXUS_SERVICE_HOST", "10.0.0.1")  # Kubernetes', for a service "nexus"
    monkeypatch.setenv(name, value)
    with pytest.raises(EngineError, match=f"^{name}: .*{told}"):
        plugin.Settings.of_environment()
    monkeypatch.setenv(name, "")
    assert plugin.Settings.of_environment().table == Path("plan.yaml")


@pytest.fixture
def create(tiny_model: Path, make_plan: Any, monkeypatch: pytest.MonkeyPatch) -> Iterator[Any]:
    """``create(usage, **options)``: vLLM's configuration, with the plugin at work."""
    from vllm.engine.arg_utils import AsyncEngineArgs, EngineArgs
    from vllm.usage.usage_lib import UsageContext

    monkeypatch.setattr(EngineArgs, "create_engine_config", EngineArgs.create_engine_config)
    monkeypatch.setattr(plugin, "fail_with_the_engine", lambda: None)
    monkeypatch.setattr(plugin, "check_requests", lambda: None)
    monkeypatch.setenv("NEXUS_TABLE", str(make_plan((64,))))
    plugin.install.cache_clear()
    plugin.install()
    plugin.install()

    def made(usage: str = "OPENAI_API_SERVER", **options: Any) -> Any:
        arguments = AsyncEngineArgs(**{"model": str(tiny_model), **options})
        return arguments.create_engine_config(usage_context=UsageContext[usage])

    yield made
    plugin.install.cache_clear()


def test_it_sets_what_nexus_serve_sets(
    create: Any, tiny_model: Path, make_plan: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    from vllm.engine.arg_utils import AsyncEngineArgs

    monkeypatch.setenv("NEXUS_FORCE", "1")
    monkeypatch.setenv("NEXUS_PREFILL_ORDER", "spf")
    found = create(max_num_seqs=8)
    context = ServeContext(make_plan((64,)), "spf")
    arguments, _ = with_plan(str(tiny_model), ["--max-num-seqs", "8"], context, force=True)
    wanted = AsyncEngineArgs.from_cli_args(arguments).create_engine_config()
    mine, theirs = found.additional_config, wanted.additional_config
    assert (mine.table, mine.prefill_order) == (theirs.table, "spf")
    assert found.scheduler_config == wanted.scheduler_config
    assert found.scheduler_config.max_num_seqs == 8
    assert found.cache_config.kv_cache_memory_bytes == wanted.cache_config.kv_cache_memory_bytes
    assert str(found.model_config.dtype) == str(wanted.model_config.dtype) == "torch.float32"
    assert found.model_config.max_model_len == wanted.model_config.max_model_len == 4096
    backends = {each.parallel_config.distributed_executor_backend for each in (found, wanted)}
    assert len(backends) == 1


@pytest.mark.parametrize(
    ("options", "force", "told"),
    [
        ({}, "", r"was made for test with \d+ cores, .* \(NEXUS_FORCE=1 to go on\)"),
        ({"scheduler_cls": "some.Scheduler"}, "1", "--scheduler-cls cannot be combined"),
        ({"max_num_batched_tokens": 32}, "1", "below the plan's largest chunk, 64"),
    ],
)
def test_a_server_that_the_plan_does_not_fit_ends_with_one_line(
    create: Any,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    options: dict[str, Any],
    force: str,
    told: str,
) -> None:
    monkeypatch.setenv("NEXUS_FORCE", force)
    with pytest.raises(SystemExit) as ended:
        create(**options)
    assert ended.value.code == 2
    (line,) = [line for line in capsys.readouterr().err.splitlines() if "nexus: " in line]
    assert re.search(told, line)
    with pytest.raises(UserError):  # in a program it is the caller's to handle
        create("LLM_CLASS", **options)
