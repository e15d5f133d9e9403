"""What is vLLM's front end's alone: a Unix socket, TLS and an API key, all at once, with a plan."""

import http.client
import json
import shutil
import signal
import socket
import ssl
import subprocess
import time
from collections.abc import Callable, Iterator
from contextlib import closing
from pathlib import Path
from typing import Any

import pytest

from nexus.runtime.process import LoggedProcess
from nexus.runtime.server_process import NEXUS_SERVE

START_S = 400.0
KEY = "a-key"
OPTIONS = (
    *("--enforce-eager", "--max-model-len", "512", "--kv-cache-memory-bytes", "64M"),
    *("--force", "--api-key", KEY),
)


@pytest.fixture
def certificate(tmp_path: Path) -> tuple[Path, Path]:
    """One that signs itself, for this machine, and its key."""
    if shutil.which("openssl") is None:
        pytest.skip("no openssl")
    made, key = tmp_path / "certificate.pem", tmp_path / "key.pem"
    name = ("-subj", "/CN=localhost", "-addext", "subjectAltName=DNS:localhost")
    files = ("-keyout", str(key), "-out", str(made))
    words = ("openssl", "req", "-x509", "-newkey", "rsa:2048", "-nodes", "-days", "2")
    subprocess.run([*words, *name, *files], check=True, capture_output=True)
    return made, key


class Connection(http.client.HTTPConnection):
    """HTTP over TLS, over a Unix socket."""

    def __init__(self, path: Path, certificate: Path) -> None:
        super().__init__("localhost", timeout=60)
        self._path = str(path)
        self._trusted = ssl.create_default_context(cafile=certificate)

    def connect(self) -> None:
        plain = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
        try:
            plain.connect(self._path)
            self.sock = self._trusted.wrap_socket(plain, server_hostname=self.host)
        except OSError:
            plain.close()
            raise


Ask = Callable[..., tuple[int, str]]


@pytest.fixture
def ask(
    tiny_model: Path, make_plan: Any, tmp_path: Path, certificate: tuple[Path, Path]
) -> Iterator[Ask]:
    """``ask(path, body=None, key="")``: status and text, 0 and nothing where nobody listens."""
    made, key_file = certificate
    path, log = tmp_path / "socket", tmp_path / "serve.log"

    def ask(page: str, body: dict[str, Any] | None = None, key: str = "") -> tuple[int, str]:
        headers = {"Content-Type": "application/json", "Authorization": f"Bearer {key}"}
        method = "POST" if body else "GET"
        with closing(Connection(path, made)) as to:
            try:
                to.request(method, page, json.dumps(body) if body else None, headers)
            except OSError:
                return 0, ""
            answer = to.getresponse()
            return answer.status, answer.read().decode()

    files = ("--uds", str(path), "--ssl-certfile", str(made), "--ssl-keyfile", str(key_file))
    words = [str(tiny_model), *OPTIONS, *files, "--table", str(make_plan((64,)))]
    server = LoggedProcess([*NEXUS_SERVE, *words], log)
    try:
        end = time.monotonic() + START_S
        while ask("/health")[0] != 200:
            assert server.exit_code() is None, server.complaint()
            assert time.monotonic() < end
            time.sleep(0.5)
        yield ask
    finally:
        stopped = server.stop(signal.SIGTERM, 60)
    assert stopped.exit_code == 0


@pytest.mark.engine
def test_a_socket_tls_and_a_key(ask: Ask, tiny_model: Path) -> None:
    body = {"model": str(tiny_model), "prompt": "w5 w6", "max_tokens": 3}
    assert ask("/v1/completions", body)[0] == 401
    status, text = ask("/v1/completions", body, KEY)
    assert status == 200
    assert json.loads(text)["usage"]["completion_tokens"] == 3
    assert "nexus_mode_steps_total" in ask("/metrics")[1]
