"""TCP ports: whether one can be listened on, and some that nobody listens on."""

import socket
from contextlib import ExitStack, closing

from nexus.core.errors import EngineError


def check_port(host: str | None, port: int) -> None:
    """Raise EngineError when ``port`` is none, or cannot be listened on at ``host``."""
    if not 0 <= port < 1 << 16:
        raise EngineError(f"port {port} is not a port (0 to 65535)")
    family = socket.AF_INET6 if ":" in (host or "") else socket.AF_INET
    with closing(socket.socket(family, socket.SOCK_STREAM)) as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind((host or "", port))
        except OSError as error:
            where = f"port {port}" + (f" of {host}" if host else "")
            raise EngineError(f"{where}: {error.strerror}") from error


def free_ports(count: int) -> list[int]:
    """Different local ports that nobody listens on right now."""
    with ExitStack() as stack:
        ports = []
        for _ in range(count):
            probe = stack.enter_context(closing(socket.socket()))
            probe.bind(("127.0.0.1", 0))
            ports.append(int(probe.getsockname()[1]))
        return ports
