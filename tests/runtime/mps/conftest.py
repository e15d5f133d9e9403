"""Stand-ins for what a machine without a GPU does not have, or not in a moment.

Each puts a line into the file that ``EVENTS`` names when it starts.
"""

import secrets
import shutil
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

CONTROL = """#!{python} -S
# The MPS control program: with -f the daemon, else one command from stdin.
import os, socket, subprocess, sys

pipe = os.path.join(os.environ["CUDA_MPS_PIPE_DIRECTORY"], "control")
if sys.argv[1:] == ["-f"]:
    listener = socket.socket(socket.AF_UNIX)
    listener.bind(pipe)
    listener.listen()
    print("control daemon up", flush=True)
    if "EVENTS" in os.environ:
        with open(os.environ["EVENTS"], "a") as events:
            events.write(f"daemon {{os.getpid()}}\\n")
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

# PART NAME PORT BEHAVIOUR: an engine or the router. It has a child without the environment
# that it was started with, as vLLM's have after they have changed their titles.
PART = """#!{python} -S
import http.server, os, signal, subprocess, sys, time, urllib.request

name, port, behaviour, *others = sys.argv[1:]
WORKER = '''
import mmap, sys, time
file = open(sys.argv[1], "w+b")
file.truncate(4096)
held = mmap.mmap(file.fileno(), 4096)
print("ready", flush=True)
time.sleep(600)
'''
memory = f"/dev/shm/nexus-test-{{os.getpid()}}"
worker = subprocess.Popen(
    [sys.executable, "-S", "-c", WORKER, memory], env={{}}, stdout=subprocess.PIPE
)
worker.stdout.readline()
seen = [urllib.request.urlopen(f"http://127.0.0.1:{{other}}/health").status for other in others]
share = os.environ.get("CUDA_MPS_ACTIVE_THREAD_PERCENTAGE", "-")
with open(os.environ["EVENTS"], "a") as events:
    events.write(f"{{name}} {{os.getpid()}} {{worker.pid}} {{memory}} {{share}} {{seen}}\\n")
if behaviour == "dies":
    worker.kill()
    print("ValueError: there is no room\\nand more")
    sys.exit(3)

def leave(*_):
    worker.kill()
    os._exit(0)

signal.signal(signal.SIGTERM, signal.SIG_IGN if behaviour == "stubborn" else leave)

class Handler(http.server.BaseHTTPRequestHandler):
    def do_GET(self):
        self.send_response(503 if behaviour == "hangs" else 200)
        self.end_headers()
    def do_POST(self):
        self.send_response(500 if behaviour == "refuses" else 200)
        self.end_headers()
        self.wfile.write(b"not today")
    def log_message(self, *_):
        pass

http.server.HTTPServer(("127.0.0.1", int(port)), Handler).serve_forever()
"""


def _program(path: Path, text: str) -> Path:
    path.write_text(text.format(python=sys.executable))
    path.chmod(0o755)
    return path


@pytest.fixture
def control(tmp_path: Path) -> str:
    """A program in the place of ``nvidia-cuda-mps-control``, of a name of its own."""
    return str(_program(tmp_path / f"mps-{secrets.token_hex(4)}", CONTROL))


@pytest.fixture
def part(tmp_path: Path) -> str:
    """A program in the place of an engine or the router."""
    return str(_program(tmp_path / "part", PART))


@pytest.fixture
def folder() -> Iterator[Path]:
    """A run's private folder, of a short name."""
    path = Path("/tmp") / f"nexus-test-{secrets.token_hex(4)}"
    yield path
    shutil.rmtree(path, ignore_errors=True)
