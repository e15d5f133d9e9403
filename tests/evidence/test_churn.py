"""The client that sends many short requests: what is lost is the server's loss, not its own."""

import json
import threading
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

from nexus.evidence.lane.churn import QUIET, Churn, run

ENDS = 'data: {"choices": [{"finish_reason": "length"}]}\n\ndata: [DONE]\n\n'


class Handler(BaseHTTPRequestHandler):
    """Keeps connections, and notes which one each request comes on."""

    protocol_version = "HTTP/1.1"
    connections: list[Any]

    def do_POST(self) -> None:
        self.connections.append(self.client_address)
        asked = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
        self._answer(ENDS if asked["stream"] else "")

    def do_GET(self) -> None:
        self._answer("".join(f'{name}{{engine="0"}} 0.0\n' for name in QUIET))

    def _answer(self, text: str) -> None:
        self.send_response(200)
        self.send_header("Content-Length", str(len(text)))
        self.end_headers()
        self.wfile.write(text.encode())

    def log_message(self, *_: Any) -> None:
        pass


def test_each_request_has_a_connection_of_its_own() -> None:
    Handler.connections = []
    with ThreadingHTTPServer(("127.0.0.1", 0), Handler) as server:
        threading.Thread(target=server.serve_forever).start()
        told = run(server.server_address[1], "model", Churn(20, 50.0, given_up=0.0))
        server.shutdown()
    assert told["nothing_lost"], told
    assert told["whole"] == 20
    assert len(set(Handler.connections)) == len(Handler.connections) == 20
