"""The simulated network, and the locks of tasks."""

from __future__ import annotations

import random
from collections.abc import Callable
from typing import Any

import pytest

from objdb.testing.events import Condition, Events, Lock, RLock
from objdb.testing.network import Connection, Network

ADDRESS = ("server", 1)


class Server:
    """Keeps what arrives, and sends it back."""

    def __init__(self, connection: Connection) -> None:
        self.connection = connection
        self.data = b""
        self.is_over = False

    def data_received(self, data: bytes) -> None:
        """Keep it, and send it back."""
        self.data += data
        self.connection.down.send(data)

    def connection_lost(self) -> None:
        """Note the end."""
        self.is_over = True


class World:
    """A network, one server, and a client that does *what*, with its wire."""

    def __init__(self, what: Callable[[World, Any], object], **options: float) -> None:
        self.events = Events(random.Random(7))
        self.network = Network(self.events)
        vars(self.network).update(options)
        self.servers: list[Server] = []
        self.network.listen(ADDRESS, self._accept)
        host = self.network.host("client")
        self.found: list[Any] = []
        self.events.start(
            "client", lambda: self.found.append(what(self, host.connect(ADDRESS, 5.0)))
        )
        while self.events.step():
            pass

    def _accept(self, connection: Connection) -> Server:
        self.servers.append(Server(connection))
        return self.servers[-1]


def read(wire: Any, size: int) -> bytes:
    """Read so many bytes, or all until the end."""
    data = b""
    while len(data) < size and (piece := wire.recv(1000)):
        data += piece
    return data


@pytest.mark.parametrize("split", [0.0, 0.9])
def test_bytes_arrive_in_order(split: float) -> None:
    """What is sent arrives whole and in its order, however it is split."""
    pieces = [bytes([number]) * (number + 1) for number in range(40)]

    def client(world: World, wire: Any) -> bytes:
        for piece in pieces:
            wire.sendall(piece)
        data = read(wire, sum(map(len, pieces)))
        wire.close()
        return data

    world = World(client, split=split, joined=0.5)
    assert world.found == [b"".join(pieces)] == [world.servers[0].data]
    assert world.servers[0].is_over


def test_a_cut() -> None:
    """A connection that is cut ends on both sides, behind a part of what was sent."""
    def client(world: World, wire: Any) -> bytes:
        wire.sendall(b"0123456789" * 100)
        wire.connection.cut()
        return read(wire, 2000)

    world = World(client)
    assert world.servers[0].is_over
    assert (b"0123456789" * 100).startswith(world.found[0]) and len(world.found[0]) < 1000


def test_half_open() -> None:
    """A direction that fell silent swallows what is sent; the end is seen much later."""
    def client(world: World, wire: Any) -> Any:
        wire.connection.be_half_open(wire.connection.up)
        wire.sendall(b"lost")
        is_there = wire.poll(20_000)
        return is_there, wire.recv(10), world.events.now

    world = World(client)
    is_there, data, now = world.found[0]
    assert not is_there and data == b"" and now > 20
    assert world.servers[0].data == b"" and world.servers[0].is_over


def test_a_slow_reader() -> None:
    """Who sends waits while too much is on its way; nothing is lost."""
    def client(world: World, wire: Any) -> bytes:
        wire.connection.up.window = 10
        for _ in range(20):
            wire.sendall(b"x" * 50)
            assert wire.connection.up.size <= 10
        return read(wire, 1000)

    assert World(client).found == [b"x" * 1000]


def test_a_host_that_is_cut_off() -> None:
    """A host that is cut off reaches nobody; what it sent arrives when it is joined again."""
    def client(world: World, wire: Any) -> Any:
        world.network.cut_host_off("client")
        wire.sendall(b"late")
        with pytest.raises(TimeoutError):
            world.network.connect("client", ADDRESS, 2.0)
        before = world.servers[0].data
        world.network.join_host("client")
        return before, read(wire, 4)

    assert World(client).found == [(b"", b"late")]


def test_nobody_listens() -> None:
    """A connection with an address at which nobody listens is refused."""
    def client(world: World, wire: Any) -> None:
        world.network.listen(ADDRESS, None)
        with pytest.raises(ConnectionRefusedError):
            world.network.connect("client", ADDRESS, 2.0)

    assert World(client).found == [None]


def test_locks() -> None:
    """One task at a time has a lock, its holder may take an `RLock` again, and whoever waits for
    too long is told."""
    events = Events(random.Random(1))
    lock, again, order = Lock(events), RLock(events), []

    def work(number: int) -> None:
        with lock, again, again:
            order.append(number)
            events.pause(1.0)
            order.append(number)

    for number in range(3):
        events.start(f"task {number}", lambda number=number: work(number))
    events.start("late", lambda: (events.pause(0.5), order.append(lock.acquire(timeout=0.1))))
    while events.step():
        pass
    numbers = [each for each in order if each is not False]
    assert numbers[::2] == numbers[1::2] and sorted(numbers[::2]) == [0, 1, 2]
    assert False in order


def test_conditions() -> None:
    """A task that waits for a condition goes on when it is notified, or when its time is over."""
    events = Events(random.Random(1))
    condition, found = Condition(events), []

    def wait() -> None:
        with condition:
            found.append((condition.wait(5.0), events.now < 2))
            found.append((condition.wait(5.0), events.now > 5))

    def notify() -> None:
        events.pause(1.0)
        with condition:
            condition.notify_all()

    events.start("waits", wait)
    events.start("notifies", notify)
    while events.step():
        pass
    assert found == [(True, True), (False, True)]
