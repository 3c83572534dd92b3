"""Packing a database: moments, links of every kind, others meanwhile, packing by itself."""

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
    ReadOnlyError,
    StorageClosedError,
    Unsupported,
    UsageError,
)
from objdb.ids import NO_TID, next_tid
from objdb.interfaces import IStoragePackable
from tests.models import Person


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
    "moment",
    [4e9, datetime(2090, 1, 1, tzinfo=timezone.utc), "2090-01-01T00:00+00:00"],
    ids=repr,
)
def test_the_future_is_now(db: objdb.DB, moment: Any) -> None:
    """A moment in the future, as cron jobs give for a clock that is not quite right, is now."""
    for number in range(3):
        change(db, a=number)
    db.pack(moment)
    assert len(list(db.storage.iterator())) == 1
    with db.transaction() as connection:
        assert connection.root()["a"] == 2


@pytest.mark.parametrize(
    "arguments", [
        {"t": "soon"}, {"t": datetime(2026, 1, 1)}, {"days": -1},
        {"t": b"12345678", "days": 1}, {"days": "x"}, {"days": float("nan")}, {"t": [], "days": 1},
        {"t": []}, {"t": "2026-01-01", "days": 1},
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


# -- while others work


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
