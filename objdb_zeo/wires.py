"""What a client asks of the operating system: a clock, random numbers, and connections.

It is one small seam, as `objdb.storage.files` is for files: a simulation has a network and a clock
of its own (see `objdb.testing.network`).
"""

from __future__ import annotations

import os
import select
import socket
import time
from collections.abc import Callable
from typing import Any, Protocol

from objdb_zeo.addresses import Address


class Wire(Protocol):
    """A connection. Its methods raise OSError."""

    def recv(self, size: int, /) -> bytes:
        """Wait for bytes; return at most *size* of them, none when the other end has closed it."""

    def sendall(self, data: Any, /) -> None:
        """Send bytes; wait until all are on their way."""

    def poll(self, milliseconds: float, /) -> Any:
        """Wait, at most so long, until there is something to receive; return whether there is."""

    def shut_down(self) -> None:
        """End it for both sides, and for all processes that have it."""

    def close(self) -> None:
        """Let go of it."""


class Wires(Protocol):
    """The clock, random numbers, and what makes connections."""

    def now(self) -> float:
        """Return the time, in seconds since some moment."""

    def sleep(self, seconds: float, /) -> None:
        """Wait."""

    def random(self, size: int, /) -> bytes:
        """Return random bytes."""

    def connect(self, address: Address, seconds: float) -> Wire:
        """Connect with a server, within so many seconds. Raises OSError."""


class SocketWire:
    """A connection through a socket."""

    def __init__(self, connected: socket.socket) -> None:
        self._socket = connected
        ready = select.poll()
        ready.register(connected, select.POLLIN)
        self.recv: Callable[[int], bytes] = connected.recv
        self.sendall: Callable[[Any], None] = connected.sendall
        self.poll: Callable[[float], Any] = ready.poll

    def fileno(self) -> int:
        """Return the socket's number."""
        return self._socket.fileno()

    def shut_down(self) -> None:
        """See `Wire`."""
        try:
            self._socket.shutdown(socket.SHUT_RDWR)
        except OSError:
            pass

    def close(self) -> None:
        """See `Wire`."""
        self._socket.close()


class Sockets:
    """The operating system's clock, random numbers and sockets."""

    now = staticmethod(time.monotonic)
    sleep = staticmethod(time.sleep)
    random = staticmethod(os.urandom)

    def connect(self, address: Address, seconds: float) -> SocketWire:
        """See `Wires`."""
        if isinstance(address, str):
            found = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
            try:
                found.settimeout(seconds)
                found.connect(address)
            except BaseException:
                found.close()
                raise
        else:
            found = socket.create_connection(address, seconds)
            found.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
            found.setsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE, 1)
        found.settimeout(None)
        return SocketWire(found)


SOCKETS = Sockets()
