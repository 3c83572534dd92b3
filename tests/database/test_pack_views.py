"""Views of a database that is packed: open ones, of the past, through layers."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import transaction

import objdb
from objdb.errors import (
    POSKeyError,
    ReadConflictError,
)
from objdb.ids import NO_TID, ROOT_OID, next_tid
from objdb.storage.file.engine import FileEngine
from objdb.storage.file.storage import FileStorage
from objdb.storage.layers.before import BeforeStorage
from objdb.storage.layers.compressed import CompressedStorage
from objdb.storage.layers.demo import DemoStorage
from objdb.storage.layers.logged import LoggedStorage
from objdb.storage.layers.readonly import ReadOnlyStorage
from objdb.storage.memory import MemoryEngine
from objdb.storage.storage import Storage
from tests.database.test_pack import change
from tests.models import Person
from tests.storages import FORGETFUL, STORAGES


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

    class Watched(MemoryEngine):
        """Lets the view below load when some rows are gone."""

        def amend(self, rows: Any, transactions: Any) -> None:
            super().amend(rows, transactions)
            if None in rows.values():
                for look in (lambda: gone.name, lambda: connection.get(gone._p_oid).name):
                    with pytest.raises(objdb.ObjdbError) as raised:
                        look()
                    met.append(raised.type)

    with objdb.DB(Storage(Watched("watched"))) as db:
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
        use = FileEngine.use

        def use_and_look(engine: FileEngine, generation: Any) -> None:
            use(engine, generation)
            with pytest.raises(ReadConflictError):
                gone.name  # noqa: B018

        monkeypatch.setattr(FileEngine, "use", use_and_look)
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


@pytest.mark.parametrize("kind", [name for name in STORAGES if name not in FORGETFUL])
def test_the_past_of_a_copy(tmp_path: Path, kind: str) -> None:
    """A copy of what was packed knows that too."""
    with objdb.DB(objdb.MappingStorage()) as db, STORAGES[kind](tmp_path) as copy:
        first = change(db, a=Person("a"))
        second = change(db, a=None)
        db.pack()
        copy.copyTransactionsFrom(db.storage)
        with objdb.DB(copy) as copied:
            assert copy.packed_tid == second
            with copied.open(at=first) as past, pytest.raises(ReadConflictError):
                past.root()
