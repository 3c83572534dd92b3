"""BerkeleyStorage: readers beside a writer, deaths, forks, closing, and what is forgotten."""

from __future__ import annotations

import os
import random
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import suppress
from pathlib import Path
from typing import Any

import pytest

import objdb
from objdb.errors import (
    StorageClosedError,
    StorageFailedError,
    StorageForkedError,
    StorageLockedError,
    StorageWriteError,
)
from objdb.ids import MAX_TID, NO_TID, ROOT_OID, next_tid
from objdb.storage.berkeley.engine import BerkeleyEngine
from objdb.storage.berkeley.environment import Environment
from objdb.storage.berkeley.storage import BerkeleyStorage
from objdb.storage.commit import TransactionMetaData
from objdb.testing.helpers import commit
from tests.database.test_forks import in_child
from tests.models import Person


@pytest.fixture
def path(tmp_path: Path) -> Path:
    """Where the database of the test is."""
    return tmp_path / "data"


@pytest.fixture
def storage(path: Path) -> Iterator[BerkeleyStorage]:
    """An open storage with a root record."""
    with BerkeleyStorage(path) as storage:
        commit(storage, {ROOT_OID: (NO_TID, b"root")})
        yield storage


def fill(path: Path, **options: Any) -> None:
    with objdb.DB(BerkeleyStorage(path, **options)) as db, db.transaction() as connection:
        connection.root()["ann"] = Person("ann", age=1)


def voted(storage: Any, changes: dict[bytes, tuple[bytes, bytes]]) -> TransactionMetaData:
    """Return a transaction that has voted, and holds the slot."""
    metadata = TransactionMetaData()
    storage.tpc_begin(metadata)
    for oid, (base, record) in changes.items():
        storage.store(oid, base, record, "", metadata)
    storage.tpc_vote(metadata)
    return metadata


def open_files(path: Path) -> set[str]:
    """Return the files under *path* that this process has open."""
    found = set()
    for entry in Path("/proc/self/fd").iterdir():
        with suppress(OSError):
            found.add(os.readlink(entry))
    return {file for file in found if file.startswith(f"{path}/")}


# -- readers beside a writer


def test_readers_while_a_large_transaction_has_voted(storage: BerkeleyStorage) -> None:
    """Everybody reads what was there before, the committing thread too, at any time; nothing
    waits; then everybody sees what was committed."""
    oids = [storage.new_oid() for _ in range(20_000)]
    first = commit(storage, dict.fromkeys(oids, (NO_TID, b"old" * 20)))
    new = [storage.new_oid() for _ in range(100)]
    changes = dict.fromkeys(oids, (first, b"new" * 50)) | dict.fromkeys(new, (NO_TID, b"new"))
    metadata = voted(storage, changes)
    seen: list[Any] = []

    def read() -> None:
        for oid in oids[::7]:
            seen.append(storage.loadBefore(oid, MAX_TID) == (b"old" * 20, first, None))
            seen.append(storage.loadSerial(oid, first) == b"old" * 20)
        for oid in new:
            with pytest.raises(KeyError):
                storage.load(oid)
        seen.append(len(list(storage.iterator())) == 2)
        seen.append(len(storage.history(oids[0], 5)) == 1)

    thread = threading.Thread(target=read)
    thread.start()
    thread.join(60)
    read()
    assert storage.self_check() == []
    storage.tpc_finish(metadata, lambda tid: read())
    assert all(seen) and len(seen) == 3 * (2 * len(oids[::7]) + 2)
    assert storage.load(oids[5])[0] == b"new" * 50 and storage.load(new[0])[0] == b"new"
    assert storage.loadBefore(oids[5], storage.lastTransaction())[0] == b"old" * 20


def test_aborts_under_readers(path: Path) -> None:
    """Transactions that vote and abort, over and over, are never seen, nor do they hide
    anything, from those who read meanwhile in every way there is."""
    with BerkeleyStorage(path) as storage:
        oids = [storage.new_oid() for _ in range(300)]
        first = commit(storage, dict.fromkeys(oids, (NO_TID, b"1")))
        last = commit(storage, dict.fromkeys(oids, (first, b"2")))
        failures: list[Any] = []
        done = threading.Event()

        def read(seed: int) -> None:
            chance = random.Random(seed)
            while not done.is_set():
                oid = chance.choice(oids)
                found = (
                    storage.loadBefore(oid, MAX_TID), storage.loadBefore(oid, last),
                    storage.engine.after(oid, first).tid, storage.engine.row(oid, last).data,
                )
                if found != ((b"2", last, None), (b"1", first, last), last, b"2"):
                    failures.append(found)
                if chance.random() < 0.01:
                    listed = [(len(t.oids), t.tid) for t in storage.engine.transactions(
                        NO_TID, MAX_TID
                    )]
                    chains = {oid: [tid for tid, _ in chain] for oid, chain in (
                        storage.engine.chains()
                    )}
                    expected = {key: [first, last] for key in oids}
                    if listed != [(300, first), (300, last)] or chains != expected:
                        failures.append((listed, chains))

        readers = [threading.Thread(target=read, args=(seed,)) for seed in range(3)]
        for reader in readers:
            reader.start()
        for _ in range(40):
            metadata = voted(storage, dict.fromkeys(oids, (last, b"3" * 500)))
            storage.tpc_abort(metadata)
        done.set()
        for reader in readers:
            reader.join()
        assert failures == []
        assert storage.self_check() == [] and len(storage) == 300


def test_commits_that_wait_are_checked_against(storage: BerkeleyStorage) -> None:
    """What is decided and waits for the log is not seen, and conflicted with."""
    tid = storage.getTid(ROOT_OID)
    begun, go_on = threading.Event(), threading.Event()
    flush = storage.engine._environment.flush

    def slowly() -> None:
        begun.set()
        go_on.wait(60)
        flush()

    storage.engine._environment.flush = slowly
    first = threading.Thread(target=lambda: commit(storage, {ROOT_OID: (tid, b"first")}))
    first.start()
    begun.wait(60)
    storage.engine._environment.flush = flush
    loaded = storage.load(ROOT_OID)
    current = storage.engine.current([ROOT_OID])[ROOT_OID]
    told: list[Any] = []

    def conflicting() -> None:
        try:
            commit(storage, {ROOT_OID: (tid, b"second")})
        except objdb.ConflictError:
            told.append(storage.load(ROOT_OID)[0])  # what was conflicted with can be seen

    second = threading.Thread(target=conflicting)
    second.start()
    go_on.set()
    first.join()
    second.join()
    assert loaded == (b"root", tid)
    assert current.tid > tid
    assert told == [b"first"]


def test_a_log_that_cannot_be_synced(path: Path) -> None:
    """A commit whose sync fails is of unknown outcome; no more are taken, reading goes on, and
    opening again shows what there is."""
    with BerkeleyStorage(path) as storage:
        tid = commit(storage, {ROOT_OID: (NO_TID, b"root")})

        def fail() -> None:
            raise OSError(5, "the disk is gone")

        storage.engine._environment.flush = fail
        with pytest.raises(StorageFailedError, match="unknown"):
            commit(storage, {ROOT_OID: (tid, b"lost?")})
        for _ in range(2):
            with pytest.raises(StorageFailedError, match=r"synced.*reopen it"):
                commit(storage, {ROOT_OID: (tid, b"more")})
        assert storage.load(ROOT_OID) == (b"root", tid)
    with BerkeleyStorage(path) as storage:
        assert storage.load(ROOT_OID)[0] in (b"root", b"lost?")
        commit(storage, {ROOT_OID: (storage.getTid(ROOT_OID), b"on")})


def test_large_transactions_and_records(path: Path) -> None:
    """A hundred thousand objects in one transaction, and a record of 8 MiB, which others read
    while it is replaced and that is taken back."""
    with BerkeleyStorage(path, cache_bytes=8 << 20) as storage:
        oids = [storage.new_oid() for _ in range(100_000)]
        tid = commit(storage, dict.fromkeys(oids, (NO_TID, b"x" * 150)))
        assert len(storage) == 100_000 and storage.load(oids[-1]) == (b"x" * 150, tid)
        large = os.urandom(8 << 20)
        tid = commit(storage, {oids[3]: (tid, large)})
        metadata = voted(storage, {oids[3]: (tid, large[::-1])})
        assert storage.load(oids[3]) == (large, tid)
        storage.tpc_abort(metadata)
        assert storage.load(oids[3]) == (large, tid)
    with BerkeleyStorage(path) as storage:
        assert storage.load(oids[3]) == (large, tid)
        assert storage.self_check() == []


def test_what_is_counted(path: Path) -> None:
    """The number of objects and their size are what a count shows, through changes, versions and
    packs, and after opening again."""
    storage = BerkeleyStorage(path)
    with objdb.DB(storage) as db:
        chance = random.Random(4)
        for number in range(30):
            with db.transaction(version="v" if number % 10 > 6 else "") as connection:
                root = connection.root()
                root[f"p{number % 7}"] = Person("x" * chance.randrange(900))
            if number % 10 == 9:
                db.abortVersion("v")
                objdb.get_transaction().commit()
                db.pack()
        expected = _counted(storage)
        assert (len(storage), storage.getSize()) == expected
    with BerkeleyStorage(path) as again:
        assert (len(again), again.getSize()) == expected


def _counted(storage: BerkeleyStorage) -> tuple[int, int]:
    sizes = {
        table: [len(value) for _, value in storage.engine._environment.piece(
            table, b"", b"\xff" * 17, 10_000
        )] for table in ("current", "old", "transactions")
    }
    return len(sizes["current"]), sum(map(sum, sizes.values()))


# -- processes


def test_one_process_at_a_time(path: Path) -> None:
    """The second one is told who has it, in this process and in another."""
    with BerkeleyStorage(path):
        for told in (_error_in_another(path), error_of(lambda: BerkeleyStorage(path))):
            assert "StorageLockedError" in told and str(os.getpid()) in told, told
            assert "One process at a time" in told
        with pytest.raises(StorageLockedError) as caught:
            BerkeleyStorage(path)
        assert caught.value.pid == os.getpid() and caught.value.path == str(path)
    BerkeleyStorage(path).close()


def error_of(action: Callable[[], Any]) -> str:
    try:
        action()
    except Exception as error:
        return f"{type(error).__name__}: {error}"
    return "no error"


def _error_in_another(path: Path) -> str:
    script = f"import objdb; objdb.BerkeleyStorage({str(path)!r})"
    return subprocess.run([sys.executable, "-c", script], capture_output=True, text=True).stderr


def test_forks(path: Path) -> None:
    """A child may not use the parent's storage, and does it no harm; one of its own it gets when
    the parent has closed."""
    with BerkeleyStorage(path) as storage:
        tid = commit(storage, {ROOT_OID: (NO_TID, b"root")})
        metadata = voted(storage, {ROOT_OID: (tid, b"voted")})

        def use() -> str:
            calls = [
                lambda: storage.load(ROOT_OID), lambda: storage.loadSerial(ROOT_OID, tid),
                lambda: commit(storage, {}), lambda: list(storage.engine.chains()),
            ]
            names = [error_of(call).partition(":")[0] for call in calls]
            storage.close()
            return f"{set(names)}, {error_of(lambda: BerkeleyStorage(path))}"

        told = in_child(use)
        assert "{'StorageForkedError'}, StorageLockedError" in told and str(os.getpid()) in told
        storage.tpc_finish(metadata)
        assert storage.load(ROOT_OID)[0] == b"voted"
        assert StorageForkedError.__name__ in told
    assert in_child(lambda: _opened_and_read(path)) == "b'voted'"
    with BerkeleyStorage(path) as storage:
        assert storage.self_check() == []


def _opened_and_read(path: Path) -> bytes:
    with BerkeleyStorage(path) as storage:
        return storage.load(ROOT_OID)[0]


def test_a_database_in_a_child(path: Path) -> None:
    """A database from a callable opens its storage in the child, once the parent has closed."""
    db = objdb.DB(lambda: BerkeleyStorage(path))
    with db.transaction() as connection:
        connection.root()["ann"] = Person("ann", age=1)
    assert "StorageLockedError" in in_child(lambda: error_of(db.open))
    ready, go_on = os.pipe(), os.pipe()
    child = os.fork()
    if not child:
        os.read(go_on[0], 1)
        with db.transaction() as connection:
            age = connection.root()["ann"].age
        db.close()
        os.write(ready[1], b"%d" % age)
        os._exit(0)
    db.close()
    os.write(go_on[1], b"x")
    assert os.read(ready[0], 1) == b"1"
    os.waitpid(child, 0)
    for end in (*ready, *go_on):
        os.close(end)


def test_a_process_that_ends_without_closing(path: Path) -> None:
    """It ends in order, and what it committed is there."""
    script = (
        f"import objdb; db = objdb.DB(objdb.BerkeleyStorage({str(path)!r}))\n"
        "with db.transaction() as connection: connection.root()['a'] = 1"
    )
    ended = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True)
    assert (ended.returncode, ended.stderr) == (0, "")
    with objdb.DB(BerkeleyStorage(path)) as db, db.transaction() as connection:
        assert connection.root()["a"] == 1


def test_closing(path: Path) -> None:
    """After closing, and beside it, every call is told so by name; a transaction that voted is
    not committed."""
    storage = BerkeleyStorage(path)
    oids = [storage.new_oid() for _ in range(50)]
    tid = commit(storage, dict.fromkeys(oids, (NO_TID, b"1")))
    failures: list[Any] = []
    reading = threading.Barrier(4)

    def read() -> None:
        reading.wait()
        while True:
            try:
                for oid in oids:
                    storage.load(oid)
                storage.loadBefore(oids[0], tid)
            except StorageClosedError:
                return
            except Exception as error:
                failures.append(error)
                return

    readers = [threading.Thread(target=read) for _ in range(3)]
    for reader in readers:
        reader.start()
    reading.wait()
    storage.close()
    for reader in readers:
        reader.join()
    assert failures == []
    storage.close()
    for call in (
        lambda: storage.load(oids[0]), lambda: storage.getTid(oids[0]), lambda: len(storage),
        lambda: commit(storage, {}), lambda: storage.backup(f"{path}2"), storage.self_check,
    ):
        with pytest.raises(StorageClosedError, match="Open it again"):
            call()


def test_closing_with_a_vote(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A transaction that voted when the storage is closed is taken back."""
    monkeypatch.setattr("objdb.storage.storage._CLOSE_SECONDS", 0.05)
    storage = BerkeleyStorage(path)
    tid = commit(storage, {ROOT_OID: (NO_TID, b"1")})
    metadata = voted(storage, {ROOT_OID: (tid, b"2")})
    storage.close()
    with pytest.raises(StorageClosedError):
        storage.tpc_finish(metadata)
    with BerkeleyStorage(path) as storage:
        assert storage.load(ROOT_OID) == (b"1", tid)


def test_closing_without_a_checkpoint(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """When the tables cannot be put on the medium at the end, closing says so, and nothing is left
    open; the log has everything."""
    storage = BerkeleyStorage(path)
    tid = commit(storage, {ROOT_OID: (NO_TID, b"root")})

    def fail(environment: Environment, *arguments: int) -> None:
        raise StorageWriteError("the disk is full")

    with monkeypatch.context() as patch:
        patch.setattr(Environment, "checkpoint", fail)
        with pytest.raises(StorageWriteError) as raised:
            storage.close()
        assert open_files(path) == set() and raised.tb is not None
    with BerkeleyStorage(path) as storage:
        assert storage.load(ROOT_OID) == (b"root", tid)


# -- without history


def test_the_clock_forgets(path: Path) -> None:
    """Without history, what was replaced goes by itself, in pieces, with its transactions."""
    with BerkeleyStorage(path, history=False) as storage:
        oids = [storage.new_oid() for _ in range(3000)]
        tids = [commit(storage, dict.fromkeys(oids, (NO_TID, b"0")))]
        for number in range(1, 5):
            tids.append(commit(storage, dict.fromkeys(oids, (tids[-1], b"%d" % number))))
        storage._tick()
        assert storage.engine._environment.piece("old", b"", b"\xff" * 16, 10) == []
        assert [t.tid for t in storage.engine.transactions(NO_TID, MAX_TID)] == tids[-1:]
        assert storage.loadBefore(oids[7], next_tid(tids[1])) is None
        assert storage.load(oids[7]) == (b"4", tids[-1])
        assert (len(storage), storage.getSize()) == _counted(storage)


def test_the_clock_and_a_vote_that_does_not_end(
    path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A storage whose clock waits for a transaction that voted can be closed."""
    monkeypatch.setattr("objdb.storage.storage._CLOSE_SECONDS", 0.1)
    monkeypatch.setattr(BerkeleyEngine, "tick_seconds", 0.01)
    storage = BerkeleyStorage(path, history=False)
    tid = commit(storage, {ROOT_OID: (NO_TID, b"1")})
    metadata = voted(storage, {ROOT_OID: (tid, b"2")})
    time.sleep(0.05)
    storage.close()
    storage.tpc_abort(metadata)
    with BerkeleyStorage(path) as storage:
        assert storage.load(ROOT_OID)[0] == b"1"
