"""A relay between clients and a server, which breaks connections where a test wants it.

    client ─► Relay.address ─► … ─► target

    with Relay(server_address) as relay:
        client = ClientStorage(relay.address)
        relay.cut_after("up", 17)     # 17 bytes more go up, then both ends see a closed connection
"""

from __future__ import annotations

import selectors
import socket
import threading
import time
from typing import Literal

Direction = Literal["up", "down"]
_CHUNK = 1 << 16


class _Pair:
    """A client's connection, and the one to the target."""

    def __init__(self, client: socket.socket, target: socket.socket) -> None:
        self.sockets = client, target

    def other(self, one: socket.socket) -> socket.socket:
        return self.sockets[one is self.sockets[0]]

    def close(self) -> None:
        for each in self.sockets:
            each.close()


class Relay:
    """Passes bytes between those who connect with `address` and *target*, (host, port).

    `delay_seconds`: how long each piece waits. `is_silent`: pass nothing, and close nothing.
    `cuts` counts the connections that were cut. Any thread may call the methods.
    """

    def __init__(self, target: tuple[str, int]) -> None:
        self.target = target
        self.delay_seconds = 0.0
        self.is_silent = False
        self.cuts = 0
        self._left: dict[Direction, int | None] = {"up": None, "down": None}
        self._pairs: dict[socket.socket, _Pair] = {}
        self._lock = threading.Lock()
        self._selector = selectors.DefaultSelector()
        self._listening = socket.create_server(("127.0.0.1", 0))
        self._selector.register(self._listening, selectors.EVENT_READ)
        self.address: tuple[str, int] = self._listening.getsockname()[:2]
        self._is_over = False
        self._thread = threading.Thread(target=self._run, name="relay", daemon=True)

    def __enter__(self) -> Relay:
        self._thread.start()
        return self

    def __exit__(self, *exception: object) -> None:
        self._is_over = True
        self._thread.join()
        for pair in set(self._pairs.values()):
            pair.close()
        self._listening.close()
        self._selector.close()

    def cut_after(self, direction: Direction, count: int) -> None:
        """Cut a connection when so many more bytes have gone in a direction, up to the target or
        down to the client; the bytes behind them are lost."""
        with self._lock:
            self._left[direction] = count

    def cut(self) -> None:
        """Cut all connections."""
        with self._lock:
            for pair in set(self._pairs.values()):
                self._drop(pair)

    def _drop(self, pair: _Pair) -> None:
        for each in pair.sockets:
            if self._pairs.pop(each, None) is not None:
                self._selector.unregister(each)
        pair.close()
        self.cuts += 1

    def _run(self) -> None:
        while not self._is_over:
            for key, _ in self._selector.select(0.02):
                with self._lock:
                    self._take(key.fileobj)

    def _take(self, ready: object) -> None:
        if ready is self._listening:
            self._accept()
        elif isinstance(ready, socket.socket) and ready in self._pairs and not self.is_silent:
            self._pass_on(ready, self._pairs[ready])

    def _accept(self) -> None:
        client, _ = self._listening.accept()
        try:
            target = socket.create_connection(self.target, 5)
        except OSError:
            client.close()
            return
        pair = _Pair(client, target)
        for each in pair.sockets:
            each.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
            self._pairs[each] = pair
            self._selector.register(each, selectors.EVENT_READ)

    def _pass_on(self, source: socket.socket, pair: _Pair) -> None:
        direction: Direction = "up" if source is pair.sockets[0] else "down"
        try:
            data = source.recv(_CHUNK)
            left = self._left[direction]
            is_cut = left is not None and len(data) >= left
            if left is not None:
                self._left[direction] = None if is_cut else left - len(data)
                data = data[:left]
            if self.delay_seconds:
                time.sleep(self.delay_seconds)
            if data:
                pair.other(source).sendall(data)
            if is_cut or not data:
                self._drop(pair)
        except OSError:
            self._drop(pair)
