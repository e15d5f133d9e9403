"""Ports: free ones are found, others are refused in words."""

import socket
from contextlib import closing

import pytest

from nexus.core.errors import EngineError
from nexus.runtime.ports import check_port, free_ports


def test_free_ports_are_different_and_can_be_had() -> None:
    ports = free_ports(4)
    assert len(set(ports)) == 4
    for port in ports:
        check_port("127.0.0.1", port)
        check_port(None, port)


@pytest.mark.parametrize("port", [-1, 65536, 99999])
def test_what_is_not_a_port_is_said_so(port: int) -> None:
    with pytest.raises(EngineError, match=f"port {port} is not a port"):
        check_port(None, port)


def test_a_taken_port_is_said_so() -> None:
    with closing(socket.socket()) as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        port = taken.getsockname()[1]
        with pytest.raises(EngineError, match=f"port {port} of 127.0.0.1: Address already in use"):
            check_port("127.0.0.1", port)
