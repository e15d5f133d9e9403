"""Stand-ins for what a machine without a GPU does not have."""

import secrets
import shutil
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

STAND_IN = """#!{python} -S
# The MPS control program: with -f the daemon, else one command from stdin.
import os, signal, socket, subprocess, sys

pipe = os.path.join(os.environ["CUDA_MPS_PIPE_DIRECTORY"], "control")
if sys.argv[1:] == ["-f"]:
    listener = socket.socket(socket.AF_UNIX)
    listener.bind(pipe)
    listener.listen()
    print("control daemon up", flush=True)
    while True:
        peer, _ = listener.accept()
        command = peer.recv(100).decode().strip()
        if command == "serve":
            server = subprocess.Popen(["sleep", "600"])
            peer.sendall(str(server.pid).encode())
        peer.close()
        if command == "quit":
            sys.exit(0)
else:
    peer = socket.socket(socket.AF_UNIX)
    peer.connect(pipe)
    peer.sendall(sys.stdin.read().encode())
    print(peer.recv(100).decode())
"""


@pytest.fixture
def control(tmp_path: Path) -> str:
    """A program in the place of ``nvidia-cuda-mps-control``, of a name of its own."""
    program = tmp_path / f"mps-{secrets.token_hex(4)}"
    program.write_text(STAND_IN.format(python=sys.executable))
    program.chmod(0o755)
    return str(program)


@pytest.fixture
def folder() -> Iterator[Path]:
    """A run's private folder, of a short name."""
    path = Path("/tmp") / f"nexus-test-{secrets.token_hex(4)}"
    yield path
    shutil.rmtree(path, ignore_errors=True)
