"""The server of the simulation: the real sessions, with a driver of events and tasks.

    bytes ─► loop (a task) ─► Session ─► steps, each in a task ─► storage
                                │
                                ╰─► out ─► rules look at it ─► Pipe

A server that is killed leaves its tasks where they are. Its storage is opened anew from what was
durable.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable
from functools import partial
from typing import Any

from objdb.storage.committer import no_callback
from objdb.storage.file.storage import FileStorage
from objdb.storage.memory import MappingStorage
from objdb.storage.undo import data_of
from objdb.testing.events import Events, Task
from objdb.testing.faults import FaultyFiles
from objdb.testing.network import Connection
from objdb_zeo.limits import Limits
from objdb_zeo.protocol.driver import InThread
from objdb_zeo.protocol.served import Served
from objdb_zeo.protocol.session import Session
from tests.simulation.model import BrokenRuleError, Commit, Lineage, require, short

ADDRESS = ("server", 9100)
STEPS_PREEMPTED = 0.25  # how often a thread of the server gives way where it takes a lock
_GAP = 0.7  # how often others go on between a commit, its announcement, and its becoming visible


class InOrder(dict[Any, None]):
    """A set that keeps its order, so that a seed always makes the same events."""

    def add(self, item: Any) -> None:
        self[item] = None

    def discard(self, item: Any) -> None:
        self.pop(item, None)


class Disk:
    """What outlives a server: the rows of a `MappingStorage`, or the files of a `FileStorage`."""

    def __init__(self, is_file: bool) -> None:
        self._is_file = is_file
        self._data: dict[bytes, bytes] = {}
        self._files = FaultyFiles()

    def open(self) -> Any:
        """Open the storage."""
        if self._is_file:
            return FileStorage("data.fs", files=self._files, preallocate_bytes=0)
        return MappingStorage("data", data=self._data)

    def after(self, survival: str, seed: int) -> Disk:
        """Return the disk as it is after a crash."""
        disk = Disk(self._is_file)
        if self._is_file:
            disk._files = self._files.crashed(len(self._files.operations), survival, seed)
        else:
            disk._data = dict(self._data)
        return disk


class Watched:
    """Tells the lineage what a storage commits, before it is visible, and lets other tasks go on
    in between."""

    def __init__(self, storage: Any, lineage: Lineage, events: Events) -> None:
        self.storage = storage
        self.lineage = lineage
        self._events = events
        self._broken: BrokenRuleError | None = None
        self._changes: dict[int, dict[bytes, bytes | None]] = {}
        for name in ("tpc_begin", "store", "deleteObject", "undo", "tpc_vote", "tpc_finish"):
            setattr(storage, name, partial(getattr(self, f"_{name}"), getattr(storage, name)))
        storage.engine.publish = partial(self._publish, storage.engine.publish)

    def _tpc_begin(self, real: Any, transaction: Any, *arguments: Any) -> None:
        real(transaction, *arguments)
        self._changes[id(transaction)] = {}

    def _store(self, real: Any, oid: bytes, serial: bytes, data: bytes, version: str,
               transaction: Any) -> None:
        real(oid, serial, data, version, transaction)
        self._changes[id(transaction)][oid] = data

    def _deleteObject(self, real: Any, oid: bytes, serial: bytes, transaction: Any) -> None:
        real(oid, serial, transaction)
        self._changes[id(transaction)][oid] = None

    def _undo(self, real: Any, transaction_id: Any, transaction: Any) -> Any:
        found = real(transaction_id, transaction)
        self._changes[id(transaction)].update(dict.fromkeys(found[1], b""))  # data: see below
        return found

    def _tpc_vote(self, real: Any, transaction: Any) -> Any:
        resolved = real(transaction)
        self._changes[id(transaction)].update(dict.fromkeys(resolved or (), b""))
        return resolved

    def _tpc_finish(self, real: Any, transaction: Any, callback: Any = no_callback) -> bytes:
        changes = self._changes.pop(id(transaction))
        added: list[bytes] = []

        def told(tid: bytes) -> None:
            if self._broken is not None:  # the storage calls again, after an error
                raise self._broken
            self._gap()
            for oid, data in changes.items():
                if data == b"":
                    changes[oid] = data_of(self.storage.engine, oid, tid)
            if self.lineage.last == tid and tid in added:  # it is killed, and tries once more
                return
            self.lineage.add(Commit(tid, transaction.description.decode(), changes))
            added.append(tid)
            self._events.note(
                f"storage commits {short(tid)} {transaction.description.decode()} "
                f"({' '.join(map(short, sorted(changes)))})"
            )
            try:
                callback(tid)
            except BrokenRuleError as error:
                self._broken = error
                raise

        self._gap()
        tid: bytes = real(transaction, told)
        return tid

    def _publish(self, real: Any, token: Any) -> None:
        self._gap()
        real(token)

    def _gap(self) -> None:
        if self._events.current is not None and self._events.chance.random() < _GAP:
            self._events.rest()

    def catch_up(self) -> None:
        """Take in what was committed and told nobody when the server was killed; all that was told
        has to be there."""
        there = {each.tid: each for each in self.storage.iterator()}
        for tid in self.lineage.tids:
            require(tid in there, "durable", f"{short(tid)} was told, and is lost")
        for tid in sorted(there.keys() - set(self.lineage.tids)):
            require(tid > self.lineage.last, "tids ascend", f"{short(tid)} is there late")
            found = there[tid]
            changes = {record.oid: record.data for record in found}
            self.lineage.add(Commit(tid, bytes(found.description).decode(), changes))


class Server:
    """A process that serves a disk. *rules* look at each connection. *thread_seconds*: how long a
    thread may take to say that it has done something."""

    def __init__(
        self, events: Events, network: Any, disk: Disk, lineage: Lineage, rules: Any, number: int,
        thread_seconds: float,
    ) -> None:
        self.thread_seconds = thread_seconds
        self.events, self.network, self.rules = events, network, rules
        self.disk, self.lineage, self.number = disk, lineage, number
        self.is_dead = False
        self.storage = disk.open()
        self.watched = Watched(self.storage, lineage, events)
        self.watched.catch_up()
        chance = events.chance
        self.served = Served("1", self.storage, instance=chance.randbytes(8))
        self.served.sessions = InOrder()  # type: ignore[assignment]
        self.served.at_once = chance.choice((1, 2, 8))
        self.served.wake = partial(self.soon, self._spread)
        self.tasks: list[Task] = []
        self.ends: list[End] = []
        self._soon: deque[Callable[[], object]] = deque()
        self._loop = self.start("loop", self._run)
        network.listen(ADDRESS, self.accept)

    def start(self, name: str, run: Callable[[], object]) -> Task:
        """Start one of its threads."""
        task = self.events.start(f"server {self.number} {name}", run, STEPS_PREEMPTED)
        self.tasks = [each for each in self.tasks if not each.is_over]
        self.tasks.append(task)
        return task

    def _run(self) -> None:
        while True:
            while self._soon:
                self._soon.popleft()()
            self.events.pause()

    def soon(self, function: Callable[[], object]) -> None:
        """Let the loop call a function."""
        if not self.is_dead:
            self._soon.append(function)
            self.events.wake(self._loop)

    def _spread(self) -> None:
        if self.served.tell_some():
            self.soon(self._spread)

    def accept(self, connection: Connection) -> End:
        """Take a connection."""
        end = End(self, connection)
        self.ends.append(end)
        return end

    def close(self) -> None:
        """Stop as `objdb_zeo.server.Server.close` does; a task calls it."""
        self.network.listen(ADDRESS, None)
        for end in self.ends:
            end.takes_no_more = True
        self.served.wait_for_finishes()
        for end in list(self.ends):
            end.close()
        while self.ends:
            self.events.rest()
        while any(not task.is_over for task in self.tasks if task is not self._loop):
            self.events.rest()
        self.storage.close()
        self.kill()

    def kill(self) -> None:
        """End, as a process that is killed."""
        self.is_dead = True
        self.network.listen(ADDRESS, None)
        self.events.freeze(self.tasks)
        for end in self.ends:
            end.connection.cut()


class End:
    """The server's end of a connection, and the driver of its session: see `protocol.driver`."""

    def __init__(self, server: Server, connection: Connection) -> None:
        self.server, self.connection = server, connection
        self.takes_no_more = self.is_closing = False
        self.tap = server.rules.tap(server, connection)
        self._out: deque[bytes] = deque()
        self._is_flushing = False
        self.session = Session(
            {"1": server.served}, self, connection.name, Limits()
        )

    # -- the network's side

    def data_received(self, data: bytes) -> None:
        """Let the session take in bytes."""
        if not self.takes_no_more:
            self.tap.received(data)
            self.server.soon(partial(self._take, data))

    def _take(self, data: bytes) -> None:
        if not self.session.is_closed:
            self.session.data_received(data)

    def connection_lost(self) -> None:
        """Let the session end."""
        if self in self.server.ends:
            self.server.ends.remove(self)
            self.connection.down.end()
            self.server.soon(self.session.closed)

    # -- the session's side

    def send(self, data: bytes) -> None:
        """See `Driver`."""
        if self.server.is_dead:
            return
        self.tap.sent(data)
        self._out.append(data)
        if not self._is_flushing:
            self._is_flushing = True
            self.server.soon(self._flush)

    def send_now(self, data: bytes) -> None:
        """See `Driver`."""
        if self.server.is_dead:
            return
        self.tap.sent(data)
        self.connection.down.send(data)

    def _flush(self) -> None:
        self._is_flushing = False
        data = b"".join(self._out)
        self._out.clear()
        self.connection.down.send(data)

    def takes_more(self) -> bool:
        """See `Driver`."""
        return True

    def close(self) -> None:
        """See `Driver`."""
        self.server.soon(self._close)

    def _close(self) -> None:
        self._flush()
        self.takes_no_more = True
        self.connection.down.end()
        self.connection_lost()

    def run(self, step: InThread, done: Callable[[Any, BaseException | None], None]) -> None:
        """See `Driver`."""
        function = step.function
        name = getattr(getattr(function, "func", function), "__name__", "step")
        self.server.start(f"{name} {self.connection.name}", partial(self._work, function, done))

    def _work(self, function: Callable[[], Any], done: Callable[..., None]) -> None:
        try:
            result, error = function(), None
        except Exception as failure:
            result, error = None, failure
        chance = self.server.events.chance
        if chance.random() < 0.4:  # other threads are faster
            self.server.events.pause(chance.random() * self.server.thread_seconds)
        self.server.soon(partial(done, result, error))

    def soon(self, function: Callable[[], object]) -> None:
        """See `Driver`."""
        self.server.soon(function)

    def rest(self) -> None:
        """See `Driver`."""
        self.server.events.rest()

    def later(self, seconds: float, function: Callable[[], object]) -> Callable[[], object]:
        """See `Driver`."""
        what = f"{self.connection.name}: its time is over"
        return self.server.events.after(seconds, what, partial(self.server.soon, function)).cancel
