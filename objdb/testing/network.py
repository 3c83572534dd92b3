"""A simulated network: connections between clients that wait and servers that do not.

    client (a task) ─► Wire ─► Pipe up ─────► server.data_received
                        ▲                            │
                        ╰──── Pipe down ◄── send ────╯

Bytes arrive late and in other pieces, in the order in which they were sent. On command a connection
is cut, swallows what is sent in a direction (*half-open*), or is slow; a host is cut off for a
while. The network is what `objdb_zeo` calls wires; see `Network.host`.
"""

from __future__ import annotations

import errno
import os
from collections import deque
from collections.abc import Callable
from functools import partial
from typing import Any, Protocol

from objdb.testing.events import Event, Events, Task

_CONNECT_SECONDS = 0.003
_GIVEN_UP_SECONDS = (40.0, 200.0)  # after which a half-open connection is lost on both ends


class Receiver(Protocol):
    """The server's side of a connection."""

    def data_received(self, data: bytes) -> None:
        """Take in bytes."""

    def connection_lost(self) -> None:
        """Note that nothing more comes."""


class Pipe:
    """Bytes on their way in one direction. *arrived* is called with them, *ended* behind the last;
    *unread* says how many bytes the receiver has and did not read. `window`: so many may be unread
    before the rest waits."""

    def __init__(
        self, network: Network, name: str, host: str, arrived: Callable[[bytes], object],
        ended: Callable[[], object], unread: Callable[[], int],
    ) -> None:
        self.name = name
        self.size = 0  # bytes on their way
        self.window: int | None = None
        self.is_silent = self.is_ending = self.is_over = False
        self.drained: Callable[[], object] = lambda: None
        self._network = network
        self._host = host
        self._arrived, self._ended, self._unread = arrived, ended, unread
        self._flight: deque[bytes] = deque()
        self._event: Event | None = None

    def send(self, data: bytes) -> None:
        """Put bytes on their way."""
        if data and not (self.is_silent or self.is_ending or self.is_over):
            self._flight.append(data)
            self.size += len(data)
            self.go_on()

    def end(self) -> None:
        """Let it end behind what was sent."""
        self.is_ending = True
        self.go_on()

    def lose(self, keep: int) -> None:
        """Lose what is on its way, but for its first *keep* bytes; nothing comes behind them."""
        kept = b"".join(self._flight)[:keep]
        self._flight = deque([kept] if kept else [])
        self.size = len(kept)
        self.end()

    def be_silent(self) -> None:
        """Swallow everything from now on, also the end."""
        self.is_silent = True
        self._flight.clear()
        self.size = 0
        self.drained()

    def go_on(self) -> None:
        """Let the next piece arrive, if there is any and nothing is in its way."""
        if self._event is not None or self.is_over or not (self._flight or self.is_ending):
            return
        network = self._network
        if self.is_silent or self._host in network.cut_off:
            return
        if self._flight and self.window is not None and self._unread() >= self.window:
            return
        self._event = network.events.after(network.delay(), "", self._arrive)

    def _arrive(self) -> None:
        self._event = None
        if self.is_silent or self._host in self._network.cut_off:
            return
        if not self._flight:
            self.is_over = True
            self._network.events.note(f"{self.name} ends")
            self._ended()
            return
        piece = self._piece()
        self.size -= len(piece)
        self._network.events.note(f"{self.name}: {len(piece)} bytes")
        self.drained()
        self._arrived(piece)
        self.go_on()

    def _piece(self) -> bytes:
        """Take what arrives next: a part of what was sent, or several."""
        chance = self._network.events.chance
        data = self._flight.popleft()
        while self._flight and chance.random() < self._network.joined:
            data += self._flight.popleft()
        if len(data) > 1 and chance.random() < self._network.split:
            at = chance.randrange(1, len(data))
            self._flight.appendleft(data[at:])
            data = data[:at]
        return data


class Connection:
    """A connection of *host* with a server: `wire` is the client's end, `receiver` the server's,
    set by whoever accepts it."""

    def __init__(self, network: Network, number: int, host: str) -> None:
        self.number = number
        self.host = host
        self.name = f"{host}/{number}"
        self.receiver: Receiver | None = None
        self.wire = Wire(network, self)
        self.up = Pipe(
            network, f"{self.name} up", host, self._up, self._up_ended, lambda: 0
        )
        self.down = Pipe(
            network, f"{self.name} down", host, self.wire.arrived, self.wire.ended,
            self.wire.unread,
        )
        self.up.drained = self.wire.changed
        self._network = network

    def _up(self, data: bytes) -> None:
        if self.receiver is not None:
            self.receiver.data_received(data)

    def _up_ended(self) -> None:
        if self.receiver is not None:
            self.receiver.connection_lost()

    @property
    def is_over(self) -> bool:
        """Whether it has ended on both sides."""
        return self.up.is_over and self.down.is_over

    def cut(self) -> None:
        """Lose it: of what is on its way some arrives, then both ends see that it has ended."""
        for pipe in (self.up, self.down):
            pipe.is_silent = False
            pipe.lose(self._network.events.chance.randrange(pipe.size + 1))

    def be_half_open(self, pipe: Pipe) -> None:
        """Let one direction swallow everything; the ends see that it is lost much later."""
        pipe.be_silent()
        seconds = self._network.events.chance.uniform(*_GIVEN_UP_SECONDS)
        self._network.events.after(seconds, f"{self.name} is given up", self.cut)


class Wire:
    """The client's end: what waits is a task. See `objdb_zeo.wires.Wire`."""

    def __init__(self, network: Network, connection: Connection) -> None:
        self.connection = connection
        self._network = network
        self._buffer = bytearray()
        self._has_ended = self._is_closed = False
        self._waiting: list[Task] = []

    # -- the network's side

    def arrived(self, data: bytes) -> None:
        """Take in bytes."""
        if not self._is_closed:
            self._buffer += data
        self.changed()

    def ended(self) -> None:
        """Note that nothing more comes."""
        self._has_ended = True
        self.changed()

    def unread(self) -> int:
        """Return how many bytes have arrived and were not read."""
        return len(self._buffer)

    def changed(self) -> None:
        """Wake who waits."""
        for task in self._waiting:
            self._network.events.wake(task)

    # -- the client's side

    def _wait(self, seconds: float | None) -> bool:
        task = self._network.events.current
        assert task is not None
        self._waiting.append(task)
        try:
            return self._network.events.pause(seconds)
        finally:
            self._waiting.remove(task)

    def _require_open(self) -> None:
        if self._is_closed:
            raise OSError(errno.EBADF, os.strerror(errno.EBADF))

    def recv(self, size: int) -> bytes:
        """Wait for bytes, and return some; none at the end."""
        self._require_open()
        while not (self._buffer or self._has_ended or self._is_closed):
            self._wait(None)
        data = bytes(self._buffer[:size])
        del self._buffer[: len(data)]
        self.connection.down.go_on()
        return data

    def sendall(self, data: Any) -> None:
        """Send bytes; wait until there is room for what follows."""
        self._require_open()
        if self._has_ended:
            raise OSError(errno.EPIPE, os.strerror(errno.EPIPE))
        up = self.connection.up
        up.send(bytes(data))
        while up.window is not None and up.size > up.window and not up.is_ending:
            self._wait(None)
            if self._is_closed or self._has_ended:
                raise OSError(errno.ECONNRESET, os.strerror(errno.ECONNRESET))

    def poll(self, milliseconds: float) -> bool:
        """Wait until there is something to receive; return whether there is."""
        self._require_open()
        events = self._network.events
        end = events.now + milliseconds / 1000
        while not (self._buffer or self._has_ended or self._is_closed):
            if milliseconds == 0 or events.now >= end:
                return False
            self._wait(end - events.now)
        return True

    def shut_down(self) -> None:
        """End it."""
        if not self._is_closed:
            self._has_ended = True
            self.connection.up.end()
            self.connection.down.lose(0)
            self.changed()

    def close(self) -> None:
        """Let go of it."""
        self.shut_down()
        self._is_closed = True
        self._buffer.clear()
        self.changed()


class Network:
    """All connections. `delay_seconds`: (least, most) of a piece, `slow` the share of those that
    take up to `slow_seconds`; `split` and `joined`: the share of pieces that arrive in parts, or
    together; `cut_off`: the hosts that reach nobody for now."""

    def __init__(self, events: Events) -> None:
        self.events = events
        self.delay_seconds = (0.0001, 0.002)
        self.slow, self.slow_seconds = 0.1, 0.1
        self.split = self.joined = 0.2
        self.cut_off: set[str] = set()
        self.connections: list[Connection] = []
        self._listening: dict[Any, Callable[[Connection], Receiver]] = {}
        self._last = 0

    def delay(self) -> float:
        """Return how long the next piece takes."""
        chance = self.events.chance
        if chance.random() < self.slow:
            return chance.random() * self.slow_seconds
        return chance.uniform(*self.delay_seconds)

    def listen(self, address: Any, accept: Callable[[Connection], Receiver] | None) -> None:
        """Let *accept* take the connections with an address; nobody, if it is None."""
        self._listening.pop(address, None)
        if accept is not None:
            self._listening[address] = accept

    def host(self, name: str) -> HostWires:
        """Return the wires of a host."""
        return HostWires(self, name)

    def connect(self, host: str, address: Any, seconds: float) -> Wire:
        """Connect; a task waits for it."""
        events = self.events
        end = events.now + seconds
        events.pause(events.chance.random() * _CONNECT_SECONDS)
        while host in self.cut_off:
            if events.now >= end:
                raise TimeoutError(errno.ETIMEDOUT, os.strerror(errno.ETIMEDOUT))
            events.pause(min(0.5, end - events.now))
        accept = self._listening.get(address)
        if accept is None:
            raise ConnectionRefusedError(errno.ECONNREFUSED, os.strerror(errno.ECONNREFUSED))
        self._last += 1
        connection = Connection(self, self._last, host)
        self.connections = [each for each in self.connections if not each.is_over]
        self.connections.append(connection)
        events.note(f"{connection.name} connects")
        connection.receiver = accept(connection)
        return connection.wire

    def cut_host_off(self, host: str) -> None:
        """Let a host reach nobody."""
        self.cut_off.add(host)

    def join_host(self, host: str) -> None:
        """Let a host reach everybody again: what waited goes on."""
        self.cut_off.discard(host)
        for connection in self.connections:
            connection.up.go_on()
            connection.down.go_on()


class HostWires:
    """The network and the clock as a client on one host has them: `objdb_zeo.wires.Wires`."""

    def __init__(self, network: Network, name: str) -> None:
        self.name = name
        self.connect = partial(network.connect, name)
        self._events = network.events

    def now(self) -> float:
        """Return the time."""
        return self._events.now

    def random(self, size: int) -> bytes:
        """See `objdb_zeo.wires.Wires`."""
        return self._events.chance.randbytes(size)

    def sleep(self, seconds: float) -> None:
        """Let the task wait."""
        self._events.pause(seconds)
