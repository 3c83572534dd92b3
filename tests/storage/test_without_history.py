"""Storages that keep no history: what there is, what there is not, and how long old revisions
stay."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import transaction

import objdb
from objdb.check import check
from objdb.errors import Unsupported, UsageError
from objdb.ids import MAX_TID, NO_TID, ROOT_OID, next_tid
from objdb.interfaces import IStorageHistory, IStorageUndoable, IStorageVersions
from objdb.storage.berkeley.storage import BerkeleyStorage
from objdb.storage.commit import TransactionMetaData
from objdb.storage.sql.sqlite import SQLiteStorage
from objdb.testing.helpers import commit, contents
from tests.models import Person

Make = Callable[..., Any]


def _sqlite(folder: Path, history: bool | None = False) -> Any:
    return SQLiteStorage(folder / "data.sqlite", history=history, keep_seconds=0)


def _berkeley(folder: Path, history: bool | None = False) -> Any:
    return BerkeleyStorage(folder / "data", history=history)


MAKERS = {"sqlite": _sqlite, "berkeley": _berkeley}


@pytest.fixture(params=MAKERS)
def make(request: pytest.FixtureRequest, tmp_path: Path) -> Make:
    """A function that opens the storage of the test."""
    return lambda history=False: MAKERS[request.param](tmp_path, history)


@pytest.fixture
def storage(make: Make) -> Iterator[Any]:
    """An open storage with a root record."""
    storage = make()
    commit(storage, {ROOT_OID: (NO_TID, b"root")})
    yield storage
    storage.close()


def test_what_there_is_not(storage: Any) -> None:
    """Undo, versions and history are not declared, and Unsupported says how to have them."""
    for interface in (IStorageHistory, IStorageUndoable, IStorageVersions):
        assert not interface.providedBy(storage)
    assert not storage.supportsUndo() and not storage.supportsVersions()
    last = storage.lastTransaction()
    metadata = TransactionMetaData()
    storage.tpc_begin(metadata)
    for call in (
        lambda: storage.undo(last, metadata), storage.undoLog,
        lambda: storage.history(ROOT_OID),
        lambda: storage.store(ROOT_OID, last, b"x", "version", metadata),
        lambda: storage.load(ROOT_OID, "version"),
    ):
        with pytest.raises(Unsupported, match="history=True"):
            call()
    storage.tpc_abort(metadata)


def test_a_copy_goes_on_after_a_transaction_without_objects(storage: Any) -> None:
    """A copy whose last transaction changed no object is continued after that."""
    source = objdb.MappingStorage()
    root = commit(source, {ROOT_OID: (NO_TID, b"root")})
    commit(source, {}, description="empty")
    with SQLiteStorage(storage.getName() + ".copy", history=False) as copy:
        assert copy.copyTransactionsFrom(source) == 2
        assert copy.copyTransactionsFrom(source) == 0
        commit(source, {ROOT_OID: (root, b"changed")})
        assert copy.copyTransactionsFrom(source) == 1
        assert copy.load(ROOT_OID) == source.load(ROOT_OID)


def test_a_copy_of_what_was_in_versions(make: Make) -> None:
    """Versions that were committed or aborted do not keep a database from being copied, nor that
    copy from being continued; changes that are in one do, which says so before anything is
    copied."""
    with objdb.DB(objdb.MappingStorage()) as db, make() as copy:
        with db.transaction() as connection:
            connection.root()["ann"] = Person("ann", age=1)
        for end in (db.commitVersion, db.abortVersion):
            with db.transaction(version="plan") as connection:
                connection.root()["ann"].age += 1
                connection.root()[end.__name__] = Person("new")
            for _ in range(2):
                with pytest.raises(Unsupported, match=r"changes in 'plan'. Commit or abort"):
                    copy.copyTransactionsFrom(db.storage)
            end("plan")
            transaction.commit()
            copy.copyTransactionsFrom(db.storage)
            assert copy.copyTransactionsFrom(db.storage) == 0
            assert copy.lastTransaction() == db.storage.lastTransaction()
    with objdb.DB(make()) as db, db.transaction() as connection:
        root = connection.root()
        assert root["ann"].age == 2 and root["commitVersion"].name == "new"
        assert "abortVersion" not in root
        check(db.storage).raise_if_damaged()


def test_how_it_was_made(make: Make) -> None:
    """Whether it keeps history stays as it was made; asking for the other is refused."""
    make().close()
    with make(None) as storage:
        assert not storage.supportsUndo()
    with pytest.raises(UsageError, match="history=False"):
        make(True)


def test_the_iterator(make: Make, storage: Any) -> None:
    """It lists the last revision of each object, in the transaction that wrote it; a copy has
    the same objects."""
    oids = [storage.new_oid() for _ in range(3)]
    first = commit(storage, dict.fromkeys(oids, (NO_TID, b"1")))
    second = commit(storage, {oids[0]: (first, b"2")})
    third = commit(storage, {oids[1]: (first, None)})
    listed = [(t.tid, sorted((r.oid, r.data) for r in t)) for t in storage.iterator()]
    assert listed[1:] == [
        (first, [(oids[2], b"1")]), (second, [(oids[0], b"2")]), (third, [(oids[1], None)]),
    ]
    storage._amender.prune(storage._db, 0)
    assert [t.tid for t in storage.iterator(first, second)] == [first, second]
    with objdb.MappingStorage() as copy:
        copy.copyTransactionsFrom(storage)
        assert {oid: copy.load(oid) for oid in (ROOT_OID, oids[0], oids[2])} == {
            oid: storage.load(oid) for oid in (ROOT_OID, oids[0], oids[2])
        }
        assert [entry[0] for entry in contents(copy)] == [t.tid for t in storage.iterator()]


def test_old_revisions_go(storage: Any) -> None:
    """What was replaced goes when nobody can read it; a view that was never taken notice of
    gets nothing, not something else."""
    tids = [commit(storage, {ROOT_OID: (storage.getTid(ROOT_OID), b"%d" % i)}) for i in range(5)]
    assert storage.loadBefore(ROOT_OID, tids[2]) == (b"1", tids[1], tids[2])
    size = sum(1 for _ in storage.engine.chains())
    storage._amender.prune(storage._db, 0)
    assert storage.loadBefore(ROOT_OID, tids[2]) is None
    assert storage.loadBefore(ROOT_OID, MAX_TID) == (b"4", tids[4], None)
    assert [chain for _, chain in storage.engine.chains()] == [[(tids[4], 1)]] and size == 1
    assert storage.lastTransaction() == tids[4]


def test_what_is_read_stays(make: Make) -> None:
    """A connection goes on seeing what it saw, whatever is committed and forgotten meanwhile;
    then it goes."""
    with objdb.DB(make()) as db:
        with db.transaction() as connection:
            connection.root()["ann"] = Person("ann", age=0)
        manager = transaction.TransactionManager()
        reader = db.open(transaction_manager=manager)
        for age in range(1, 20):
            with db.transaction() as connection:
                connection.root()["ann"].age = age
            db.storage._amender.prune(db.storage._db, 0)
        assert reader.root()["ann"].age == 0
        reader.cacheMinimize()
        assert reader.root()["ann"].age == 0
        reader.sync()
        assert reader.root()["ann"].age == 19
        db.storage._amender.prune(db.storage._db, 0)
        reader.close()
        chains = [chain for _, chain in db.storage.engine.chains()]
        assert all(len(chain) == 1 for chain in chains)


def test_after_reopening(make: Make) -> None:
    """Old revisions that a crash left go as well; no tid is given twice."""
    with make() as storage:
        first = commit(storage, {ROOT_OID: (NO_TID, b"1")})
        last = commit(storage, {ROOT_OID: (first, b"2")})
        storage._amender.prune(storage._db, 0)
    with make() as storage:
        assert storage.lastTransaction() == last
        storage._amender.prune(storage._db, 0)
        assert storage.loadBefore(ROOT_OID, next_tid(first)) is None
        assert commit(storage, {ROOT_OID: (last, b"3")}) > last


def test_packing(make: Make) -> None:
    """A pack collects garbage, and nothing else."""
    with objdb.DB(make()) as db:
        with db.transaction() as connection:
            connection.root()["ann"] = Person("ann")
            connection.root()["bob"] = Person("bob")
        with db.transaction() as connection:
            del connection.root()["ann"]
        assert len(db.storage) == 3
        db.pack()
        assert len(db.storage) == 2
        check(db.storage).raise_if_damaged()
        with db.transaction() as connection:
            assert list(connection.root()) == ["bob"]
            assert connection.root()["bob"].name == "bob"
