"""A model of the hub's cache, by its id, through the commands themselves."""

import os
import socket
import subprocess
import sys
from contextlib import closing
from pathlib import Path
from typing import Any

import pytest

OPTIONS = (
    "--enforce-eager --dtype float32 --max-model-len 2048 --max-num-seqs 16"
    " --kv-cache-memory-bytes 64M --max-num-batched-tokens 512"
).split()

COMMANDS = """
import sys
from dataclasses import replace
from pathlib import Path

from nexus.cli import app
from nexus.core.errors import UserError
from nexus.core.plan import read_plan, write_plan
from nexus.profiles.schema import read_profile

plan, port, *options = sys.argv[1:]
app(["profile", "acme/tiny", "-o", "p.yaml", "--minutes", "0.01", *options], standalone_mode=False)
profile = read_profile(Path("p.yaml"))
own = replace(read_plan(Path(plan)), machine=profile.machine, model=profile.model)
write_plan(Path("plan.yaml"), own)
write_plan(Path("two.yaml"), replace(own, engine=replace(own.engine, tensor_parallel_size=2)))
one = ("--tensor-parallel-size", "1")
for words in (
    ("acme/tiny",),
    ("acme/tiny", "--table", "plan.yaml"),
    ("acme/tiny", "--table", "plan.yaml", "--revision", "larger"),
    ("acme/tiny", "--table", "plan.yaml", "--tensor-parallel-size", "2"),
    ("acme/tiny", "--table", "two.yaml"),
    ("acme/tiny", "--table", "two.yaml", *one),
    ("acme/tiny", "--table", "two.yaml", *one, "--force"),
    ("acme/none",),
):
    try:
        app(["serve", *words, "--port", port], standalone_mode=False)
    except UserError as error:
        print(f"refused: {error}")
"""


@pytest.mark.engine
def test_a_model_of_the_hub_s_cache_is_profiled_and_served(
    tiny_model: Path, make_plan: Any, tmp_path: Path
) -> None:
    repository = tmp_path / "home" / "hub" / "models--acme--tiny"
    (repository / "refs").mkdir(parents=True)
    for name in ("main", "larger"):
        folder = repository / "snapshots" / (name[0] * 40)
        folder.mkdir(parents=True)
        for file in tiny_model.iterdir():
            (folder / file.name).symlink_to(file)
        (repository / "refs" / name).write_text(name[0] * 40)
    config = repository / "snapshots" / ("l" * 40) / "config.json"
    config.unlink()
    text = (tiny_model / "config.json").read_text()
    config.write_text(text.replace('"intermediate_size": 128', '"intermediate_size": 256'))
    with closing(socket.socket()) as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        port = str(taken.getsockname()[1])
        result = subprocess.run(
            [sys.executable, "-c", COMMANDS, str(make_plan((64,))), port, *OPTIONS],
            cwd=tmp_path,
            env={**os.environ, "HF_HOME": str(tmp_path / "home"), "HF_HUB_OFFLINE": "1"},
            capture_output=True,
            text=True,
            timeout=500,
        )
    assert result.returncode == 0, result.stderr
    assert "wrote p.yaml: " in result.stdout
    refused = [line for line in result.stdout.splitlines() if line.startswith("refused: ")]
    busy = f"refused: port {port}: Address already in use"  # all that is wrong with them
    assert refused == [
        busy,
        busy,
        "refused: plan.yaml was made for another configuration of acme/tiny (--force to go on)",
        "refused: plan.yaml was made for --tensor-parallel-size 1, not 2 (--force to go on)",
        busy,
        "refused: two.yaml was made for --tensor-parallel-size 2, not 1 (--force to go on)",
        busy,
        refused[-1],
    ]
    assert refused[-1].startswith("refused: no such model: acme/none (")
