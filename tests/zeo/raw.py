"""A client that behaves as badly as a test wants: a socket, and messages."""

from __future__ import annotations

import socket
from typing import Any

from objdb_zeo.addresses import parse_address
from objdb_zeo.messages import MSGPACK, Frames, Message, Msgpack, frame

CODEC = Msgpack()
NOW = b"\x7f" * 8


def message(name: str, *arguments: Any, id: int = 0) -> bytes:
    """Return the frame of a call; without an id, of a one-way call."""
    return frame(CODEC.encode(Message(id, 0 if id else 1, name, arguments)))


def begin(id: Any) -> bytes:
    """Return the frame that begins a transaction."""
    return message("tpc_begin", id, b"", b"", {}, None, " ")


class Raw:
    """A connection to *address*, which is registered if *register* says so; from the
    IP address *source*."""

    def __init__(self, address: str, *, register: bool = True, source: str = "") -> None:
        where = parse_address(address)
        self.socket = socket.socket(
            socket.AF_UNIX if isinstance(where, str) else socket.AF_INET
        )
        self.socket.settimeout(20)
        self.socket.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
        if source:
            self.socket.bind((source, 0))
        self.socket.connect(where)
        self._frames = Frames()
        self._bodies: list[bytes] = []
        if register:
            assert self.body() == MSGPACK
            self.send(frame(MSGPACK))
            self.call("register", "1", False)

    @property
    def port(self) -> int:
        """Its port, by which the log names it."""
        port: int = self.socket.getsockname()[1]
        return port

    def send(self, data: bytes) -> None:
        """Send bytes."""
        self.socket.sendall(data)

    def body(self) -> bytes:
        """Return the next frame's body; b"" at the end."""
        while not self._bodies:
            try:
                data = self.socket.recv(1 << 16)
            except ConnectionError:
                data = b""
            if not data:
                return b""
            self._bodies += self._frames.feed(data)
        return self._bodies.pop(0)

    def reply(self) -> Message:
        """Return the next reply."""
        while True:
            found = CODEC.decode(self.body())
            if found.name == ".reply":
                return found

    def call(self, name: str, *arguments: Any) -> Any:
        """Return the reply to a call: its result, or the error as it was sent."""
        self.send(message(name, *arguments, id=7))
        return self.reply().arguments

    def commit(self, *oids: bytes, record: bytes = b"x") -> Any:
        """Store new objects, and commit."""
        self.send(begin(1) + b"".join(message("storea", o, bytes(8), record, 1) for o in oids))
        assert self.call("vote", 1) == ()
        return self.call("tpc_finish", 1)

    def is_closed(self) -> bool:
        """Wait until the server has closed the connection."""
        while self.body():
            pass
        return True

    def close(self) -> None:
        """Close it."""
        self.socket.close()

    def __enter__(self) -> Raw:
        return self

    def __exit__(self, *exception: object) -> None:
        self.close()
