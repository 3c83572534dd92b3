"""A world: a server and clients, made from a seed; what happens in it, and whether it is right."""

from __future__ import annotations

import gc
import logging
import random
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from typing import Any
from unittest import mock

from objdb import ids
from objdb.ids import NO_TID
from objdb.storage import owning
from objdb.storage.commit import TransactionMetaData
from objdb.testing.events import Events, Local, Threading
from objdb.testing.network import Network
from objdb_zeo.protocol import questions
from tests.simulation.chaos import Chaos
from tests.simulation.clients import (
    CELL,
    CELLS,
    COUNTERS,
    KINDS,
    Job,
    Process,
    number_in,
    record,
)
from tests.simulation.databases import (
    DATABASE_KINDS,
    DatabaseProcess,
    make_accounts,
    value_in,
)
from tests.simulation.model import BrokenRuleError, Lineage, require, short
from tests.simulation.rules import Rules
from tests.simulation.server import Disk, Server, Watched

_BEGIN = 1_700_000_000.0  # on the clock, at the time 0
_MOST_EVENTS, _MOST_SECONDS = 40_000, 3_000.0  # until all work is done, once the faults are over


class Ledger:
    """What clients were told of their commits, by name."""

    def __init__(self, world: World) -> None:
        self._world = world
        self._outcomes: dict[str, Any] = {}

    def begin(self, name: str) -> None:
        """Note a commit that begins; it is in doubt until more is known."""
        self._outcomes[name] = None

    def doubt(self, name: str) -> None:
        """Note that nobody knows."""
        self._world.events.note(f"{name} is in doubt")

    def refuse(self, name: str, lineage: Lineage, error: BaseException) -> None:
        """Note that a commit was refused: it is not there, and never will be."""
        self._world.events.note(f"{name} is refused: {type(error).__name__}")
        self._outcomes[name] = error
        require(
            name not in lineage.by_name, "refused is not there",
            lambda: f"{name} is committed, and the client was told {error!r}",
        )

    def acknowledge(self, name: str, tid: bytes) -> None:
        """Note that a commit was acknowledged."""
        self._world.events.note(f"{name} is acknowledged: {short(tid)}")
        self._outcomes[name] = tid
        require(
            any(each.by_name.get(name) == tid for each in self._world.lineages),
            "acknowledged is there", f"{name} is not committed, or with another tid",
        )

    def settle(self) -> None:
        """Look at all of them, at the end. What was committed and then lost to a backup is not
        there."""
        last, before = self._world.lineage, self._world.lineages[:-1]
        for name, outcome in self._outcomes.items():
            if isinstance(outcome, bytes):
                is_lost = any(each.by_name.get(name) == outcome for each in before)
                require(
                    last.by_name.get(name) == outcome or is_lost, "acknowledged is there",
                    f"{name} is lost",
                )
            elif outcome is not None:
                require(name not in last.by_name, "refused is not there", f"{name} is there")


class World:
    """A server, and clients; everything follows from *seed*."""

    def __init__(self, seed: int) -> None:
        self.seed = seed
        self.chance = random.Random(seed)
        self.events = Events(self.chance)
        self.network = Network(self.events)
        self.rules = Rules(self.events.note)
        self.ledger = Ledger(self)
        self.thread_seconds = self.chance.choice((0.005, 0.03, 0.2))  # see `Server`
        self.lineages: list[Lineage] = []
        self.cells: list[bytes] = []
        self.given: dict[bytes, int] = {}  # oids, by the number of the server that gave them
        self.counters: list[bytes] = []
        self.things: list[bytes] = []
        self.pickled: set[bytes] = set()
        self.servers: list[Server] = []
        self.processes: list[Any] = []
        self.databases: list[Any] = []

    @property
    def lineage(self) -> Lineage:
        """All that was committed to the storage that is served."""
        return self.lineages[-1]

    @property
    def server(self) -> Server:
        """The server that runs, or ran last."""
        return self.servers[-1]

    def lineage_of(self, wire: Any) -> Lineage:
        """Return the lineage of the server that a client is connected with."""
        return wire.connection.receiver.server.lineage  # type: ignore[no-any-return]

    def serve(self, disk: Disk, lineage: Lineage) -> None:
        """Start a server."""
        if lineage not in self.lineages:
            self.lineages.append(lineage)
        number = len(self.servers) + 1
        self.servers.append(Server(
            self.events, self.network, disk, lineage, self.rules, number, self.thread_seconds
        ))

    def set_up(self) -> None:
        """Make everything."""
        chance = self.chance
        disk = Disk(is_file=chance.random() < 0.2)
        storage = disk.open()
        lineage = Lineage()
        Watched(storage, lineage, self.events)
        make_accounts(storage)
        self.pickled.update(lineage.oids())
        self.cells = [storage.new_oid() for _ in range(CELLS)]
        self.counters = [storage.new_oid() for _ in range(COUNTERS)]
        transaction = TransactionMetaData("", "setup")
        storage.tpc_begin(transaction)
        for oid in self.cells:
            storage.store(oid, NO_TID, record("cell", CELL, ""), "", transaction)
        for oid in self.counters:
            storage.store(oid, NO_TID, record("counter", 0, ""), "", transaction)
        storage.tpc_vote(transaction)
        storage.tpc_finish(transaction)
        storage.close()
        self.serve(disk, lineage)
        self.network.slow = chance.choice((0.0, 0.1, 0.3))
        self.network.split = chance.choice((0.0, 0.2, 0.7))
        self.network.joined = chance.choice((0.0, 0.3, 0.9))
        for number in range(chance.choice((2, 3, 3))):
            cache_bytes = chance.choice((0, 1500, 10**6, 10**6))
            is_database = chance.random() < 0.2
            kind: Any = DatabaseProcess if is_database else Process
            jobs = [
                self._jobs(DATABASE_KINDS if is_database else KINDS)
                for _ in range(1 if is_database else chance.choice((1, 2, 2)))
            ]
            self.processes.append(kind(self, f"client {number}", jobs, cache_bytes))
        for process in self.processes:
            process.start()

    def _jobs(self, weights: dict[str, int]) -> list[Job]:
        kinds = [kind for kind, weight in weights.items() for _ in range(weight)]
        length = self.chance.randrange(3, 8)
        return [Job(self.chance.choice(kinds), self.chance.randrange(1, 10)) for _ in range(length)]

    def run(self) -> None:
        """Let everything happen. Raises `BrokenRuleError`."""
        self.set_up()
        count = self.chance.choice((0, 4, 8, 16))
        restores = count > 2 and self.chance.random() < 0.4
        chaos = Chaos(self, count, self.chance.choice((0.03, 0.1, 0.3)), restores)
        self._until(lambda: chaos.is_over)
        self._until(lambda: all(process.is_done for process in self.processes))
        judges = [
            self.events.start(f"{process.name} judge", process.judge)
            for process in self.processes
        ]
        self._until(lambda: all(judge.is_over for judge in judges))
        self._until(lambda: False, may_end=True)  # what was given up is noticed
        self._quiet()
        self.ledger.settle()
        self._values()

    def _until(self, is_over: Callable[[], bool], may_end: bool = False) -> None:
        """Let events happen until *is_over* says so, or, if *may_end*, there are none."""
        events = self.events
        most, end = events.count + _MOST_EVENTS, events.now + _MOST_SECONDS
        while not is_over():
            if not events.step():
                require(may_end, "all work gets done", "nothing happens any more")
                return
            if events.active is not None and events.active.owner is not None:
                self.rules.check(events.active.owner)
            if events.count > most or events.now > end:
                what = f"it is not after {events.count} events"
                raise BrokenRuleError("all work gets done", what)

    def _quiet(self) -> None:
        """Require that nothing is left of what has ended."""
        served = self.server.served
        require(
            served._holder is None and not served.waiting and not served._finishing,
            "nothing is left", lambda: f"{served._holder} has its turn, {served.waiting} wait",
        )
        for session in served.sessions:
            require(
                not session._places and not session.calls._transactions,
                "nothing is left", f"{session.label} has transactions, or places",
            )
        staged = self.server.storage._slot._staged
        require(not staged, "nothing is left", f"the storage has {len(staged)} transactions")

    def _values(self) -> None:
        """Require that each commit did what its name says."""
        before: dict[bytes, bytes | None] = {}
        for commit in self.lineage.commits:
            _, _, kind, amount = f":::{commit.name}".rsplit(":", 3)
            read = value_in if kind == "pay" else number_in
            changes = [
                read(data) - read(before.get(oid) or b":0")
                for oid, data in commit.changes.items()
                if data is not None and kind in ("pay", "transfer", "add")
            ]
            if kind in ("pay", "transfer"):
                require(
                    sorted(changes) == [-int(amount), int(amount)], "each change once",
                    f"{commit.name} changes by {changes}",
                )
            elif kind == "add":
                require(
                    changes == [int(amount)], "each change once",
                    f"{commit.name} changes by {changes}",
                )
            before.update(commit.changes)

    def close(self) -> None:
        """End everything."""
        for server in self.servers:
            server.is_dead = True
        self.events.close()
        for database in self.databases:
            with suppress(Exception):
                database.close()


class Clock:
    """Stands for the module `time`: the time of the world."""

    def __init__(self, events: Events) -> None:
        self._events = events

    def time(self) -> float:
        """Return the time of day."""
        return _BEGIN + self._events.now

    def monotonic(self) -> float:
        """Return the time."""
        return self._events.now

    def __getattr__(self, name: str) -> Any:
        return getattr(time, name)


@contextmanager
def simulated(seed: int) -> Iterator[World]:
    """Make the world of a seed, in which threads, locks and the time are its own."""
    world = World(seed)
    was_enabled, level = gc.isenabled(), logging.root.manager.disable
    gc.disable()  # so that what is collected, and then does something, does it at no time at all
    logging.disable()
    clock = Clock(world.events)
    try:
        with (
            Threading(world.events).in_modules("objdb.storage.", "objdb_zeo."),
            mock.patch.object(ids, "time", clock), mock.patch.object(questions, "time", clock),
            mock.patch.object(owning, "_current", Local(world.events, noted=None)),
        ):
            try:
                yield world
            finally:
                world.close()
    finally:
        logging.disable(level)
        if was_enabled:
            gc.enable()
