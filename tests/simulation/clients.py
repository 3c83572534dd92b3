"""The clients of the simulation: processes with the real `ClientStorage`, and what they do.

    Process ─► ClientStorage, for one or two workers (its threads)
       ╰─► Worker ─► View (a connection to be: snapshot, own cache) ─► jobs, until all are done

A job is tried until it is committed, or nobody can tell.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple

from greenlet import GreenletExit

from objdb.errors import (
    ConflictError,
    POSKeyError,
    StorageError,
    UndoError,
)
from objdb.ids import MAX_TID, NO_TID, next_tid
from objdb.storage.commit import TransactionMetaData
from objdb_zeo.client import ClientStorage
from objdb_zeo.errors import CommitInDoubtError
from objdb_zeo.transport import DisconnectedError
from tests.simulation.model import Lineage, require, short
from tests.simulation.server import ADDRESS

CELLS, CELL = 4, 100  # objects whose sum stays, and what each has at the beginning
COUNTERS = 2
_MOST_TRIES = 4  # of a job that may be impossible
CLIENT_PREEMPTED = 0.05


class Job(NamedTuple):
    """What a worker is to do. *kind* is the name of a method; *amount* a number for it."""

    kind: str
    amount: int


def number_in(data: bytes) -> int:
    """Return the number in a record."""
    return int(data.split(b":")[1])


def record(kind: str, number: int, name: str) -> bytes:
    """Return a record of a kind of object with a number, written by the transaction *name*."""
    return f"{kind}:{number}:{name}".encode()


def require_link_error(error: StorageError) -> None:
    """Raise an error again, unless the connection is lost, or the server was restored."""
    if not isinstance(error, DisconnectedError) and "restored from a backup" not in str(error):
        raise error


class Told:
    """The database of a process, as its storage sees it: it tells the views."""

    def __init__(self, process: Process) -> None:
        self._process = process
        self.views: list[View] = []

    def resolve(
        self, oid: bytes, old: bytes | None, committed: bytes, new: bytes, serials: Any
    ) -> bytes:
        """Merge changes of a counter."""
        if old is None or not new.startswith(b"counter"):
            raise ConflictError(oid=oid, serials=serials)
        value = number_in(committed) + number_in(new) - number_in(old)
        return record("counter", value, "merged")

    def is_equal(self, oid: bytes, one: bytes | None, other: bytes | None) -> bool:
        """Return whether two records are the same."""
        return one == other

    def invalidate(self, tid: bytes, oids: Any, version: str = "") -> None:
        """Tell the views."""
        storage = self._process.storage
        require(
            storage is None or storage.lastTransaction() < tid, "the database is told first",
            f"{self._process.name}: lastTransaction() is {short(tid)} before the database is told",
        )
        self._process.world.events.perhaps_rest()
        for view in self.views:
            view.told.append((tid, tuple(oids)))

    def invalidateCache(self) -> None:
        """Tell the views to forget everything."""
        for view in self.views:
            view.told.append((NO_TID, None))

    def oldest_view(self) -> bytes:
        """Return the oldest snapshot."""
        return min((view.at for view in self.views), default=NO_TID)


class View:
    """A snapshot, and a cache of current objects that lasts, as a connection's."""

    def __init__(self, process: Process, storage: Any) -> None:
        self.process = process
        self.storage = storage
        self.told: list[tuple[bytes, Any]] = []
        self.at = NO_TID
        self._objects: dict[bytes, tuple[bytes, bytes]] = {}

    def begin(self) -> None:
        """Take in what has arrived, and go to the last transaction."""
        self.storage.poll()
        self.at = self.storage.lastTransaction()
        waiting = []
        for tid, oids in self.told:
            if oids is None:
                self._objects.clear()
            elif tid <= self.at:
                for oid in oids:
                    self._objects.pop(oid, None)
            else:
                waiting.append((tid, oids))
        self.told[:] = waiting

    def read(self, oid: bytes) -> tuple[bytes, bytes] | None:
        """Return (data, tid) in the snapshot; None if the object does not exist."""
        found = self._objects.get(oid)
        if found is None:
            try:
                loaded = self.storage.loadBefore(oid, next_tid(self.at))
            except POSKeyError:
                loaded = None
            found = None if loaded is None else (loaded[0], loaded[1])
            is_current = loaded is not None and loaded[2] is None
            if found is not None and is_current and not any(
                oid in oids for _, oids in self.told if oids is not None
            ) and all(oids is not None for _, oids in self.told):
                self._objects[oid] = found
        lineage = self.process.lineage()
        expected = lineage.before(oid, next_tid(self.at), self.at)
        require(
            found == (None if expected is None else expected[:2]), "snapshot",
            lambda: f"{self.process.name} at {short(self.at)} reads {short(oid)}: {found}, and it "
            f"is {expected}",
        )
        return found

    def committed(self, tid: bytes, changed: Any) -> None:
        """Tell the views of an own commit."""
        for view in self.process.told.views:
            view.told.append((tid, tuple(changed)))


class Process:
    """A process on a host of its own, with *workers*, each a list of jobs."""

    def __init__(self, world: Any, name: str, jobs: list[list[Job]], cache_bytes: int) -> None:
        self.world, self.name = world, name
        self.jobs = jobs
        self.cache_bytes = cache_bytes
        self.call_seconds = world.chance.choice((3.0, 20.0))
        self.storage: Any = None
        self.told = Told(self)
        self.seen = NO_TID
        self.tasks: list[Any] = []
        self.must_reopen = self.is_killed = False
        self.names = 0
        self.known_oids: list[bytes] = []

    @property
    def is_done(self) -> bool:
        """Whether all its work is done."""
        is_over = not any(self.jobs) and all(task.is_over for task in self.tasks)
        return is_over and not self.is_killed

    def lineage(self) -> Lineage:
        """Return the lineage of the server that it is, or was last, connected with."""
        found: Lineage = self.world.lineage_of(self.storage._link._open._wire)
        return found

    def start(self) -> None:
        """Begin, or go on."""
        self.is_killed = False
        self.tasks = [self._task("main", self._main)]

    def _task(self, name: str, run: Callable[[], object]) -> Any:
        return self.world.events.start(f"{self.name} {name}", run, CLIENT_PREEMPTED, self)

    def _main(self) -> None:
        while any(self.jobs):
            self._open()
            workers = [
                self._task(f"worker {number}", Worker(self, number, jobs).run)
                for number, jobs in enumerate(self.jobs)
            ]
            self.tasks = [*self.tasks[:1], *workers]
            while not all(task.is_over for task in workers):
                self.world.events.pause(0.05)
            if self.must_reopen:
                self.close()

    def _open(self) -> None:
        if self.storage is not None:
            return
        self.must_reopen = False
        self.told = Told(self)
        while True:
            try:
                storage = ClientStorage(
                    ADDRESS, wires=self.world.network.host(self.name),
                    cache_bytes=self.cache_bytes, call_seconds=self.call_seconds, wait_seconds=5.0,
                )
                break
            except DisconnectedError:
                self.world.events.pause(0.2)
        storage.registerDB(self.told)
        self.seen = NO_TID
        self.storage = storage

    def kill(self) -> None:
        """End, as a process that is killed; it is started again."""
        self.is_killed = True
        for connection in self.world.network.connections:
            if connection.host == self.name:
                connection.wire.close()
        for task in self.tasks:
            self.world.events.kill(task)
        self.storage = None

    def reach(self) -> None:
        """Hear of all that was committed."""
        self._open()
        while True:
            try:
                self.storage._link.call("ping")
                return
            except DisconnectedError:
                continue
            except StorageError as error:
                require_link_error(error)
                self.close()
                self._open()

    def close(self) -> None:
        """Close the storage, to open it anew."""
        self.storage.close()
        self.storage = None

    def judge(self) -> None:
        """Look at everything, at the end: it is as the model says, at the last transaction."""
        self.reach()
        view = View(self, self.storage)
        self.told.views.append(view)
        view.begin()
        last = self.world.lineage.last
        require(
            view.at == last, "all is told in the end",
            lambda: f"{self.name} is at {short(view.at)}, and the last one is {short(last)}",
        )
        for oid in self.world.lineage.oids():
            if oid not in self.world.pickled:
                view.read(oid)


class Worker:
    """A thread of a process."""

    def __init__(self, process: Process, number: int, jobs: list[Job]) -> None:
        self.process, self.jobs = process, jobs
        self.world, self.storage = process.world, process.storage
        self.name = f"{process.name}.{number}"
        self.view = View(process, process.storage)
        process.told.views.append(self.view)
        self._tries = 0

    def run(self) -> None:
        """Do the jobs."""
        while self.jobs and not self.process.must_reopen:
            self.world.events.rest()
            job = self.jobs[0]
            self._tries += 1
            is_done = False
            try:
                is_done = self._do(job)
            except GreenletExit:
                if self.jobs and self.jobs[0] is job:
                    self.jobs.pop(0)
                raise
            if is_done or (job.kind in _OPTIONAL and self._tries >= _MOST_TRIES):
                self.jobs.pop(0)
                self._tries = 0
            elif not self.process.must_reopen:
                self.world.events.pause(self.world.chance.random() * 0.02)

    def _do(self, job: Job) -> bool:
        """Try a job; return whether it is done."""
        try:
            self.view.begin()
            return bool(getattr(self, job.kind)(job.amount))
        except DisconnectedError:
            return False
        except StorageError as error:
            require_link_error(error)
            self.process.must_reopen = True
            return False

    # -- commits

    def commit(self, kind: str, amount: int, stage: Callable[[Any, str], object]) -> bool:
        """Commit what *stage* does; return whether that is over: committed, or in doubt."""
        self.process.names += 1
        name = f"{self.name}:{self.process.names}:{kind}:{amount}"
        transaction = TransactionMetaData("", name)
        ledger = self.world.ledger
        ledger.begin(name)
        told: list[bytes] = []

        def committed(tid: bytes, made: Any = ()) -> None:
            changed = self.storage._transactions[id(transaction)].changed
            told.append(tid)
            self.view.committed(tid, {*changed, *made})

        is_alone = is_finishing = self.world.chance.random() < 0.5
        try:
            self.storage.tpc_begin(transaction)
            stage(transaction, name)
            transaction.committed = committed if is_alone else None
            self.storage.tpc_vote(transaction)
            is_finishing = True
            tid = self.storage.tpc_finish(transaction, committed)
            require(
                self.storage.lastTransaction() >= tid, "own commits are seen",
                f"{name}: lastTransaction() is before {short(tid)}",
            )
            require(told == [tid], "callback", f"{name}: it is called with {told}, not {tid!r}")
        except CommitInDoubtError:
            ledger.doubt(name)
            return True
        except (ConflictError, UndoError, POSKeyError, DisconnectedError) as error:
            ledger.refuse(name, self.process.lineage(), error)
            self.storage.tpc_abort(transaction)
            return False
        except StorageError as error:
            require_link_error(error)
            self.process.must_reopen = True
            ledger.doubt(name)
            self.storage.tpc_abort(transaction)
            return is_finishing
        ledger.acknowledge(name, tid)
        return True

    # -- jobs

    def transfer(self, amount: int) -> bool:
        """Move an amount between two cells; their sum stays."""
        one, other = self.world.chance.sample(self.world.cells, 2)
        values = {}
        if self.world.chance.random() < 0.3:
            self.storage.prefetch(self.world.cells, MAX_TID)
        for oid in (one, other):
            found = self.view.read(oid)
            assert found is not None
            values[oid] = found
        third = self.world.chance.choice(self.world.cells)
        checked = None if third in values else self.view.read(third)

        def stage(transaction: Any, name: str) -> None:
            for oid, change in ((one, -amount), (other, amount)):
                data, serial = values[oid]
                data = record("cell", number_in(data) + change, name)
                self.storage.store(oid, serial, data, "", transaction)
            if checked is not None:
                self.storage.checkCurrentSerialInTransaction(third, checked[1], transaction)

        return self.commit("transfer", amount, stage)

    def add(self, amount: int) -> bool:
        """Add to a counter, whose changes are merged."""
        oid = self.world.chance.choice(self.world.counters)
        found = self.view.read(oid)
        assert found is not None
        data, serial = found

        def stage(transaction: Any, name: str) -> None:
            value = record("counter", number_in(data) + amount, name)
            self.storage.store(oid, serial, value, "", transaction)

        return self.commit("add", amount, stage)

    def create(self, amount: int) -> bool:
        """Create an object."""
        oid = self.storage.new_oid()
        server = self.storage._oids_of._wire.connection.receiver.server
        # What a server gave that is gone by now cannot be new to the next one, nor what that one
        # gives as long as nobody has stored it: the vote refuses the second.
        is_of_another = self.world.given.get(oid, server.number) != server.number
        self.world.given[oid] = server.number
        require(
            server is not self.world.server or not server.lineage.revisions(oid) or is_of_another,
            "new oids are new", lambda: f"{self.name} is given {short(oid)}, which there is",
        )

        def stage(transaction: Any, name: str) -> None:
            self.storage.store(oid, NO_TID, record("thing", amount, name), "", transaction)

        is_done = self.commit("create", amount, stage)
        if is_done:
            self.world.things.append(oid)
        return is_done

    def delete(self, amount: int) -> bool:
        """Delete an object."""
        if not self.world.things:
            return True
        oid = self.world.chance.choice(self.world.things)
        found = self.view.read(oid)
        if found is None or not found[0].startswith(b"thing:"):  # another's, since a crash
            return True

        def stage(transaction: Any, name: str) -> None:
            self.storage.deleteObject(oid, found[1], transaction)

        return self.commit("delete", amount, stage)

    def undo(self, amount: int) -> bool:
        """Undo one of the last transactions."""
        log = self.storage.undoLog(0, -4)
        ids = [each["id"] for each in log if ":" in each["description"]]
        if not ids:
            return True
        id = ids[amount % len(ids)]
        return self.commit(
            "undo", amount, lambda transaction, name: self.storage.undo(id, transaction)
        )

    def abort(self, amount: int) -> bool:
        """Vote, and abort."""
        oid = self.world.chance.choice(self.world.counters)
        found = self.view.read(oid)
        assert found is not None
        transaction = TransactionMetaData("", f"{self.name} aborts")
        try:
            self.storage.tpc_begin(transaction)
            self.storage.store(oid, found[1], record("counter", -1, "aborted"), "", transaction)
            if amount % 2:
                self.storage.tpc_vote(transaction)
        except ConflictError:
            pass
        finally:
            self.storage.tpc_abort(transaction)
        return True

    def look(self, amount: int) -> bool:
        """Read everything in one snapshot, with pauses."""
        oids = [*self.world.cells, *self.world.counters, *self.world.things[-4:]]
        self.world.chance.shuffle(oids)
        total = 0
        for oid in oids:
            if amount % 3 == 0:
                self.world.events.pause(self.world.chance.random() * 0.05)
            found = self.view.read(oid)
            total += number_in(found[0]) if found and oid in self.world.cells else 0
        require(
            total == CELLS * CELL, "snapshot", f"{self.name}: the sum is {total}, and mixed"
        )
        return True

    def ask(self, amount: int) -> bool:
        """Call what the rules of order are about."""
        link = self.storage._link
        for _ in range(amount):
            link.call("ping")
            self.world.events.pause(self.world.chance.random() * 0.01)
        link.call("lastTransaction")
        self.view.begin()
        oid = self.world.chance.choice(self.world.counters)
        try:
            link.call("loadBefore", oid, b"\x7f" + b"\xff" * 7)
        except POSKeyError:
            pass
        return True

    def history(self, amount: int) -> bool:
        """List the transactions up to the snapshot."""
        last = self.storage.lastTransaction()
        tids = [each.tid for each in self.storage.iterator(None, last)]
        expected = [tid for tid in self.process.lineage().tids if tid <= last]
        require(tids == expected, "iterator", f"{self.name} lists other transactions")
        return True


_OPTIONAL = {"undo", "delete", "ask", "history"}
KINDS = {
    "transfer": 5, "add": 4, "look": 3, "create": 3, "delete": 1, "undo": 1, "abort": 1, "ask": 4,
    "history": 1,
}
