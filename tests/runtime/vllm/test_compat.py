"""The door to vLLM: what it lists is in the installed release, and what is not is said."""

import logging
import re
import subprocess
import sys
from importlib.util import find_spec
from pathlib import Path

import pytest

from nexus.core.errors import EngineError
from nexus.runtime.machine import TESTED_VLLM, vllm_version
from nexus.runtime.source import Source, Wanted
from nexus.runtime.vllm import compat
from nexus.runtime.vllm.compat import Names, check_installed

ROOT = Path(__file__).parents[3]
SCRIPT = ROOT / "scripts" / "check_vllm.py"


def installed() -> Path:
    spec = find_spec("vllm")
    assert spec is not None
    assert spec.submodule_search_locations is not None
    return Path(spec.submodule_search_locations[0]).parent


@pytest.mark.parametrize("room", compat.ROOMS)
def test_the_installed_release_has_every_name(room: compat.Room) -> None:
    missing = compat.find_missing(Source(installed(), "vllm"), vllm_version(), [room])
    assert [each.name for each in missing] == []


def test_every_tested_release_needs_nearly_all_names() -> None:
    counts = {release: len(compat.needed_names(release)) for release in TESTED_VLLM}
    assert min(counts.values()) > 0.9 * len(compat.all_names())


def test_changes_of_vllm_are_listed_where_they_are_followed() -> None:
    """A release that brought a change is there as the first with, or without, some name."""
    followed = {value for name, value in vars(compat).items() if re.fullmatch(r"[A-Z_]+", name)
                and isinstance(value, str)}  # fmt: skip
    listed = {release for each in compat.all_names() for release in (each.since, each.before)}
    assert listed - {""} == followed


def test_gives_what_is_listed_and_nothing_else() -> None:
    from vllm.v1.request import Request

    assert compat.Request is Request
    assert compat.workspace.__name__ == "vllm.v1.worker.workspace"
    with pytest.raises(AttributeError, match=r"compat\.yaml names no NoSuchThing"):
        _ = compat.NoSuchThing


def test_costs_no_import_of_vllm_where_none_is_asked_for() -> None:
    modules = "nexus.cli, nexus.runtime.vllm.front_end.server, nexus.runtime.vllm.compat as door"
    code = f"import sys, {modules}; door.all_names(); sys.exit('vllm' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code]).returncode == 0


def wanted(*names: str) -> tuple[Names, ...]:
    return tuple(
        Names("options", "vllm.engine.arg_utils", "EngineArgs", Wanted.parse(name), "a test")
        for name in names
    )


def test_a_missing_name_is_one_line(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(compat, "all_names", lambda: wanted("gone", "from_cli_args", "lost"))
    with pytest.raises(EngineError) as raised:
        check_installed("options", device="cpu")
    assert str(raised.value) == (
        f"vLLM {vllm_version()} lacks vllm.engine.arg_utils.EngineArgs.gone,"
        " vllm.engine.arg_utils.EngineArgs.lost (a test);"
        f" tested with Nexus: {', '.join(TESTED_VLLM)}"
    )
    monkeypatch.setattr(compat, "all_names", lambda: wanted(*"abcde"))
    with pytest.raises(EngineError, match=r"EngineArgs\.c and 2 more \(a test\)"):
        check_installed("options", device="cpu")
    check_installed("lane", device="cpu")  # which needs none of them


def test_warns_of_an_untested_release(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    with caplog.at_level(logging.WARNING):
        check_installed("options", device="cpu")
        assert caplog.messages == []
        monkeypatch.setattr(compat, "is_tested", lambda _: False)
        check_installed("options", device="cpu")
    (line,) = caplog.messages
    assert line.startswith(f"warning: vLLM {vllm_version()} is not a tested release; tested with")


def test_names_come_and_go_with_releases_and_devices() -> None:
    names = Names("lane", "m", "", (), "", device="cuda", since="0.30.0", before="0.32.0")
    assert names.needed("0.31.1", ["lane"], "cuda")
    assert names.needed("0.30.0+cu130", ["lane"], None)
    for release in ("0.29.9", "0.32.0", "0.32.0rc1", "0.32.1.dev5+g12", "1.0"):
        assert not names.needed(release, ["lane"], "cuda"), release
    assert not names.needed("0.31.1", ["lane"], "cpu")
    assert not names.needed("0.31.1", ["options"], "cuda")
    newest = Names("lane", "m", "", (), "", since="0.32.0")
    assert newest.needed("0.1.dev1+gabc", ["lane"], None)  # built from a checkout without tags
    assert newest.needed("of unknown number", ["lane"], None)


def test_the_script_checks_a_folder(tmp_path: Path) -> None:
    def run(path: Path) -> tuple[int, list[str]]:
        done = subprocess.run([sys.executable, SCRIPT, path], capture_output=True, text=True)
        return done.returncode, (done.stdout + done.stderr).splitlines()

    code, lines = run(installed())
    assert code == 0
    assert lines == [lines[0]]
    assert re.fullmatch(rf"vllm {vllm_version()} \(tested\): \d+ names, 0 missing", lines[0])
    assert run(tmp_path) == (2, [f"{tmp_path} holds no package vllm"])
    package = tmp_path / "vllm"
    package.mkdir()
    (package / "__init__.py").touch()
    (tmp_path / "vllm-0.99.0.dist-info").mkdir()
    code, lines = run(tmp_path)
    assert code == 1
    assert "missing: vllm.v1.request.Request (what is left of a prompt" in "\n".join(lines)
    assert re.fullmatch(r"vllm 0\.99\.0 \(not tested\): (\d+) names, \d+ missing", lines[-1])
