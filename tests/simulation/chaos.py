"""What goes wrong, and when: chosen by chance, until so much has gone wrong; then all is mended."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any

from objdb.testing.faults import SURVIVALS

_KINDS = (
    "cut", "cut", "lose_reply", "lose_reply", "half_open", "slow_reader", "cut_host_off", "storm",
    "kill_server", "stop_server", "kill_client",
)


class Chaos:
    """The faults of a world: *count* of them, with at most *seconds* between two."""

    def __init__(self, world: Any, count: int, seconds: float, restores: bool) -> None:
        self.world = world
        self.is_over = False
        self._left = count
        self._seconds = seconds
        chance = world.chance
        kinds = [each for each in _KINDS if chance.random() < 0.6] or ["cut"]
        self._kinds = [*kinds[-4:], "back_up", "restore"] if restores else kinds
        self._backup: Any = None
        if restores:
            world.events.after(chance.random() * 0.1, "", self._back_up)
        self._is_down = 0
        self._next()

    def _next(self) -> None:
        seconds = self.world.chance.random() * self._seconds
        self.world.events.after(seconds, "", self._happen)

    def _happen(self) -> None:
        if self._left == 0 or all(process.is_done for process in self.world.processes):
            self._mend()
            return
        self._left -= 1
        getattr(self, f"_{self.world.chance.choice(self._kinds)}")()
        self._next()

    def _mend(self) -> None:
        """End all faults."""
        if self._is_down:  # until it is up again
            self.world.events.after(1.0, "", self._mend)
            return
        self.is_over = True
        world = self.world
        world.rules.lose = None
        world.events.note("the faults are over")
        world.network.slow = 0.05
        world.network.slow_seconds = 0.05
        for host in sorted(world.network.cut_off):
            world.network.join_host(host)
        for connection in world.network.connections:
            for pipe in (connection.up, connection.down):
                pipe.window = None
                pipe.go_on()
            connection.wire.changed()

    def _connection(self) -> Any:
        found = [each for each in self.world.network.connections if not each.is_over]
        return self.world.chance.choice(found) if found else None

    def _later(self, seconds: float, what: str, function: Callable[[], object]) -> None:
        self.world.events.after(self.world.chance.random() * seconds, what, function)

    def _cut(self) -> None:
        connection = self._connection()
        if connection is not None:
            self.world.events.note(f"{connection.name} is cut")
            connection.cut()

    def _lose_reply(self) -> None:
        """Lose the next reply to a tpc_finish, and let its client come back late, or at once."""
        def lose(connection: Any) -> None:
            self.world.events.note(f"{connection.name} is cut before a reply")
            connection.cut()
            if self.world.chance.random() < 0.5 and not self.is_over:
                self.world.network.cut_host_off(connection.host)
                join = partial(self.world.network.join_host, connection.host)
                self._later(0.5, f"{connection.host} is joined again", join)

        self.world.rules.lose = lose

    def _half_open(self) -> None:
        connection = self._connection()
        if connection is not None:
            pipe = self.world.chance.choice((connection.up, connection.down))
            self.world.events.note(f"{pipe.name} falls silent")
            connection.be_half_open(pipe)

    def _slow_reader(self) -> None:
        connection = self._connection()
        if connection is not None:
            pipe = self.world.chance.choice((connection.up, connection.down))
            self.world.events.note(f"{pipe.name} is slow")
            pipe.window = self.world.chance.choice((1, 40, 300))

    def _cut_host_off(self) -> None:
        host = self.world.chance.choice(self.world.processes).name
        self.world.events.note(f"{host} is cut off")
        self.world.network.cut_host_off(host)
        seconds = self.world.chance.choice((0.2, 10.0, 60.0))
        join = partial(self.world.network.join_host, host)
        self._later(seconds, f"{host} is joined again", join)

    def _storm(self) -> None:
        network = self.world.network
        self.world.events.note("the network is slow")
        network.slow, network.slow_seconds = 0.5, self.world.chance.choice((0.5, 5.0))

        def calm() -> None:
            network.slow, network.slow_seconds = 0.1, 0.1

        self._later(2.0, "the network is fast again", calm)

    def _kill_client(self) -> None:
        process = self.world.chance.choice(self.world.processes)
        if process.is_done or all(task.is_over for task in process.tasks):
            return
        self.world.events.note(f"{process.name} is killed")
        process.kill()
        self._later(1.0, f"{process.name} is started again", process.start)

    # -- the server

    def _kill_server(self) -> None:
        if not self._is_down:
            self._is_down += 1
            self.world.events.note("the server is killed")
            self.world.server.kill()
            chance = self.world.chance
            disk = self.world.server.disk.after(chance.choice(SURVIVALS), chance.randrange(1000))
            start = partial(self._start, disk, self.world.lineage)
            self._later(chance.choice((0.1, 3.0)), "the server is started again", start)

    def _start(self, disk: Any, lineage: Any) -> None:
        self._is_down -= 1
        self.world.serve(disk, lineage)

    def _stop_server(self) -> None:
        if self._is_down:
            return
        self._is_down += 1
        server = self.world.server
        self.world.events.note("the server is stopped")

        def stop() -> None:
            server.close()
            self._later(0.5, "the server is started again", start)

        start = partial(self._start, server.disk, self.world.lineage)
        self.world.events.start("stop", stop)

    def _back_up(self) -> None:
        if not self._is_down:
            self.world.events.note("a backup is made")
            server = self.world.server
            self._backup = server.disk.after("kept", 0), server.storage.lastTransaction()

    def _restore(self) -> None:
        if self._backup is None or self._is_down:
            return
        self._is_down += 1
        self.world.events.note("the server is killed, and its storage restored from the backup")
        self.world.server.kill()
        disk, last = self._backup
        self._backup = None
        if self.world.chance.random() < 0.6:  # somebody comes back after others have committed
            self._cut_host_off()
        lineage = self.world.lineage.forked(last)
        start = partial(self._start, disk, lineage)
        self._later(1.0, "the server is started again", start)
