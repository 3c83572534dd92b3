"""SQLiteStorage beside others: databases on one file, processes, packs, forks."""

from __future__ import annotations

import os
import sqlite3
import subprocess
import sys
import threading
import warnings
from contextlib import suppress
from pathlib import Path
from typing import Any

import pytest
import transaction

import objdb
from objdb.check import check
from objdb.errors import (
    ConflictError,
    POSKeyError,
    StorageClosedError,
    StorageForkedError,
    StorageLockedError,
)
from objdb.ids import MAX_TID, NO_TID, ROOT_OID, int_from_oid
from objdb.storage.commit import TransactionMetaData
from objdb.storage.sql.sqlite import SQLiteStorage
from objdb.testing.helpers import commit
from tests.database.test_forks import in_child
from tests.models import Person


@pytest.fixture
def path(tmp_path: Path) -> Path:
    """Where the database of the test is."""
    return tmp_path / "data.sqlite"


def fill(path: Path, **options: Any) -> None:
    with objdb.DB(SQLiteStorage(path, **options)) as db, db.transaction(note="ann") as connection:
        connection.root()["ann"] = Person("ann", age=1)


# -- beside others


def test_two_databases_on_one_file(path: Path) -> None:
    """What one commits the other sees when its next view begins, and not before; a change of what
    the other has changed is a conflict."""
    fill(path)
    with objdb.DB(SQLiteStorage(path)) as one, objdb.DB(SQLiteStorage(path)) as two:
        manager = transaction.TransactionManager()
        reader = two.open(transaction_manager=manager)
        assert reader.root()["ann"].age == 1
        with one.transaction() as connection:
            connection.root()["ann"].age = 2
        assert reader.root()["ann"].age == 1
        reader.root()["ann"].age = 3
        with pytest.raises(ConflictError):
            manager.commit()
        manager.abort()
        assert reader.root()["ann"].age == 2
        reader.root()["ann"].age += 1
        manager.commit()
        reader.close()
        with one.transaction() as connection:
            assert connection.root()["ann"].age == 3
        check(one.storage).raise_if_damaged()


def test_what_others_commit_before_ones_own(path: Path) -> None:
    """The view behind one's own commit shows what others have committed before that, too."""
    fill(path)
    with objdb.DB(SQLiteStorage(path)) as one, objdb.DB(SQLiteStorage(path)) as two:
        manager = transaction.TransactionManager()
        connection = one.open(transaction_manager=manager)
        ann = connection.root()["ann"]
        assert ann.age == 1
        with two.transaction() as other:
            other.root()["ann"].age = 2
        connection.root()["bob"] = Person("bob")
        manager.commit()
        assert ann.age == 2
        connection.close()


def test_polling_before_a_commit_is_told(path: Path) -> None:
    """What a storage has committed itself is not shown by asking what others have, but when those
    who have to know of it first were told."""
    fill(path)
    with SQLiteStorage(path) as storage:
        shown: list[bytes] = []
        before = storage.lastTransaction()

        def told(tid: bytes) -> None:
            storage.poll()
            shown.append(storage.lastTransaction())

        metadata = TransactionMetaData()
        storage.tpc_begin(metadata)
        storage.store(storage.new_oid(), NO_TID, b"new", "", metadata)
        storage.tpc_vote(metadata)
        tid = storage.tpc_finish(metadata, told)
        assert shown == [before] and storage.lastTransaction() == tid


def test_oids_of_two_processes(path: Path) -> None:
    """No oid is given out twice, by whichever storage, and however a file was copied there."""
    fill(path)
    with SQLiteStorage(path) as one, SQLiteStorage(path) as two:
        oids = [storage.new_oid() for _ in range(300) for storage in (one, two)]
        assert len(set(oids)) == 600 and ROOT_OID not in oids
        far = (int_from_oid(max(oids)) + 100_000).to_bytes(8, "big")
        commit(one, {far: (NO_TID, b"far")})
        assert not {far} & {two.new_oid() for _ in range(50_000)}
        further = b"\0\0\1" + bytes(5)
        metadata = TransactionMetaData()
        one.tpc_begin(metadata)
        one.store(further, NO_TID, b"x", "", metadata)
        one.tpc_vote(metadata)
        one.tpc_abort(metadata)
        assert len({storage.new_oid() for _ in range(300) for storage in (one, two)}) == 600


def test_one_that_waits_too_long(path: Path) -> None:
    """Who cannot commit since another process holds the database is told so, and can try again;
    so it is with a program that knows nothing of objdb."""
    fill(path)
    with SQLiteStorage(path) as one, SQLiteStorage(path, busy_seconds=0.05) as two:
        holding = TransactionMetaData()
        one.tpc_begin(holding)
        one.store(one.new_oid(), NO_TID, b"x", "", holding)
        one.tpc_vote(holding)
        with pytest.raises(StorageLockedError, match=r"another process.*busy_seconds"):
            commit(two, {ROOT_OID: (two.getTid(ROOT_OID), b"y")})
        one.tpc_finish(holding)
        tid = commit(two, {ROOT_OID: (two.getTid(ROOT_OID), b"y")})
        program = sqlite3.connect(path, isolation_level=None)
        program.execute("BEGIN IMMEDIATE")
        with pytest.raises(StorageLockedError, match="another program"):
            commit(two, {ROOT_OID: (tid, b"z")})
        program.execute("ROLLBACK")
        program.close()
        commit(two, {ROOT_OID: (tid, b"z")})


OPENER = """
import sys, objdb
for number in range(10):
    with objdb.DB(f"sqlite:{sys.argv[1]}{number}") as db, db.transaction() as connection:
        assert len(connection.root()) >= 0
"""


def test_processes_make_one_together(path: Path) -> None:
    """Processes that open new databases at the same time make each of them once."""
    running = [subprocess.Popen([sys.executable, "-c", OPENER, str(path)]) for _ in range(6)]
    assert [process.wait(timeout=100) for process in running] == [0] * 6
    for number in range(10):
        with SQLiteStorage(f"{path}{number}") as storage:
            assert len(storage) == len(list(storage.iterator())) == 1


ADDER = """
import sys, objdb
db = objdb.DB(sys.argv[1])
def add(connection):
    connection.root()["count"] += 1
for _ in range(int(sys.argv[2])):
    db.run(add, tries=100_000)
db.close()
"""


@pytest.mark.parametrize("processes", [2, 8])
def test_processes_count_together(path: Path, processes: int) -> None:
    """Every addition of every process is in the sum."""
    uri = f"sqlite:{path}"
    with objdb.DB(uri) as db, db.transaction() as connection:
        connection.root()["count"] = 0
    each = 400 // processes
    running = [
        subprocess.Popen([sys.executable, "-c", ADDER, uri, str(each)]) for _ in range(processes)
    ]
    assert [process.wait(timeout=100) for process in running] == [0] * processes
    with objdb.DB(uri) as db:
        with db.transaction() as connection:
            assert connection.root()["count"] == 400
        check(db.storage).raise_if_damaged()


def test_read_ahead(path: Path) -> None:
    """What was read ahead, in the order of the oids, is not shown once it was changed: by this
    process, or by another one when that can be seen."""
    oids = [number.to_bytes(8, "big") for number in range(40)]
    with SQLiteStorage(path) as storage, SQLiteStorage(path) as other:
        records = {oid: b"%d" % number for number, oid in enumerate(oids)}
        records[oids[10]] = b"large" * 10_000
        del records[oids[20]]
        first = commit(storage, {oid: (NO_TID, record) for oid, record in records.items()})
        other.poll()

        def load_all(reader: SQLiteStorage, before: bytes = MAX_TID) -> dict[bytes, bytes]:
            found = {}
            for oid in oids:
                with suppress(POSKeyError):
                    found[oid] = reader.loadBefore(oid, before)[0]
            return found

        for oid in oids[:5]:  # the others are read ahead
            assert storage.loadBefore(oid, MAX_TID) == (records[oid], first, None)
            assert other.loadBefore(oid, MAX_TID) == (records[oid], first, None)
        second = commit(storage, {oids[6]: (first, b"new"), oids[7]: (first, None)})
        changed = {**records, oids[6]: b"new"}
        del changed[oids[7]]
        assert storage.loadBefore(oids[6], MAX_TID) == (b"new", second, None)
        assert storage.loadBefore(oids[6], second) == (records[oids[6]], first, second)
        assert load_all(storage) == changed
        assert load_all(storage, second) == records
        assert load_all(other) == records
        other.poll()
        assert load_all(other) == changed


def test_packed_by_another(path: Path) -> None:
    """A view whose revisions another process has packed away gets an error, not other data; the
    next one goes on."""
    fill(path)
    with objdb.DB(SQLiteStorage(path)) as one, objdb.DB(SQLiteStorage(path)) as two:
        manager = transaction.TransactionManager()
        reader = two.open(transaction_manager=manager)
        for age in range(2, 5):
            with one.transaction() as connection:
                connection.root()["ann"].age = age
        one.pack()
        two.storage._tick()  # ends SQLite's own view
        with pytest.raises(objdb.ReadConflictError):
            reader.root()["ann"].age  # noqa: B018
        manager.abort()
        assert reader.root()["ann"].age == 4
        reader.close()


@pytest.mark.parametrize("history", [True, False])
def test_gone_by_another(path: Path, history: bool) -> None:
    """What another process has packed away, or forgotten, is a read conflict also where nothing
    is left of it."""
    options = {"history": history, "keep_seconds": 0}
    fill(path, **options)
    with (
        objdb.DB(SQLiteStorage(path, **options)) as one,
        objdb.DB(SQLiteStorage(path, **options)) as two,
    ):
        manager = transaction.TransactionManager()
        reader = two.open(transaction_manager=manager)
        root, ann = reader.root(), reader.root()["ann"]
        with one.transaction() as connection:
            del connection.root()["ann"]
        one.pack()
        one.storage._tick()
        two.storage._tick()
        reader.cacheMinimize()
        for look in (lambda: ann.name, lambda: root["ann"]):
            reader.cacheMinimize()
            with pytest.raises(objdb.ReadConflictError):
                look()
        manager.abort()
        assert "ann" not in reader.root()
        reader.close()


def test_the_log_starts_over(path: Path) -> None:
    """Threads that do nothing for long do not keep the write-ahead log from starting over."""
    fill(path)
    with SQLiteStorage(path) as storage:
        at_rest, go_on = threading.Event(), threading.Event()

        def read() -> None:
            storage.load(ROOT_OID)
            at_rest.set()
            go_on.wait(60)

        thread = threading.Thread(target=read)
        thread.start()
        at_rest.wait(60)
        tid = storage.getTid(ROOT_OID)
        for _ in range(6):
            for _ in range(50):
                tid = commit(storage, {ROOT_OID: (tid, os.urandom(50_000))})
            storage._tick()
        size = os.path.getsize(f"{path}-wal")
        go_on.set()
        thread.join()
    assert size < 6 * 50 * 50_000 * 2 / 3  # some three times as much was written


# -- forks


def test_a_fork_goes_on_by_itself(path: Path) -> None:
    """A database on SQLite works in a forked child, however it was given, and in the parent."""
    fill(path)
    for where in (f"sqlite:{path}", SQLiteStorage(path), lambda: SQLiteStorage(path)):
        with objdb.DB(where) as db:
            with db.transaction() as connection:
                before = connection.root()["ann"].age

            def add() -> int:
                with db.transaction() as connection:
                    connection.root()["ann"].age += 1
                db.close()
                return 0

            assert [in_child(add) for _ in range(3)] == ["0"] * 3
            add_here = in_child(lambda d=db: d.storage.lastTransaction().hex())
            assert add_here == db.storage.lastTransaction().hex()
            with db.transaction() as connection:
                assert connection.root()["ann"].age == before + 3


def test_forks_while_others_work(path: Path) -> None:
    """Forks among threads that read and commit: every child works on the file, and so does the
    parent; nothing is lost."""
    fill(path)
    with objdb.DB(SQLiteStorage(path)) as db:
        done = threading.Event()
        added: list[int] = []

        def add(connection: objdb.Connection) -> None:
            connection.root()["ann"].age += 1

        def work() -> None:
            count = 0
            while not done.is_set():
                db.run(add, tries=10_000)
                db.storage.load(ROOT_OID)
                count += 1
            added.append(count)

        threads = [threading.Thread(target=work) for _ in range(3)]
        for thread in threads:
            thread.start()

        def child() -> int:
            for _ in range(5):
                db.run(add, tries=10_000)
            db.close()
            return 5

        with warnings.catch_warnings():
            warnings.simplefilter("ignore", DeprecationWarning)  # 3.12 warns of threads and forks
            told = [in_child(child) for _ in range(20)]
        done.set()
        for thread in threads:
            thread.join()
        assert told == ["5"] * 20
        with db.transaction() as connection:
            assert connection.root()["ann"].age == 1 + 100 + sum(added)
        check(db.storage).raise_if_damaged()


def test_a_storage_of_the_parent(path: Path) -> None:
    """The storage itself is refused in a child, by name."""
    fill(path)
    with SQLiteStorage(path) as storage:
        storage.load(ROOT_OID)

        def use(call: Any) -> str:
            try:
                call()
            except StorageForkedError as error:
                return str(error)
            return "no error"

        for call in (lambda: storage.load(ROOT_OID), lambda: commit(storage, {})):
            assert "Open the storage in the child" in in_child(lambda c=call: use(c))
        assert in_child(lambda: storage.close() or "closed") == "closed"
        assert storage.load(ROOT_OID)


def test_a_fork_in_the_middle_of_a_read(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A file that was in use during a fork cannot be opened in the child, nor in any child of
    that; in the parent everything goes on."""
    monkeypatch.setattr("objdb.storage.sql.connections._FORK_SECONDS", 0.01)
    fill(path)

    def opened() -> str:
        try:
            SQLiteStorage(path).close()
        except StorageForkedError:
            return "refused"
        return "opened"

    with SQLiteStorage(path) as storage:
        storage.load(ROOT_OID)
        lock = storage.engine._links.local.link.lock
        lock.acquire()
        told = in_child(lambda: [opened(), in_child(opened), in_child(opened)])
        assert told == str(["refused"] * 3)
        lock.release()
        assert storage.load(ROOT_OID) and in_child(opened) == "opened"


def test_a_fork_beside_a_vote(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A fork does not wait for ever for a thread that waits for a transaction to end."""
    monkeypatch.setattr("objdb.storage.sql.connections._FORK_SECONDS", 0.05)
    monkeypatch.setattr("objdb.storage.sql.sqlite_engine.SQLiteEngine.tick_seconds", 0.01)
    waits = threading.Event()
    with SQLiteStorage(path, history=False, keep_seconds=0) as storage:
        tid = commit(storage, {ROOT_OID: (NO_TID, b"root")})
        transaction = TransactionMetaData()
        storage.tpc_begin(transaction)
        storage.store(ROOT_OID, tid, b"more", "", transaction)
        storage.tpc_vote(transaction)
        held = storage._slot.held

        def noted() -> Any:
            waits.set()
            return held()

        monkeypatch.setattr(storage._slot, "held", noted)
        storage._amender.pruned_tid = NO_TID  # so that the thread has something to do
        assert waits.wait(30)
        assert in_child(lambda: "forked") == "forked"
        storage.tpc_finish(transaction)
        assert storage.load(ROOT_OID)[0] == b"more"


def test_the_parent_is_killed_during_a_commit(path: Path) -> None:
    """The lock of a process that is killed while it commits is free, also when a child that it had
    before goes on."""
    fill(path)
    script = (
        "import os, signal, sys\n"
        "from objdb.storage.sql.sqlite import SQLiteStorage\n"
        "from objdb.storage.commit import TransactionMetaData\n"
        "storage = SQLiteStorage(sys.argv[1])\n"
        "storage.new_oid()\n"  # which takes the lock, and frees it
        "if not os.fork():\n"
        "    sys.stdin.read()\n"
        "    os._exit(0)\n"
        "transaction = TransactionMetaData()\n"
        "storage.tpc_begin(transaction)\n"
        "storage.tpc_vote(transaction)\n"
        "os.kill(os.getpid(), signal.SIGKILL)\n"
    )
    with subprocess.Popen(
        [sys.executable, "-c", script, str(path)], stdin=subprocess.PIPE
    ) as process:
        process.wait(60)
        with SQLiteStorage(path, busy_seconds=5) as storage:
            commit(storage, {storage.new_oid(): (NO_TID, b"more")})


# -- threads


def test_what_others_commit_behind_ones_own(path: Path) -> None:
    """A view that begins after another process's commit has returned sees it, also if that came
    behind a transaction of this process that is not shown yet."""
    fill(path)
    with SQLiteStorage(path) as one, SQLiteStorage(path) as two:
        tids, seen = [], []

        def look() -> None:
            one.poll()
            seen.append(one.lastTransaction())

        looking = threading.Thread(target=look)

        def decided(tid: bytes) -> None:
            tids.append(commit(two, {two.new_oid(): (NO_TID, b"behind")}))
            looking.start()
            looking.join(0.2)

        metadata = TransactionMetaData()
        one.tpc_begin(metadata)
        one.store(one.new_oid(), NO_TID, b"before", "", metadata)
        one.tpc_vote(metadata)
        one.tpc_finish(metadata, decided)
        looking.join()
        assert seen == tids and len(tids) == 1


def test_closing_under_a_call(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A connection is not closed under a call of SQLite, which is interrupted; if that does not
    end, who has called closes the connection behind it."""
    monkeypatch.setattr("objdb.storage.sql.sqlite_engine._CLOSE_SECONDS", 0.01)
    fill(path)
    storage = SQLiteStorage(path)
    links, is_in, may_end = [], threading.Event(), threading.Event()

    def stay() -> int:
        is_in.set()
        return int(may_end.wait(30))

    def call() -> None:
        storage.load(ROOT_OID)
        links.append(storage.engine._links.local.link)
        links[0].connection.create_function("stay", 0, stay)
        with pytest.raises(StorageClosedError):
            storage.engine._find_all("SELECT stay() FROM objects, objects, objects")

    calling = threading.Thread(target=call)
    calling.start()
    assert is_in.wait(30)
    storage.close()
    assert not links[0].is_closed
    may_end.set()
    calling.join()
    assert links[0].is_closed


def test_the_link_of_a_thread_that_ends(path: Path) -> None:
    """The connection of a thread that has ended is closed, once nobody is at it."""
    fill(path)
    with SQLiteStorage(path) as storage:
        links = []

        def call() -> None:
            storage.load(ROOT_OID)
            links.append(storage.engine._links.local.link)

        def call_and_lock() -> None:
            call()
            links[-1].lock.acquire()  # as the clock does

        for each in (call, call_and_lock):
            thread = threading.Thread(target=each)
            thread.start()
            thread.join()
        assert [link.is_closed for link in links] == [True, False]
        links[1].lock.release()
        links[1].end_if_told()
        assert links[1].is_closed
        storage.engine._links.rest()
        assert not storage.engine._links._all & set(links)


CLOSER = """
import random, sys, threading, time, transaction, objdb
from objdb.storage.sql.sqlite_engine import SQLiteEngine
from objdb.storage.sql.sqlite import SQLiteStorage
SQLiteEngine.tick_seconds = 0.001
wrong = []
for number in range(8):
    db = objdb.DB(SQLiteStorage(sys.argv[1], durability="os"), pool_size=20)
    with db.transaction() as connection:
        connection.root().update({i: objdb.PersistentMapping(n=0) for i in range(5)})

    def work(i):
        try:
            while True:
                with db.transaction() as connection:
                    connection.root()[i]["n"] += 1
                list(db.storage.iterator())
                db.storage.history(bytes(8), 5)
                thread = threading.Thread(target=visit)
                thread.start()
                thread.join()
        except (objdb.StorageClosedError, objdb.ConnectionStateError):
            pass
        except Exception as error:
            wrong.append(error)

    def visit():
        try:
            db.storage.load(bytes(8))
            db.storage.poll()
        except objdb.StorageClosedError:
            pass
        except Exception as error:
            wrong.append(error)

    threads = [threading.Thread(target=work, args=(i,)) for i in range(4)]
    for thread in threads:
        thread.start()
    threads[0].join(random.random() * 0.1)
    db.close()
    for thread in threads:
        thread.join()
sys.exit(repr(wrong) if wrong else 0)
"""


def test_closing_while_threads_work(path: Path) -> None:
    """Threads that read, commit, iterate, list, poll and end while the database is closed are
    told that it is closed."""
    done = subprocess.run(
        [sys.executable, "-c", CLOSER, str(path)], capture_output=True, text=True, timeout=100,
    )
    assert (done.returncode, done.stderr) == (0, "")
