"""Ports of loopback for servers of tests."""

from __future__ import annotations

import socket


def free_port(wanted: int = 0) -> int:
    """`wanted`, or any port for 0; raises OSError where it is taken."""
    with socket.socket() as listener:
        listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)  # as a server has it: TIME_WAIT is no listener
        listener.bind(("127.0.0.1", wanted))
        return int(listener.getsockname()[1])
