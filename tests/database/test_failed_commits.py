"""Every storage is told the end of every transaction that began, however its commit failed."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator
from contextlib import closing
from pathlib import Path
from typing import Any

import pytest
import transaction
import ZODB.DemoStorage
import ZODB.FileStorage
import ZODB.MappingStorage
from transaction.interfaces import TransientError

import objdb
from tests.campaign.leaks import Refusing
from tests.storages import STORAGES

# Those of ZODB take their lock in tpc_begin.
FOREIGN: dict[str, Callable[[Path], Any]] = {
    "ZODB file": lambda folder: ZODB.FileStorage.FileStorage(str(folder / "z.fs")),
    "ZODB memory": lambda folder: ZODB.MappingStorage.MappingStorage(),
    "ZODB demo": lambda folder: ZODB.DemoStorage.DemoStorage(),
}
KINDS = STORAGES | FOREIGN
PATIENCE_SECONDS = 20.0


class Interrupted(dict[Any, Any]):
    """A transaction's notes of who has voted, which an interrupt prevents."""

    def __setitem__(self, key: Any, value: Any) -> None:
        raise KeyboardInterrupt


class Told:
    """Counts, in a storage's place, the transactions that began and ended."""

    def __init__(self, storage: Any) -> None:
        self.begun: list[Any] = []
        for name in ("tpc_begin", "tpc_abort", "tpc_finish"):
            setattr(storage, name, self._noting(name, getattr(storage, name)))

    def _noting(self, name: str, call: Callable[..., Any]) -> Callable[..., Any]:
        def noting(txn: Any, *arguments: Any, **options: Any) -> Any:
            result = call(txn, *arguments, **options)
            if name == "tpc_begin":
                self.begun.append(txn)
            elif txn in self.begun:
                self.begun.remove(txn)
            return result

        return noting


@pytest.fixture(params=KINDS)
def storage(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[Any]:
    """A storage of each kind."""
    with closing(KINDS[request.param](tmp_path)) as opened:
        yield opened


@pytest.fixture
def db(storage: Any) -> Iterator[objdb.DB]:
    """A database with an object to conflict about; commits go on at the end, in any thread."""
    with objdb.DB(storage) as opened:
        with opened.transaction() as connection:
            connection.root()["x"] = objdb.PersistentMapping(n=0)
        told = Told(storage)
        yield opened
        assert told.begun == []
        thread = threading.Thread(target=commit_one, args=(opened,), daemon=True)
        thread.start()
        thread.join(PATIENCE_SECONDS)
        assert not thread.is_alive(), "the storage is locked"


def commit_one(db: objdb.DB) -> None:
    """Commit a change."""
    with db.transaction() as connection:
        connection.root()["next"] = 1


@pytest.fixture
def joined(db: objdb.DB) -> Iterator[tuple[Any, Any]]:
    """(A transaction manager, a connection in its transaction, with changes)."""
    manager = transaction.TransactionManager()
    connection = db.open(transaction_manager=manager, temporary=True)
    connection.root()["x"]["n"] = 1
    yield manager, connection
    manager.abort()
    connection.close()


def test_conflict(db: objdb.DB, joined: tuple[Any, Any]) -> None:
    """A conflict at the vote."""
    with db.transaction() as other:
        other.root()["x"]["n"] = 2
    with pytest.raises(TransientError):
        joined[0].commit()


def test_unpicklable(joined: tuple[Any, Any]) -> None:
    """An object that cannot be stored, behind one that was."""
    manager, connection = joined
    connection.root()["y"] = objdb.PersistentMapping(bad=lambda: 0)
    with pytest.raises(objdb.UnpicklableError):
        manager.commit()


def test_another_participant(joined: tuple[Any, Any]) -> None:
    """Somebody else's vote, after this one's."""
    joined[0].get().join(Refusing())
    with pytest.raises(ValueError, match="no"):
        joined[0].commit()


def test_an_interrupt_behind_the_vote(joined: tuple[Any, Any]) -> None:
    """An exception between the vote and the note of it."""
    manager = joined[0]
    manager.get()._voted = Interrupted()
    with pytest.raises(KeyboardInterrupt):
        manager.commit()


def test_retries(db: objdb.DB) -> None:
    """Every try of a function."""

    def change(connection: Any) -> None:
        connection.root()["x"]["n"] += 1
        commit_one(db)
        connection.root()["next"] = 2

    with pytest.raises(TransientError):
        db.run(change, tries=3)


def test_an_object_that_cannot_be_taken_back(joined: tuple[Any, Any]) -> None:
    """An abort during which an object raises."""
    manager, connection = joined
    connection.root()["y"] = Stubborn()
    connection._cache = FailingCache(connection._cache)
    with pytest.raises(KeyboardInterrupt):
        manager.commit()
    connection._cache = connection._cache.cache


class Stubborn(objdb.PersistentMapping):
    """An object whose pickling is interrupted."""

    def __getstate__(self) -> Any:
        raise KeyboardInterrupt


class FailingCache:
    """A cache that cannot be told what is invalid."""

    def __init__(self, cache: Any) -> None:
        self.cache = cache

    def __getattr__(self, name: str) -> Any:
        return getattr(self.cache, name)

    def invalidate(self, oids: Any) -> None:
        raise MemoryError
