"""Packing a database: moments, links of every kind, views of the past, packing by itself."""

from __future__ import annotations

import threading
import time
from datetime import datetime, timezone
from pathlib import Path
from typing import Any

import pytest
import transaction
from BTrees.OOBTree import OOBTree
from persistent import Persistent
from persistent.wref import WeakRef

import objdb
from objdb import AutoPack, PackError
from objdb.check import check
from objdb.errors import (
    POSKeyError,
    ReadConflictError,
    ReadOnlyError,
    StorageClosedError,
    Unsupported,
    UsageError,
)
from objdb.ids import NO_TID, ROOT_OID, next_tid
from objdb.interfaces import IStoragePackable
from objdb.storage.file.storage import FileStorage
from objdb.storage.layers.before import BeforeStorage
from objdb.storage.layers.compressed import CompressedStorage
from objdb.storage.layers.demo import DemoStorage
from objdb.storage.layers.logged import LoggedStorage
from objdb.storage.layers.readonly import ReadOnlyStorage
from tests.models import Person
from tests.storages import FORGETFUL, STORAGES


def change(db: objdb.DB, **values: Any) -> bytes:
    """Set, or with None delete, keys of the root; return the tid."""
    with db.transaction() as connection:
        for name, value in values.items():
            if value is None:
                del connection.root()[name]
            else:
                connection.root()[name] = value
    return db.storage.lastTransaction()


def names(db: objdb.DB) -> set[str]:
    with db.transaction() as connection:
        return {p.name for p in connection.root().values() if isinstance(p, Person)}


# -- what stays


def test_garbage_goes(db: objdb.DB) -> None:
    """What nothing leads to any more is gone, with what only it leads to."""
    change(db, a=Person("a", other=Person("b")), c=Person("c"))
    change(db, a=None)
    assert len(db.storage) == 4
    result = db.pack()
    assert len(db.storage) == 2 == result.objects_after and names(db) == {"c"}


@pytest.mark.parametrize("kind", ["seconds", "tid", "datetime", "text", "days"])
def test_moments(db: objdb.DB, kind: str) -> None:
    """A moment can be told in every way that a view of the past can."""
    change(db, a=1)
    tid = change(db, a=2)
    change(db, a=3)
    now = time.time()
    before = len(list(db.storage.iterator()))
    if kind == "days":
        db.pack(days=1)
        db.pack(now, days=2)
        db.pack(datetime.now(timezone.utc), days=1)
        assert len(list(db.storage.iterator())) == before
        return
    moment: Any = {
        "seconds": now, "tid": tid, "datetime": datetime.now(timezone.utc),
        "text": datetime.now(timezone.utc).isoformat(),
    }[kind]
    db.pack(moment)
    assert len(list(db.storage.iterator())) == (2 if kind == "tid" else 1)
    with db.transaction() as connection:
        assert connection.root()["a"] == 3


@pytest.mark.parametrize(
    "arguments", [
        {"t": "soon"}, {"t": datetime(2026, 1, 1)}, {"t": 4e9}, {"days": -1},
        {"t": b"12345678", "days": 1}, {"days": "x"}, {"days": float("nan")}, {"t": [], "days": 1},
        {"t": []}, {"t": datetime(2090, 1, 1, tzinfo=timezone.utc)}, {"t": "2026-01-01", "days": 1},
    ], ids=repr,
)
def test_no_moment(db: objdb.DB, arguments: dict[str, Any]) -> None:
    """What is no moment of the past is refused, and nothing is packed."""
    change(db, a=1)
    count = len(list(db.storage.iterator()))
    with pytest.raises(UsageError):
        db.pack(**arguments)
    assert len(list(db.storage.iterator())) == count


def test_linked_again(db: objdb.DB) -> None:
    """An object that was unlinked before the moment, and linked again after it, stays. ZODB
    loses it."""
    manager = transaction.TransactionManager()
    connection = db.open(manager)
    root = connection.root()
    root["a"] = person = Person("a", other=Person("b"))
    manager.commit()
    del root["a"]
    manager.commit()
    unlinked = db.storage.lastTransaction()
    root["again"] = person
    manager.commit()
    connection.close()
    db.pack(unlinked)
    db.cacheMinimize()
    with db.transaction() as other:
        assert other.root()["again"].other.name == "b"


def test_weak_references(db: objdb.DB) -> None:
    """A weak reference keeps nothing: it leads to nothing after the pack."""
    change(db, a=Person("a"))
    with db.transaction() as connection:
        root = connection.root()
        root["holder"] = Person("holder", weak=WeakRef(root["a"]), strong=WeakRef(root["a"]))
        root["kept"] = Person("kept")
        root["weak"] = WeakRef(root["kept"])
    change(db, a=None)
    db.pack()
    db.cacheMinimize()
    with db.transaction() as connection:
        assert connection.root()["holder"].weak() is None
        assert connection.root()["weak"]().name == "kept"


def test_large_trees(db: objdb.DB) -> None:
    """Objects in trees stay; those that were removed from them go."""
    with db.transaction() as connection:
        connection.root()["tree"] = tree = OOBTree()
        for number in range(1000):
            tree[number] = Person(f"p{number}")
    with db.transaction() as connection:
        for number in range(0, 1000, 2):
            del connection.root()["tree"][number]
    db.pack()
    check(db.storage).raise_if_damaged()
    db.cacheMinimize()
    with db.transaction() as connection:
        tree = connection.root()["tree"]
        assert [p.name for p in tree.values()] == [f"p{n}" for n in range(1, 1000, 2)]


def test_other_databases(tmp_path: Path) -> None:
    """What another database of the group refers to stays, also what it refers to since the pack
    began."""
    group: dict[str, Any] = {}
    with (
        objdb.DB(tmp_path / "one.fs", databases=group, database_name="one") as one,
        objdb.DB(None, databases=group, database_name="two") as two,
    ):
        change(one, a=Person("a"), b=Person("b"), c=Person("c"))
        with two.transaction() as connection:
            elsewhere = connection.get_connection("one").root()
            connection.root()["a"] = elsewhere["a"]
            connection.root()["weak"] = WeakRef(elsewhere["c"])
        late = one.open()
        b = late.root()["b"]
        change(one, a=None, b=None, c=None)

        def link(phase: str, done: int, total: int) -> None:
            nonlocal b
            if phase == "copy" and b is not None:
                with two.transaction() as connection:
                    oid, b = b._p_oid, None
                    connection.root()["b"] = connection.get_connection("one").get(oid)

        one.pack(progress=link)
        transaction.abort()
        late.close()
        one.cacheMinimize()
        assert len(one.storage) == 3
        with two.transaction() as connection:
            assert [connection.root()[name].name for name in "ab"] == ["a", "b"]


def test_unpackable() -> None:
    """A storage that cannot be packed says so."""
    class Plain(objdb.MappingStorage):
        """Declares nothing."""

    from zope.interface import classImplementsOnly

    from objdb.interfaces import IStorage

    classImplementsOnly(Plain, IStorage)
    with objdb.DB(Plain()) as db:
        assert not IStoragePackable.providedBy(db.storage)
        with pytest.raises(Unsupported):
            db.pack()
        db.storage.close()
    with pytest.raises(StorageClosedError):
        db.pack()


def test_read_only(tmp_path: Path) -> None:
    """A database that is open for reading only is not packed."""
    objdb.DB(tmp_path / "data.fs").close()
    with objdb.DB(f"file:{tmp_path}/data.fs?read_only=true") as db, pytest.raises(ReadOnlyError):
        db.pack()


# -- views


def test_an_open_view(db: objdb.DB) -> None:
    """A view from before the pack sees what stays; where it needs what went, that is a read
    conflict, and the next view is right."""
    change(db, a=Person("a"), b=Person("b"), c=Person("c"))
    manager = transaction.TransactionManager()
    connection = db.open(manager)
    root = connection.root()
    a, b, c = root["a"], root["b"], root["c"]
    connection.cacheMinimize()
    with db.transaction() as other:
        other.root()["b"].name = "b2"
    change(db, c=None)
    db.pack()
    assert a.name == "a"
    for gone in (b, c):
        with pytest.raises(ReadConflictError):
            _ = gone.name
    manager.abort()
    assert root["b"].name == "b2" and "c" not in root
    with pytest.raises(POSKeyError):
        _ = c.name
    connection.close()


def test_a_view_in_the_middle_of_a_pack() -> None:
    """What went is a read conflict as soon as it is gone, before the pack has ended."""
    met: list[type] = []

    class Watched(objdb.MappingStorage):
        """Lets the view below load when some rows are gone."""

        def _amend(self, rows: Any, transactions: Any) -> None:
            super()._amend(rows, transactions)
            if None in rows.values():
                for look in (lambda: gone.name, lambda: connection.get(gone._p_oid).name):
                    with pytest.raises(objdb.ObjdbError) as raised:
                        look()
                    met.append(raised.type)

    with objdb.DB(Watched()) as db:
        change(db, a=Person("a"))
        connection = db.open(transaction.TransactionManager())
        gone = connection.root()["a"]
        connection.cacheMinimize()
        change(db, a=None)
        db.pack()
        connection.close()
    assert met == [ReadConflictError] * 2


def test_a_pack_to_an_earlier_moment(db: objdb.DB) -> None:
    """A pack to an earlier moment than the last one forgets nothing of what that took away."""
    first = change(db, a=Person("a"))
    connection = db.open(transaction.TransactionManager())
    gone = connection.root()["a"]
    connection.cacheMinimize()
    second = change(db, a=None)
    db.pack()
    db.pack(first)
    assert db.storage.packed_tid == second
    with pytest.raises(ReadConflictError):
        gone.name  # noqa: B018
    connection.close()


def test_the_past(db: objdb.DB) -> None:
    """A connection to a moment before the pack sees what stays, and raises ReadConflictError for
    what went; one to a later moment sees all."""
    first = change(db, a=Person("a"), b=Person("b"))
    with db.transaction() as connection:
        connection.root()["a"].name = "a2"
    second = db.storage.lastTransaction()
    with db.transaction() as connection:
        connection.root()["a"].name = "a3"
    db.pack(second)
    with db.open(at=first) as past, pytest.raises(ReadConflictError):
        _ = past.root()["a"].name
    with db.open(at=second) as past:
        assert past.root()["a"].name == "a2" and past.root()["b"].name == "b"


@pytest.mark.parametrize("kind", [name for name in STORAGES if name not in FORGETFUL])
def test_the_past_of_what_was_packed_earlier(tmp_path: Path, kind: str) -> None:
    """The same when the pack was before the database was opened."""
    with objdb.DB(STORAGES[kind](tmp_path)) as db:
        first = change(db, a=Person("a"), b=Person("b"))
        with db.transaction() as connection:
            a, b = (connection.root()[name]._p_oid for name in "ab")
        second = change(db, a=None)
        third = change(db, b=None)
        assert db.storage.packed_tid == NO_TID
        db.pack(second)
    with objdb.DB(STORAGES[kind](tmp_path)) as db:
        assert db.storage.packed_tid == second
        for gone in (ROOT_OID, a):
            with db.open(at=first) as past, pytest.raises(ReadConflictError):
                past.get(gone)
        with db.open(at=second) as past:
            assert past.root()["b"].name == "b"
        with db.open(at=third) as past:
            assert past.get(b).name == "b"
            with pytest.raises(POSKeyError):
                past.get(a)


def test_the_past_of_a_long_log(tmp_path: Path) -> None:
    """Among many transactions the last one that is packed is found."""
    tids = []
    with objdb.DB(tmp_path / "data.fs") as db:
        for number in range(300):
            tids.append(change(db, **{f"n{number}": Person("x" * 100)}))
    for last in (0, 1, 150, 298, 299):
        with objdb.DB(tmp_path / "data.fs") as db:
            db.pack(tids[last])
        with FileStorage(tmp_path / "data.fs", read_only=True) as storage:
            assert storage.packed_tid == tids[last]


def test_a_reader_in_the_middle_of_following(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A reader that goes on in the file that another process has packed knows that before the
    first object is looked for there."""
    uri = f"file:{tmp_path}/data.fs?read_only=true"
    with objdb.DB(tmp_path / "data.fs") as writer, objdb.DB(uri) as reader:
        change(writer, a=Person("a"))
        connection = reader.open(transaction.TransactionManager())
        gone = connection.root()["a"]
        connection.cacheMinimize()
        change(writer, a=None)
        writer.pack()
        use = FileStorage._use

        def use_and_look(storage: FileStorage, medium: Any) -> None:
            use(storage, medium)
            with pytest.raises(ReadConflictError):
                gone.name  # noqa: B018

        monkeypatch.setattr(FileStorage, "_use", use_and_look)
        reader.storage.poll()
        connection.close()


@pytest.mark.parametrize("layer", [
    DemoStorage, ReadOnlyStorage, CompressedStorage, LoggedStorage,
    lambda base: BeforeStorage(base, next_tid(base.lastTransaction())),
    lambda base: DemoStorage(ReadOnlyStorage(base)),
], ids=["demo", "readonly", "compressed", "logged", "before", "demo+readonly"])
def test_layers_over_what_was_packed(layer: Any) -> None:
    """What a pack took away from under a layer is a read conflict through it, for a view of before
    the pack."""
    base = objdb.MappingStorage()
    with objdb.DB(base) as writer:
        change(writer, a=Person("a"))
        with objdb.DB(layer(base)) as db:
            connection = db.open(transaction.TransactionManager())
            gone = connection.root()["a"]
            connection.cacheMinimize()
            change(writer, a=None)
            writer.pack()
            with pytest.raises(ReadConflictError):
                gone.name  # noqa: B018
            connection.close()


def test_changes_of_what_went(db: objdb.DB) -> None:
    """Changing an object that went is a conflict."""
    change(db, a=Person("a"))
    manager = transaction.TransactionManager()
    connection = db.open(manager)
    a = connection.root()["a"]
    a.name  # noqa: B018
    change(db, a=None)
    manager.begin()
    a.name = "changed"
    db.pack()
    with pytest.raises(objdb.ConflictError):
        manager.commit()
    manager.abort()
    connection.close()


def test_a_reader_beside(tmp_path: Path) -> None:
    """A database that follows another process's file sees, after a pack, what is there."""
    with objdb.DB(tmp_path / "data.fs") as writer:
        change(writer, a=Person("a"), b=Person("b"))
        with objdb.DB(f"file:{tmp_path}/data.fs?read_only=true") as reader:
            manager = transaction.TransactionManager()
            connection = reader.open(manager)
            root = connection.root()
            b = root["b"]
            assert root["a"].name == "a"
            with writer.transaction() as other:
                other.root()["a"].name = "a2"
            change(writer, b=None)
            writer.pack()
            assert b.name == "b"  # the old file is still there
            manager.begin()
            assert root["a"].name == "a2" and "b" not in root
            connection.close()


def test_an_object_not_committed_yet(db: objdb.DB) -> None:
    """An object that a transaction has added, and not committed, is none of the pack's
    business."""
    manager = transaction.TransactionManager()
    connection = db.open(manager)
    person = Person("new")
    connection.add(person)
    connection.root()["new"] = person
    manager.savepoint()
    db.pack()
    manager.commit()
    connection.close()
    assert names(db) == {"new"}


def test_commits_in_threads(databases: Any) -> None:
    """Threads that commit, link and unlink while packs are under way lose nothing."""
    db = databases.open("data.fs")
    with db.transaction() as connection:
        for name in "abc":
            connection.root()[name] = objdb.PersistentMapping()
    errors: list[BaseException] = []

    def work(name: str) -> None:
        try:
            for number in range(60):
                with db.transaction() as connection:
                    own = connection.root()[name]
                    own[number] = Person(f"{name}{number}", before=own.get(number - 1))
                    own.pop(number - 3, None)
        except BaseException as error:
            errors.append(error)

    threads = [threading.Thread(target=work, args=(name,)) for name in "abc"]
    for thread in threads:
        thread.start()
    packs = 0
    while any(thread.is_alive() for thread in threads) or packs < 3:
        db.pack()
        packs += 1
    for thread in threads:
        thread.join()
    assert not errors
    db.cacheMinimize()
    with db.transaction() as connection:
        for name in "abc":
            own = connection.root()[name]
            assert sorted(own) == [57, 58, 59]
            person, number = own[59], 59
            while person is not None:
                assert person.name == f"{name}{number}"
                person, number = person.before, number - 1
            assert number == -1


# -- by itself


class Node(Persistent):
    """Something large."""

    def __init__(self) -> None:
        self.data = b"x" * 10_000


def test_autopack(tmp_path: Path) -> None:
    """A database packs itself when it has grown, in a thread that ends with it."""
    with objdb.DB(tmp_path / "data.fs", autopack={"days": 0, "growth_bytes": 30_000}) as db:
        thread = db._pack_thread
        assert thread is not None and not thread.look()
        for _ in range(5):
            change(db, a=Node())
        assert thread.is_due() and thread.look() and not thread.is_due()
        assert len(db.storage) == 2 and db.storage.getSize() < 20_000
        for _ in range(5):
            change(db, a=Node())
        db.storage.pack = lambda *args, **options: (_ for _ in ()).throw(PackError("busy"))
        assert thread.look()  # somebody else does it
    assert not thread.look() and not thread._thread.is_alive()


def test_autopack_now_and_then(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Or when some days have passed; its thread looks by itself."""
    monkeypatch.setattr("objdb.database.packing._LOOK_SECONDS", 0.001)
    with objdb.DB(tmp_path / "data.fs", autopack=AutoPack(days=0, every_days=1e-9)) as db:
        change(db, a=Node())
        change(db, a=Node())
        deadline = time.monotonic() + 30
        while len(db.storage) > 2 and time.monotonic() < deadline:
            db._pack_thread._thread.join(0.01)
        assert len(db.storage) == 2 and db.storage.packed_tid > NO_TID


@pytest.mark.parametrize(
    "setting", [
        {}, {"days": 1}, "weekly", {"weeks": 1}, {"growth_bytes": 0}, {"growth_bytes": "1"},
        {"days": -1, "every_days": 1}, {"days": None, "every_days": 1}, {"every_days": True},
    ], ids=repr,
)
def test_no_setting(setting: Any) -> None:
    """A setting that makes no sense is refused, and the database is not open."""
    with pytest.raises(UsageError, match="autopack"):
        objdb.DB(None, autopack=setting)


def test_the_tid_of_a_pack(db: objdb.DB) -> None:
    """The storage says up to where it was packed."""
    assert db.storage.packed_tid == NO_TID
    first = change(db, a=1)
    change(db, a=2)
    db.pack(first)
    assert db.storage.packed_tid == first < next_tid(first)


def test_days_before_a_time_without_zone(db: objdb.DB) -> None:
    """Days are not counted back from a time of which it is not known when it is."""
    with pytest.raises(UsageError, match="zone"):
        db.pack(datetime(2026, 1, 1), days=1)
