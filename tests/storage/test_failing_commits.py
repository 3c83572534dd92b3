"""Commits that fail at the moment that decides: nobody knows, and nobody goes on."""

from __future__ import annotations

import sqlite3
from pathlib import Path
from typing import Any

import pytest

import objdb
from objdb.errors import StorageFailedError
from objdb.ids import NO_TID, ROOT_OID
from objdb.storage.commit import TransactionMetaData
from objdb.testing.helpers import commit
from tests.storages import STORAGES

PLAIN = [kind for kind in STORAGES if kind not in ("compressed", "encrypted")]


class _Writer:
    """Stands for a link of SQLite, whose COMMIT fails; like the engine it then rolls back."""

    def __init__(self, link: Any) -> None:
        self._link = link

    def __getattr__(self, name: str) -> Any:
        return getattr(self._link, name)

    def execute(self, statement: str, *parameters: Any) -> Any:
        if statement == "COMMIT":
            self._link.execute("ROLLBACK")
            raise sqlite3.OperationalError("disk I/O error")
        return self._link.execute(statement, *parameters)


@pytest.mark.parametrize("kind", PLAIN)
def test_an_error_of_the_engine(
    tmp_path: Path, kind: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What an engine raises when it commits makes the outcome unknown: the storage says so, shows
    what was there before, and refuses to commit."""
    storage = STORAGES[kind](tmp_path)
    tid = commit(storage, {ROOT_OID: (NO_TID, b"one")})

    def fail(token: Any) -> None:
        raise OSError("the medium said no")

    monkeypatch.setattr(storage.engine, "commit", fail)
    with pytest.raises(StorageFailedError, match=r"refuses to commit, since .*said no"):
        commit(storage, {ROOT_OID: (tid, b"two")})
    monkeypatch.undo()
    assert storage.load(ROOT_OID) == (b"one", tid)
    with pytest.raises(StorageFailedError, match="refuses to commit"):
        commit(storage, {ROOT_OID: (tid, b"three")})
    storage.close()


@pytest.mark.parametrize("kind", PLAIN)
def test_an_interrupt_while_publishing(
    tmp_path: Path, kind: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """An interrupt that comes when a transaction is committed, and not shown yet, comes out; and
    the transaction is shown all the same."""
    storage = STORAGES[kind](tmp_path)
    tid = commit(storage, {ROOT_OID: (NO_TID, b"one")})
    publish, calls = storage.engine.publish, list[Any]()

    def interrupted(token: Any) -> None:
        calls.append(token)
        if len(calls) == 1:
            raise KeyboardInterrupt
        publish(token)

    with monkeypatch.context() as patch:
        patch.setattr(storage.engine, "publish", interrupted)
        with pytest.raises(KeyboardInterrupt):
            commit(storage, {ROOT_OID: (tid, b"two")})
    record, tid = storage.load(ROOT_OID)
    assert record == b"two"
    commit(storage, {ROOT_OID: (tid, b"three")})
    storage.close()


@pytest.mark.parametrize("kind", ["file", "berkeley"])
def test_a_sync_that_fails_once(
    tmp_path: Path, kind: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """After a sync that failed, nobody commits any more, even if the medium has recovered."""
    storage = STORAGES[kind](tmp_path)
    tid = commit(storage, {ROOT_OID: (NO_TID, b"one")})

    def fail() -> None:
        raise OSError("the medium said no")

    with monkeypatch.context() as patch:
        patch.setattr(storage.engine, "sync", fail)
        with pytest.raises(StorageFailedError, match="said no"):
            commit(storage, {ROOT_OID: (tid, b"two")})
    with pytest.raises(StorageFailedError, match=r"refuses to commit, since a sync .*said no"):
        commit(storage, {ROOT_OID: (tid, b"three")})
    assert storage.load(ROOT_OID) == (b"one", tid)
    storage.close()


def test_a_commit_of_sqlite(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A COMMIT that SQLite refuses, and rolls back, is not taken for one that went through."""
    storage = objdb.SQLiteStorage(tmp_path / "data.sqlite")
    tid = commit(storage, {ROOT_OID: (NO_TID, b"one")})
    engine: Any = storage.engine
    with monkeypatch.context() as patch:
        patch.setattr(engine, "_writer", _Writer(engine._writer))
        with pytest.raises(StorageFailedError, match=r"a commit failed \(.*disk I/O error"):
            commit(storage, {ROOT_OID: (tid, b"two")})
    assert storage.lastTransaction() == tid and storage.load(ROOT_OID) == (b"one", tid)
    with pytest.raises(StorageFailedError, match="refuses to commit, since a commit failed"):
        storage.tpc_begin(TransactionMetaData())
    storage.close()
    with objdb.SQLiteStorage(tmp_path / "data.sqlite") as storage:
        assert storage.load(ROOT_OID) == (b"one", tid)


def test_what_was_taken_back_is_not_erased_again(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """After an abort behind the vote, conflicts write nothing, and wait for no sync."""
    with objdb.FileStorage(tmp_path / "data.fs") as storage:
        tid = commit(storage, {ROOT_OID: (NO_TID, b"one")})
        metadata = TransactionMetaData()
        storage.tpc_begin(metadata)
        storage.store(ROOT_OID, tid, b"two", "", metadata)
        storage.tpc_vote(metadata)
        storage.tpc_abort(metadata)
        erased: list[Any] = []
        with monkeypatch.context() as patch:
            patch.setattr(storage.engine, "erase", erased.append)
            with pytest.raises(objdb.ConflictError):
                commit(storage, {ROOT_OID: (NO_TID, b"three")})
        assert erased == []
