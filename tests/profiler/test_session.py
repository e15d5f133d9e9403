"""The profiler on a real engine: it measures, keeps, and goes on where it stopped."""

import os
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from nexus.errors import EngineError, MismatchError, UserError
from nexus.profiles.schema import read_profile, write_profile
from nexus.profiles.shipped import shipped_profiles
from nexus.runtime.machine import config_hash, this_machine

OPTIONS = (
    "--enforce-eager --dtype float32 --max-model-len 2048 --max-num-seqs 16"
    " --kv-cache-memory-bytes 64M --max-num-batched-tokens 512"
).split()


@pytest.fixture
def open_run(tiny_model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Any:
    monkeypatch.setenv("VLLM_LOGGING_LEVEL", "ERROR")
    monkeypatch.setenv("VLLM_ENABLE_V1_MULTIPROCESSING", "0")
    monkeypatch.setenv("VLLM_CPU_OMP_THREADS_BIND", "nobind")

    def open_one(*extra: str, fresh: bool = False) -> Any:
        from nexus.profiler.session import open_session

        path = tmp_path / "profile.yaml"
        options = [*OPTIONS, *extra]
        return open_session(
            str(tiny_model), options, path, "nexus profile", "2026-01-01", fresh=fresh
        )

    open_one.model = tiny_model  # type: ignore[attr-defined]
    return open_one


@pytest.mark.parametrize("name", ["--max-num-seqs", "--max_num_seqs"])
def test_what_the_user_gives_is_not_overridden(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    from nexus.profiler import session

    seen: list[str] = []

    def refuse(model: str, options: list[str]) -> None:
        seen.extend(options)
        raise EngineError("seen")

    monkeypatch.setattr(session, "parse_engine", refuse)
    for on_cpu in (False, True):
        with pytest.raises(EngineError, match="seen"):
            session.start_engine("m", [name, "64", "--enforce_eager"], on_cpu)
    assert "--gpu-memory-utilization" in seen
    assert [word for word in seen if word.endswith("seqs")] == [name] * 2
    assert "--enforce-eager" not in seen


@pytest.mark.engine
def test_an_engine_without_chunked_prefill_is_refused_before_it_starts(
    open_run: Any, model_of_kind: Any
) -> None:
    from nexus.profiler.session import start_engine

    with pytest.raises(EngineError, match=r"which --no-enable-chunked-prefill turns off$"):
        start_engine(str(open_run.model), ["--no-enable-chunked-prefill"], on_cpu=True)
    latent = str(model_of_kind("deepseek_v3"))
    with pytest.raises(EngineError, match="vLLM turns off here, for multi-head latent") as caught:
        start_engine(latent, ["--attention-backend", "CPU_MLA"], on_cpu=True)  # as without AMX
    assert "\n" not in str(caught.value)


@pytest.mark.engine
def test_a_profile_of_something_else_is_refused_before_vllm_starts(
    open_run: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from nexus.profiler import session

    monkeypatch.setattr(session, "start_engine", lambda *_: pytest.fail("an engine started"))
    profile = read_profile(shipped_profiles()[0])
    here = replace(profile, machine=this_machine(), samples=(), kernels=())
    hashed = config_hash(str(open_run.model))
    ours = replace(here, model=replace(profile.model, config_hash=hashed))
    for other, named in (
        (profile, "another machine"),
        (here, "another model"),
        (ours, "other software"),
    ):
        write_profile(tmp_path / "profile.yaml", other)
        with pytest.raises(UserError, match=f"{named}.*--force"), open_run():
            pass


class _Interrupt:
    """Presses Ctrl-C after some points."""

    def __init__(self, after: int) -> None:
        self.after = after

    def __call__(self, done: int, total: int, sample: Any) -> None:
        if done == self.after:
            raise KeyboardInterrupt


@pytest.mark.engine
def test_a_run_is_kept_resumed_and_finished(open_run: Any, tmp_path: Path) -> None:
    path = tmp_path / "profile.yaml"
    with open_run() as session, pytest.raises(KeyboardInterrupt):
        session.measure(5.0, _Interrupt(after=4))
    kept = read_profile(path).samples
    assert len(kept) == 4

    seen = []
    with open_run() as session:
        points = session.grid().points
        session.measure(5.0, lambda done, total, sample: seen.append((done, total)))
    profile = read_profile(path)
    assert profile.samples[:4] == kept
    assert seen[0] == (5, len(points))
    assert seen[-1] == (len(profile.samples), len(points))
    measured = {sample.key for sample in profile.samples}
    assert {point.key for point in session.grid().coarse} <= measured
    assert measured <= {point.key for point in points}
    assert [sample.error for sample in profile.samples if sample.error] == []
    assert {s.prefill_sms or s.decode_sms for s in profile.samples} >= {1, os.cpu_count()}
    assert all(sample.repeats >= 3 for sample in profile.samples)

    with pytest.raises(MismatchError, match="another engine"), open_run("--max-num-seqs", "8"):
        pass
    with open_run("--max-num-seqs", "8", fresh=True) as session:
        assert session.profile.samples == ()
