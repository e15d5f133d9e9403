"""Real vLLM engines in this process, with and without a plan."""

import gc
import os
import tomllib
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from nexus.core.io.documents import Provenance
from nexus.core.machine import Engine, Machine, Model
from nexus.core.plan import Axes, Mode, Plan, Prediction, Row, Workload, read_plan, write_plan
from nexus.core.prefill.late_share import DEFAULT_LATE_SHARE
from nexus.core.slo import Bounds

ROOT = Path(__file__).resolve().parents[3]
KV_CACHE_BYTES = 1 << 28
TOKENS_PER_S = 1000.0  # at which a plan's prompts are computed

OpenEngine = Callable[..., Any]
MakePlan = Callable[[Sequence[int]], Path]


@pytest.fixture
def open_engine(tiny_model: Path, monkeypatch: pytest.MonkeyPatch) -> OpenEngine:
    """A context manager: ``open_engine(plan=None, order="deadline", lane=False, **llm_options)``.

    Serves ``tiny_model`` unless ``model`` is given.
    """
    monkeypatch.setenv("VLLM_ENABLE_V1_MULTIPROCESSING", "0")
    monkeypatch.setenv("VLLM_CPU_ATTN_SPLIT_KV", "1")  # vLLM's default, which a lane changes
    monkeypatch.setenv("VLLM_CPU_OMP_THREADS_BIND", "nobind")

    @contextmanager
    def open_one(
        plan: Path | None = None, order: Any = "deadline", **options: Any
    ) -> Iterator[Any]:
        from vllm import LLM
        from vllm.distributed import cleanup_dist_env_and_memory

        from nexus.runtime.vllm.context import ServeContext

        scheduler = options.pop("scheduler", "PlannedScheduler")
        late_share = options.pop("late_share", DEFAULT_LATE_SHARE)
        if plan is not None:
            options["scheduler_cls"] = f"nexus.runtime.vllm.scheduling.scheduler.{scheduler}"
            trace = options.pop("trace", None)
            options["additional_config"] = ServeContext(plan, order, late_share, trace)
        if options.pop("lane", False):
            from vllm.config import KVTransferConfig

            from nexus.runtime.vllm.lane.connector import transfer_config
            from nexus.runtime.vllm.worker import LaneWorker

            options["kv_transfer_config"] = KVTransferConfig(**transfer_config())
            options["worker_cls"] = f"{LaneWorker.__module__}.{LaneWorker.__name__}"
        defaults = {
            "dtype": "float32",
            "enforce_eager": True,
            "kv_cache_memory_bytes": KV_CACHE_BYTES,
            "max_model_len": 2048,
            "max_num_batched_tokens": 2048,
            "max_num_seqs": 64,
            "use_tqdm_on_load": False,
        }
        llm = None
        try:
            llm = LLM(**({"model": str(tiny_model)} | defaults | options))
            yield llm
        finally:
            if llm is not None:
                llm.llm_engine.engine_core.shutdown()
            del llm
            cleanup_dist_env_and_memory()
            gc.collect()

    return open_one


@pytest.fixture
def make_plan(tmp_path: Path) -> MakePlan:
    """Writes a plan whose states take the given chunks in turn."""

    def make(chunks: Sequence[int]) -> Path:
        axes = Axes((0, 4, 16, 64), (0, 2_000, 1_000_000), (0, 64, 512, 8192))
        modes = {f"fused-{chunk}": Mode("fused", chunk) for chunk in chunks}
        names = list(modes)
        rows = tuple(
            Row(*state, mode=names[index % len(names)], prefill_tokens_per_s=TOKENS_PER_S)
            for index, state in enumerate(axes.states())
        )
        plan = Plan(
            provenance=Provenance("2026-01-01T00:00:00+00:00", "test", {}),
            profile_hash="0" * 16,
            machine=Machine("cpu", "test", os.cpu_count() or 1),
            model=Model("tiny", "0" * 16, "float32", 2, 64, 2, 1, 32, 4096),
            engine=Engine(2048, 64, 128, 100_000),
            bounds=Bounds(2000.0, 200.0),
            workload=Workload("test", 100.0, 10.0),
            policy="nexus",
            prediction=Prediction(1.0, "fused-512", 1.0, 100.0, 10.0, "tbt"),
            axes=axes,
            modes=modes,
            rows=rows,
        )
        path = tmp_path / f"plan-{'-'.join(map(str, chunks))}.yaml"
        write_plan(path, plan)
        return path

    return make


@pytest.fixture
def lane_plan(make_plan: MakePlan, tmp_path: Path) -> Callable[[Sequence[Mode]], Path]:
    """Writes a plan whose states take the given modes in turn."""

    def make(modes: Sequence[Mode]) -> Path:
        plan = read_plan(make_plan((64,)))
        names = [mode.name for mode in modes]
        rows = tuple(
            replace(row, mode=names[index % len(names)]) for index, row in enumerate(plan.rows)
        )
        path = tmp_path / f"{'-'.join(names)}.yaml"
        write_plan(path, replace(plan, modes=dict(zip(names, modes, strict=True)), rows=rows))
        return path

    return make


@pytest.fixture
def plugin_path(tmp_path: Path) -> str:
    """A ``PYTHONPATH`` on which vLLM finds the plugin as it does where Nexus is installed."""
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    (group, entries), *_ = project["entry-points"].items()
    info = tmp_path / "plugin" / "nexus_plugin-0.dist-info"
    info.mkdir(parents=True)
    (info / "METADATA").write_text("Metadata-Version: 2.1\nName: nexus-plugin\nVersion: 0\n")
    lines = [f"{name} = {value}" for name, value in entries.items()]
    (info / "entry_points.txt").write_text("\n".join([f"[{group}]", *lines]))
    return os.pathsep.join([str(info.parent), *filter(None, [os.environ.get("PYTHONPATH")])])
