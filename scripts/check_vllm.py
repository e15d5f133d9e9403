"""Check a vLLM release for every name that Nexus needs, by its source alone.

    python scripts/check_vllm.py vllm-0.33.0-cp38-abi3-manylinux_2_28_x86_64.whl

takes a wheel, or a folder that holds the package ``vllm``. Nothing of it is imported, and no GPU
is needed. One line for each missing name, then a summary; the exit code is 1 if any is missing.
"""

import re
import sys
import zipfile
from pathlib import Path

from nexus.core.errors import UserError
from nexus.runtime.machine import is_tested
from nexus.runtime.source import Source
from nexus.runtime.vllm.compat import find_missing, needed_names

_RELEASE = re.compile(r"^vllm(?:_cpu)?-(?P<release>\d[^-]*?)(?:-.*\.whl|\.dist-info)?$")


def check(path: Path) -> int:
    """Print what is missing in the release at ``path``; how many names that is."""
    source, release = opened(path)
    missing = list(find_missing(source, release))
    for each in missing:
        print(f"missing: {each.name} ({each.why})")  # noqa: T201
    count = sum(len(names.wanted) for names in needed_names(release))
    tested = "tested" if is_tested(release) else "not tested"
    print(f"vllm {release} ({tested}): {count} names, {len(missing)} missing")  # noqa: T201
    return len(missing)


def opened(path: Path) -> tuple[Source, str]:
    """The source of the release at ``path``, and its number; raises UserError."""
    if path.is_dir():
        folder = path.parent if path.name == "vllm" else path
        source = Source(folder, "vllm")
        names = [each.name for each in folder.iterdir()]
    elif zipfile.is_zipfile(path):
        source, names = Source(zipfile.Path(path), "vllm"), [path.name]
    else:
        raise UserError(f"{path}: neither a wheel nor a folder")
    if not source.has_module("vllm"):
        raise UserError(f"{path} holds no package vllm")
    found = [match["release"] for match in map(_RELEASE.match, names) if match]
    return source, found[0] if found else "of unknown number"


if __name__ == "__main__":
    if len(sys.argv) != 2:
        sys.exit("usage: python scripts/check_vllm.py WHEEL_OR_FOLDER")
    try:
        sys.exit(min(1, check(Path(sys.argv[1]))))
    except UserError as error:
        print(error, file=sys.stderr)  # noqa: T201
        sys.exit(error.exit_code)
