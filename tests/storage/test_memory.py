"""MappingStorage, looked at in the middle of a commit."""

from __future__ import annotations

from contextlib import suppress
from typing import Any

import pytest

import objdb
from objdb.errors import CorruptedDataError, StorageFailedError
from objdb.ids import NO_TID, ROOT_OID, next_tid, oid_from_int
from objdb.storage.commit import TransactionMetaData
from objdb.storage.memory import MappingStorage
from objdb.testing.helpers import commit, contents


def test_in_the_middle_of_a_commit(monkeypatch: pytest.MonkeyPatch) -> None:
    """What another thread sees of a commit that is under way is the state before it: in the
    history of an object, and in the size."""
    db = objdb.DB()
    storage: Any = db.storage
    seen: list[Any] = []

    publish = storage.engine.publish

    def look(token: Any) -> None:
        seen.append([entry["description"] for entry in storage.history(ROOT_OID, 9)])
        with pytest.raises(objdb.POSKeyError):
            storage.history(oid_from_int(1))
        assert storage.getSize() > 0
        publish(token)

    with monkeypatch.context() as patch:
        patch.setattr(storage.engine, "publish", look)
        with db.transaction(note="the second") as connection:
            connection.root()["new"] = objdb.PersistentMapping()
    assert seen == [["initial database creation"]]
    assert storage.history(ROOT_OID)[0]["description"] == "the second"
    assert len(storage.history(oid_from_int(1))) == 1
    db.close()


@pytest.mark.parametrize("data", [5, [], "text"])
def test_data_that_are_no_mapping(data: Any) -> None:
    """They are refused by what they are."""
    with pytest.raises(objdb.UsageError, match="a mapping of bytes to bytes"):
        objdb.MappingStorage(data=data)


class Full(dict[bytes, bytes]):
    """A mapping that takes so many items more."""

    room = 10**9

    def __setitem__(self, key: bytes, value: bytes) -> None:
        if not self.room:
            raise OSError("no room")
        self.room -= 1
        super().__setitem__(key, value)


def test_a_mapping_that_takes_no_more() -> None:
    """What a mapping does not take is told at the vote, and taken back. Where it does not take the
    transaction itself, nobody knows, and the storage commits no more."""
    data = Full()
    storage = MappingStorage(data=data)
    tid = commit(storage, {ROOT_OID: (NO_TID, b"root")})
    before = dict(data)
    for room in (0, 1):
        data.room = room
        with pytest.raises(OSError, match="no room"):
            commit(storage, {ROOT_OID: (tid, b"x"), oid_from_int(1): (NO_TID, b"y")})
        assert data == before and storage.load(ROOT_OID) == (b"root", tid)
    data.room = 10
    tid = commit(storage, {ROOT_OID: (tid, b"x")})
    data.room = 1
    with pytest.raises(StorageFailedError, match="no room"):
        commit(storage, {ROOT_OID: (tid, b"y")})
    data.room = 10
    with pytest.raises(StorageFailedError, match="refuses to commit"):
        commit(storage, {ROOT_OID: (tid, b"y")})
    assert storage.load(ROOT_OID) == (b"x", tid)
    again = MappingStorage(data=data)
    assert again.load(ROOT_OID) == (b"x", tid)
    commit(again, {ROOT_OID: (tid, b"z")})


def test_a_commit_that_was_not_decided() -> None:
    """What a transaction had put into a mapping when its process ended, without being committed, is
    not there when the mapping is used again, and removed from it."""
    data: dict[bytes, bytes] = {}
    storage = MappingStorage(data=data)
    tid = commit(storage, {ROOT_OID: (NO_TID, b"root")})
    before = dict(data)
    metadata = TransactionMetaData()
    storage.tpc_begin(metadata)
    for oid, base in (ROOT_OID, tid), (oid_from_int(1), NO_TID):
        storage.store(oid, base, b"never", "", metadata)
    storage.tpc_vote(metadata)
    left = dict(data)
    assert left != before
    again = MappingStorage(data=left)
    assert again.load(ROOT_OID) == (b"root", tid) and len(again) == 1
    assert left == before
    storage.tpc_abort(metadata)


@pytest.mark.parametrize("steps", range(12))
def test_a_pack_that_was_stopped(monkeypatch: pytest.MonkeyPatch, steps: int) -> None:
    """Wherever a pack is stopped, the packed transactions are the first ones, and the next pack
    takes away what it has left: transactions too."""
    monkeypatch.setattr("objdb.storage.row_packing._BATCH", 1)
    storage = MappingStorage()
    tids = [commit(storage, {ROOT_OID: (NO_TID, b"0")})]
    for number in range(1, 5):
        tids.append(commit(storage, {ROOT_OID: (tids[-1], b"%d" % number)}))
    amend, done = storage.engine.amend, []

    def stop(rows: Any, transactions: Any) -> None:
        if len(done) == steps:
            raise KeyboardInterrupt
        amend(rows, transactions)
        done.append(transactions)

    with monkeypatch.context() as patch:
        patch.setattr(storage.engine, "amend", stop)
        with suppress(KeyboardInterrupt):
            storage.pack(tids[-1], lambda record: [])
    statuses = [entry[1] for entry in contents(storage)]
    assert statuses == sorted(statuses, reverse=True)
    storage.pack(tids[-1], lambda record: [])
    assert [entry[:2] for entry in contents(storage)] == [(tids[-1], "p")]
    assert storage.load(ROOT_OID) == (b"4", tids[-1])


def test_a_row_that_somebody_removed() -> None:
    """A revision that is gone from the mapping while it is open is damage, and told as such."""
    data: dict[bytes, bytes] = {}
    with MappingStorage(data=data) as storage:
        first = commit(storage, {ROOT_OID: (NO_TID, b"one")})
        commit(storage, {ROOT_OID: (first, b"two")})
        removed = data.pop(ROOT_OID + first)
        with pytest.raises(CorruptedDataError, match="is missing: the key") as caught:
            storage.loadBefore(ROOT_OID, next_tid(first))
        assert caught.value.oid == ROOT_OID
        with pytest.raises(CorruptedDataError):
            storage.engine.after(ROOT_OID, NO_TID)
        data[ROOT_OID + first] = removed
        assert storage.loadBefore(ROOT_OID, next_tid(first))[0] == b"one"
