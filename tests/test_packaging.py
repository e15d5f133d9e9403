"""What a clone holds is what an install gets, and it speaks of nothing but itself."""

import ast
import fnmatch
import re
import subprocess
import tomllib
from pathlib import Path
from typing import Any

import pytest
from packaging.version import Version

import nexus
from nexus.runtime.machine import TESTED_VLLM

ROOT = Path(__file__).resolve().parent.parent
NOT_SHIPPED = {"tests", "scripts", "docs", "requirements", "evidence"}
FOLDERS = (
    "benchmarks",
    "cli",
    "commands",
    "core",
    "demo",
    "evidence",
    "planner",
    "profiler",
    "profiles",
    "runtime",
)
# Machine paths, hosts of package indexes: nothing that holds on one machine only.
LOCAL = re.compile(
    r"/root/|/work/|/home/\w+|/opt/(?:pypi|wheels)|\$OUT\b"
    r"|pypi\.org|pythonhosted|download\.pytorch\.org|index-url|find-links|file://"
)


def _config() -> dict[str, Any]:
    return tomllib.loads((ROOT / "pyproject.toml").read_text())


def _tracked() -> list[Path]:
    """Every file of the clone; of an unpacked archive, what looks like it."""
    listed = subprocess.run(
        ["git", "ls-files", "--cached", "--others", "--exclude-standard"],
        cwd=ROOT,
        capture_output=True,
        text=True,
    )
    if listed.returncode:
        pytest.skip("not a git clone")
    paths = [ROOT / line for line in listed.stdout.splitlines()]
    return [path for path in paths if path.is_file()]


def _code() -> list[Path]:
    return [path for path in _tracked() if path.suffix == ".py"]


def test_every_folder_with_code_is_a_listed_package() -> None:
    folders = {path.parent.relative_to(ROOT) for path in _code()}
    wanted = {
        ".".join(("nexus", *folder.parts))
        for folder in folders
        if not folder.parts or folder.parts[0] not in NOT_SHIPPED
    }
    assert sorted(wanted) == _config()["tool"]["setuptools"]["packages"]


def test_every_listed_package_is_a_package() -> None:
    for name in _config()["tool"]["setuptools"]["packages"]:
        assert (ROOT.joinpath(*name.split(".")[1:]) / "__init__.py").exists(), name


def test_profiles_schemas_and_templates_are_shipped() -> None:
    patterns = _config()["tool"]["setuptools"]["package-data"]
    for path in _tracked():
        parts = path.relative_to(ROOT).parts
        is_profile = parts[0] == "profiles" and path.suffix == ".yaml"
        if is_profile or path.name.endswith((".schema.json", ".jinja")):
            where = parts[:1] if is_profile else parts[:-1]
            listed = patterns[".".join(("nexus", *where))]
            assert any(fnmatch.fnmatch(path.name, Path(pattern).name) for pattern in listed), path
    assert "py.typed" in patterns["nexus"]
    assert patterns["nexus.runtime.vllm"] == ["compat.yaml"]


def test_nobody_imports_a_folder_by_its_bare_name() -> None:
    bare = set()
    for path in _code():
        for node in ast.walk(ast.parse(path.read_text())):
            if isinstance(node, ast.Import):
                names = [alias.name for alias in node.names]
            elif isinstance(node, ast.ImportFrom):
                names = [node.module or ""]
                assert node.level == 0, f"{path}: relative import"
            else:
                continue
            bare |= {(str(path), name) for name in names if name.split(".")[0] in FOLDERS}
    assert not bare


def test_linter_bans_the_bare_names() -> None:
    banned = _config()["tool"]["ruff"]["lint"]["flake8-tidy-imports"]["banned-api"]
    assert sorted(FOLDERS) == sorted(banned)


def test_root_package_imports_nothing() -> None:
    tree = ast.parse((ROOT / "__init__.py").read_text())
    assert not [node for node in ast.walk(tree) if isinstance(node, ast.Import | ast.ImportFrom)]
    assert nexus.__version__


def test_nothing_of_one_machine_is_committed() -> None:
    found = []
    for path in _tracked():
        if path == Path(__file__).resolve() or path.name == ".gitignore":
            continue
        try:
            text = path.read_text()
        except UnicodeDecodeError:
            continue
        found += [f"{path.relative_to(ROOT)}: {match[0]}" for match in LOCAL.finditer(text)]
    assert not found


def test_the_gpu_extra_is_the_range_of_tested_releases() -> None:
    (line,) = _config()["project"]["optional-dependencies"]["gpu"]
    tested = [Version(release) for release in TESTED_VLLM]
    newest = max(tested)
    following = f"{newest.major}.{newest.minor + 1}"
    assert line == f"vllm>={min(tested)},<{following}"


def test_lock_file_pins_everything_and_no_cuda() -> None:
    lines = (ROOT / "requirements" / "lock.txt").read_text().splitlines()
    pins = [line for line in lines if not line.startswith("#")]
    assert all(re.fullmatch(r"[a-z0-9._-]+==[a-z0-9.]+( ; .*)?", pin) for pin in pins)
    names = {pin.split("==")[0] for pin in pins}
    assert not [name for name in names if name.startswith(("nvidia-", "triton", "cuda-"))]
    project = _config()["project"]
    extras = project["optional-dependencies"]
    for line in [*project["dependencies"], *extras["demo"], *extras["dev"], *extras["mps"]]:
        assert re.split(r"[<>=\[]", line)[0].lower() in names, line
