"""Copying to and from files: power lost in the middle, damage in the source."""

from __future__ import annotations

from pathlib import Path

import pytest

from objdb.errors import CorruptedDataError
from objdb.ids import NO_TID, ROOT_OID
from objdb.storage.file.storage import FileStorage
from objdb.storage.memory import MappingStorage
from objdb.testing.faults import SURVIVALS, FaultyFiles
from objdb.testing.helpers import commit, contents, undo

OIDS = [number.to_bytes(8, "big") for number in range(5)]


def make_source() -> MappingStorage:
    """A storage with some transactions, undone ones among them."""
    source = MappingStorage("source")
    commit(source, dict.fromkeys(OIDS, (NO_TID, b"0")))
    for i in range(70):
        if i % 8 == 7:
            undo(source, source.undoLog(0, 1)[0]["id"])
        else:
            oids = OIDS[i % 6 :]  # now and then none
            commit(source, {oid: (source.getTid(oid), b"%d" % i) for oid in oids})
    return source


@pytest.mark.parametrize("survival", SURVIVALS)
def test_power_lost_while_copying(survival: str) -> None:
    """Whenever power is lost, what the copy then has is the beginning of the source, and copying
    goes on from there."""
    source = make_source()
    expected = contents(source)
    files = FaultyFiles()
    with FileStorage("copy.fs", files=files, checkpoint_records=50) as copy:
        copy.copyTransactionsFrom(source)
        assert contents(copy) == expected
    for count in range(len(files.operations) + 1):
        disk = files.crashed(count, survival, count)
        with FileStorage("copy.fs", files=disk) as copy:
            found = contents(copy)
            assert found == expected[: len(found)]
            assert copy.copyTransactionsFrom(source) == len(expected) - len(found)
            assert contents(copy) == expected
            assert copy.self_check() == []


def test_syncs_are_shared(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A copy of many transactions is made durable in few steps, and is at the end."""
    source = make_source()
    with FileStorage(tmp_path / "copy.fs") as copy:
        syncs, sync = [], copy._medium.file.sync
        monkeypatch.setattr(copy._medium.file, "sync", lambda: (syncs.append(1), sync()))
        count = copy.copyTransactionsFrom(source)
        assert len(syncs) <= count // 20
        assert copy._group.unpublished == ()
        assert copy.lastTransaction() == source.lastTransaction()


def test_damage_is_not_copied(tmp_path: Path) -> None:
    """A damaged transaction in the source ends the copy, with what was before it."""
    path = tmp_path / "source.fs"
    with FileStorage(path) as source:
        tid = commit(source, {ROOT_OID: (NO_TID, b"one")})
        tid = commit(source, {ROOT_OID: (tid, b"two")})
        commit(source, {ROOT_OID: (tid, b"three")})
        expected = contents(source)
        at = path.read_bytes().index(b"two")
        with open(path, "r+b") as file:
            file.seek(at)
            file.write(b"TWO")
        with MappingStorage() as copy:
            with pytest.raises(CorruptedDataError, match="checksum"):
                copy.copyTransactionsFrom(source)
            assert contents(copy) == expected[:1]


def test_a_copy_of_a_file_is_as_large(tmp_path: Path) -> None:
    """Back pointers are copied as such."""
    with FileStorage(tmp_path / "a.fs") as source, FileStorage(tmp_path / "b.fs") as copy:
        tid = commit(source, {ROOT_OID: (NO_TID, b"a" * 10**5)})
        tid = commit(source, {ROOT_OID: (tid, b"b" * 10**5)})
        for _ in range(6):
            tid = undo(source, tid)
        copy.copyTransactionsFrom(source)
        assert copy.getSize() == source.getSize()
        assert contents(copy) == contents(source)


def test_an_iterator_from_a_tid(tmp_path: Path) -> None:
    """Going on from a tid starts there, wherever that is."""
    with FileStorage(tmp_path / "data.fs") as storage:
        storage.copyTransactionsFrom(make_source())
        tids = [transaction.tid for transaction in storage.iterator()]
        for number, tid in enumerate(tids):
            assert [t.tid for t in storage.iterator(tid)] == tids[number:]
            assert [t.tid for t in storage.iterator(tid, tid)] == [tid]
            before = (int.from_bytes(tid, "big") - 1).to_bytes(8, "big")
            assert [t.tid for t in storage.iterator(before)] == tids[number:]
        assert [t.tid for t in storage.iterator(NO_TID)] == tids
        assert list(storage.iterator(b"\xff" * 8)) == []
