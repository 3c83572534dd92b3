"""Storages, wrappers and programs written for ZODB: what they may rely on."""

from __future__ import annotations

import asyncio
import pickle
import sys
import time
import types
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import transaction
from BTrees.OOBTree import OOBTree
from transaction import TransactionManager
from ZODB.FileStorage import FileStorage as ZODBFileStorage
from ZODB.interfaces import IStorageWrapper
from ZODB.MappingStorage import MappingStorage as ZODBMappingStorage
from ZODB.tests.hexstorage import HexStorage
from ZODB.tests.MVCCMappingStorage import MVCCMappingStorage

import objdb
from objdb import PersistentMapping
from objdb.check import check
from objdb.errors import InvalidObjectReference, Unsupported, UsageError
from objdb.interfaces import IBroken
from objdb.storage.iteration import RevisionRecord
from tests.storages import STORAGES

pytestmark = pytest.mark.peer
PLAIN: dict[str, Callable[[Path], Any]] = {
    "zodb-file": lambda folder: ZODBFileStorage(str(folder / "zodb.fs")),
    "hex-zodb": lambda folder: HexStorage(ZODBFileStorage(str(folder / "zodb.fs"))),
    **{f"hex-{name}": lambda folder, make=make: HexStorage(make(folder))  # type: ignore[misc]
       for name, make in STORAGES.items() if name != "demo"},
}


@pytest.fixture(params=PLAIN)
def db(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[objdb.DB]:
    with objdb.DB(PLAIN[request.param](tmp_path)) as db:
        yield db


def fill(db: objdb.DB, *values: Any) -> None:
    for value in values:
        with db.transaction(f"value {value}") as connection:
            connection.root()["x"] = value


# -- storages and wrappers


def test_history_and_undo(db: objdb.DB) -> None:
    """Both list texts as text, and ids that undo takes, also a tid."""
    fill(db, 1, 2, 3)
    log = db.undoLog()
    assert [entry["description"] for entry in log][:3] == ["value 3", "value 2", "value 1"]
    assert all(isinstance(entry["id"], str) for entry in log)
    history = db.history(bytes(8), 3)
    assert [entry["description"] for entry in history] == ["value 3", "value 2", "value 1"]
    for transaction_id, left in ((log[0]["id"], 2), (history[0]["tid"], None)):
        if left is None:
            transaction_id = db.history(bytes(8))[0]["tid"]  # undone again
        db.undo(transaction_id)
        transaction.commit()
        with db.transaction() as connection:
            assert connection.root()["x"] == (left or 3)


def test_packing(db: objdb.DB) -> None:
    """A pack passes what the storage's knows, and refuses what would be done differently."""
    fill(db, 1, 2, 3)
    result = db.pack()
    assert result.size_after <= result.size_before and result.objects_after == 1
    assert len(db.history(bytes(8), 9)) == 1
    with db.transaction() as connection:
        assert connection.root()["x"] == 3
    if isinstance(db.storage, ZODBFileStorage) or IStorageWrapper.providedBy(db.storage):
        for option in ("dry_run", "keep_old"):
            with pytest.raises(Unsupported, match=option):
                db.pack(**{option: True})


def test_conflicts_are_merged(db: objdb.DB) -> None:
    """Also under a wrapper, which keeps other bytes than the database reads; in undo too."""
    one, two = TransactionManager(), TransactionManager()
    ours, theirs = db.open(one), db.open(two)
    ours.root()["tree"] = OOBTree({"a": 0})
    one.commit()
    two.begin()
    ours.root()["tree"]["k"] = 1
    theirs.root()["tree"]["t"] = 2
    one.commit()
    two.commit()
    one.begin()
    assert dict(ours.root()["tree"]) == {"a": 0, "k": 1, "t": 2}
    db.undo(db.undoLog()[1]["id"])  # which put "k" there, before "t"
    transaction.commit()
    one.begin()
    assert dict(ours.root()["tree"]) == {"a": 0, "t": 2}


def test_checks_and_copies(db: objdb.DB, tmp_path: Path) -> None:
    """What a wrapper iterates over are records, so it can be checked and copied."""
    fill(db, 1, 2)
    assert check(db.storage).problems == []
    with objdb.SQLiteStorage(tmp_path / "copy.sqlite") as copy:
        copy.copyTransactionsFrom(db.storage)
    with objdb.DB(f"sqlite:{tmp_path / 'copy.sqlite'}") as again, again.transaction() as connection:
        assert connection.root()["x"] == 2


def test_what_undoing_would_change(db: objdb.DB) -> None:
    """Shown as objects, also through a wrapper; told where the storage cannot say."""
    fill(db, 1, 2)
    last = db.undoLog()[0]["id"]
    if hasattr(db.storage, "preview_undo"):
        (change,) = db.undo_preview(last).changes
        assert change.attributes["data"][0] == {"x": 2}
    else:
        with pytest.raises(Unsupported, match="cannot tell"):
            db.undo_preview(last)


def test_a_wrapper_without_a_database(tmp_path: Path) -> None:
    """Nobody merges then, and it is told as a conflict."""
    from objdb.ids import NO_TID, ROOT_OID
    from objdb.testing.helpers import commit

    storage = HexStorage(objdb.MappingStorage())
    tid = commit(storage, {ROOT_OID: (NO_TID, b"one")})
    commit(storage, {ROOT_OID: (tid, b"two")})
    with pytest.raises(objdb.ConflictError):
        commit(storage, {ROOT_OID: (tid, b"three")})


def test_a_storage_with_views_of_its_own() -> None:
    """It is refused, with what to do: one instance of it never shows what others commit."""
    with pytest.raises(UsageError, match=r"IMVCCStorage.*copyTransactionsFrom"):
        objdb.DB(MVCCMappingStorage())


def test_hooks() -> None:
    """A storage is synced before a view begins, and told that a transaction has ended."""
    called: list[str] = []

    class Hooked(ZODBMappingStorage):
        def sync(self) -> None:
            called.append("sync")

        def afterCompletion(self) -> None:
            called.append("ended")

    with objdb.DB(Hooked()) as db:
        connection = db.open()
        called.clear()
        connection.sync()
        assert "sync" in called
        called.clear()
        transaction.commit()
        assert "ended" in called


def test_a_group_with_a_storage_of_zodb() -> None:
    """Its pack cannot be told what other databases refer to, and is refused where they do."""
    group: dict[str, Any] = {}
    with (
        objdb.DB(ZODBMappingStorage(), databases=group, database_name="one") as one,
        objdb.DB(databases=group, database_name="two") as two,
    ):
        connection = two.open()
        target = PersistentMapping()
        connection.get_connection("one").add(target)
        connection.root()["target"] = target
        transaction.commit()
        with pytest.raises(Unsupported, match="gc=False"):
            one.pack()


def test_records_can_be_set() -> None:
    """A revision that an iterator yields takes other data; as a tuple it stays what it was."""
    record = RevisionRecord(bytes(8), b"\1" * 8, b"data")
    record.data = b"other"  # type: ignore[misc]
    assert (record.data, record.oid, record.version) == (b"other", bytes(8), "")
    assert tuple(record)[2] == b"data" and isinstance(record, RevisionRecord)
    record.version = "v"  # type: ignore[misc]
    assert (record.data, record.version) == (b"other", "v")
    with pytest.raises(AttributeError, match="'what'"):
        record.what = 1  # type: ignore[attr-defined]
    assert RevisionRecord(bytes(8), b"\1" * 8, b"data").data == b"data"


@pytest.mark.parametrize("kind", [name for name in STORAGES if name != "demo"])
def test_listing(kind: str, tmp_path: Path) -> None:
    """`record_iternext` goes through all objects, from anywhere; `lastInvalidations` has what the
    last transactions changed."""
    with objdb.DB(STORAGES[kind](tmp_path)) as db:
        tids = []
        for number in range(4):
            with db.transaction() as connection:
                connection.root()[number] = PersistentMapping(number=number)
            tids.append(db.lastTransaction())
        storage, oids, following = db.storage, [], None
        while True:
            oid, tid, record, following = storage.record_iternext(following)
            assert (record, tid) == storage.load(oid)
            oids.append(oid)
            if following is None:
                break
        assert len(oids) == len(set(oids)) == 5
        assert storage.record_iternext(oids[2])[::3] == (oids[2], oids[3])
        with pytest.raises(objdb.POSKeyError):
            storage.record_iternext(b"\x01" * 8)
        with pytest.raises(UsageError, match="count is -1"):
            storage.lastInvalidations(-1)
        last = storage.lastInvalidations(2)
        assert [tid for tid, _ in last] == tids[-2:]
        assert all(len(changed) == 2 and bytes(8) in changed for _, changed in last)


# -- programs


def test_the_root_by_its_names() -> None:
    """What is in the root object can be reached as attributes of `connection.root`."""
    with objdb.DB() as db, db.transaction() as connection:
        connection.root.people = PersistentMapping(ann=1)
        assert connection.root()["people"] is connection.root.people
        assert "people" in connection.root and "people" in dir(connection.root)
        assert repr(connection.root) == "<root: people>"
        del connection.root.people
        with pytest.raises(AttributeError, match="'people'"):
            _ = connection.root.people
        with pytest.raises(AttributeError, match="'people'"):
            del connection.root.people
        with pytest.raises(AttributeError, match=r"connection\.root\(\)\._p_changed"):
            connection.root._p_changed = True
        assert dict(connection.root()) == {}
    assert "root of <Connection" in repr(connection.root) and "people" not in dir(connection.root)


def test_what_belongs_to_a_connection() -> None:
    """Since when it is open, what a program keeps with it, and what is called at its end."""
    called = []
    with objdb.DB() as db:
        connection = db.open()
        assert connection.opened is not None and abs(connection.opened - time.time()) < 60
        connection.setDebugInfo("request", 1)
        assert connection.getDebugInfo() == ("request", 1)
        connection.onCloseCallback(lambda: called.append("one"))
        connection.close()
        assert called == ["one"] and connection.opened is None
        connection = db.open()  # the same one, from the pool
        assert connection.getDebugInfo() == ()
        connection.close()
        assert called == ["one"]


def test_prefetch_called_plainly_and_awaited(tmp_path: Path) -> None:
    """Called plainly it loads at once; in a coroutine, when it is awaited. Oids are taken too."""
    path = tmp_path / "data.fs"
    with objdb.DB(path) as db:
        with db.transaction() as connection:
            for number in range(5):
                connection.root()[number] = PersistentMapping()
        connection = db.open()
        mappings = list(connection.root().values())
        connection.prefetch(mappings)
        assert all(each._p_changed is False for each in mappings)
        connection.cacheMinimize()
        with pytest.raises(UsageError, match="not a persistent object"):
            connection.prefetch("text")
        connection.prefetch(mappings[0]._p_oid, mappings[1])
        assert [each._p_changed for each in mappings] == [False, False, None, None, None]
        connection.close()

        async def main() -> int:
            async with db.transaction() as connection:
                count = await connection.prefetch(connection.root())
                return count + await connection.prefetch(connection.root().values())

        assert asyncio.run(main()) >= 3


def test_caches_of_a_group() -> None:
    """Calls about caches reach the connections to other databases, from both sides."""
    group: dict[str, Any] = {}
    with (
        objdb.DB(databases=group, database_name="one") as one,
        objdb.DB(databases=group, database_name="two") as two,
    ):
        ours = one.open()
        theirs = ours.get_connection("two")
        for number in range(50):
            theirs.root()[number] = PersistentMapping()
        transaction.commit()

        def loaded() -> int:
            return sum(len(each) == 0 for each in theirs.root().values()) and two.cacheSize()

        assert loaded() > 50
        ours.cacheMinimize()
        assert two.cacheSize() == 0 and loaded() > 50
        two.cacheMinimize()
        assert two.cacheSize() == 0 and loaded() > 50
        two.setCacheSize(10)
        ours.cacheGC()
        assert two.cacheSize() <= 11 and two.statistics().connections
        ours.close()


def test_a_limit_in_bytes_that_comes_later() -> None:
    """It counts what is loaded already; in versions too, whose limit in objects stays."""
    with objdb.DB() as db:
        connection = db.open()
        for number in range(100):
            connection.root()[number] = PersistentMapping(text="y" * 1000)
        transaction.commit()
        db.setCacheSizeBytes(10_000)
        connection.cacheGC()
        assert len(connection.cache.loaded()) <= 11
        in_version = db.open("draft", transaction_manager=TransactionManager())
        db.setVersionCacheSize(50)
        assert in_version._cache.cache_size_bytes == 10_000
        in_version.close()
        connection.close()


def test_an_object_that_two_databases_find() -> None:
    """A new object that both reach is nobody's, until it is added to one."""
    group: dict[str, Any] = {}
    with (
        objdb.DB(databases=group, database_name="one") as one,
        objdb.DB(databases=group, database_name="two"),
    ):
        ours = one.open()
        theirs = ours.get_connection("two")
        new = PersistentMapping()
        ours.root()["new"] = theirs.root()["new"] = new
        with pytest.raises(InvalidObjectReference, match=r"'one' and 'two'.*connection.add"):
            transaction.commit()
        transaction.abort()
        new = PersistentMapping()
        ours.root()["new"] = theirs.root()["new"] = new
        theirs.add(new)
        transaction.commit()
        assert new._p_jar is theirs and ours.root()["new"] is new
        ours.close()


def test_what_errors_are_asked() -> None:
    """ZODB's names for what an error knows, also after pickling."""
    error = objdb.ConflictError(oid=bytes(8), class_name="a.B", serials=(b"2" * 8, b"1" * 8))
    for each in (error, pickle.loads(pickle.dumps(error))):
        assert each.get_oid() == bytes(8) and each.get_class_name() == "a.B"
        assert each.get_serials() == (b"2" * 8, b"1" * 8)
        assert (each.get_old_serial(), each.get_new_serial()) == (b"1" * 8, b"2" * 8)
        assert each.message == str(each)
    missing = objdb.POSKeyError(bytes(8))
    assert missing.args == (bytes(8),) == pickle.loads(pickle.dumps(missing)).args
    assert str(missing) == str(pickle.loads(pickle.dumps(missing)))


def test_broken_objects_by_zodb_names(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Objects whose class is missing say so, and give what they were made from."""
    module = types.ModuleType("module_that_goes")
    module.Gone = type(  # type: ignore[attr-defined]
        "Gone", (objdb.Persistent,), {"__module__": module.__name__}
    )
    monkeypatch.setitem(sys.modules, module.__name__, module)
    with objdb.DB(tmp_path / "data.fs") as db, db.transaction() as connection:
        connection.root()["gone"] = gone = module.Gone()
        gone.x = 1
    monkeypatch.delitem(sys.modules, module.__name__)
    with objdb.DB(tmp_path / "data.fs") as db, db.transaction() as connection:
        broken = connection.root()["gone"]
        assert IBroken.providedBy(broken)
        broken._p_activate()
        assert broken.__Broken_state__ == {"x": 1} and broken.__Broken_newargs__ == ()
