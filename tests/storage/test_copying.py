"""Copying to and from files: power lost in the middle, damage in the source."""

from __future__ import annotations

import errno
import random
from pathlib import Path
from typing import Any

import pytest

from objdb.errors import CorruptedDataError, StorageWriteError
from objdb.ids import NO_TID, ROOT_OID
from objdb.storage.copying import CopyProgress
from objdb.storage.file import copying
from objdb.storage.file.storage import FileStorage
from objdb.storage.files import Files
from objdb.storage.memory import MappingStorage
from objdb.testing.faults import SURVIVALS, FaultyFiles
from objdb.testing.helpers import commit, contents, undo
from objdb.testing.versions import perform

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


def make_file(files: Files) -> FileStorage:
    """The same in a file, and changes in versions."""
    source = FileStorage("source.fs", files=files)
    source.copyTransactionsFrom(make_source())
    one, other = OIDS[3:]
    for version, record in (("plan", b"1"), ("plan", b"2"), ("other", b"3")):
        perform(source, lambda t, v=version, r=record: store(source, t, one, r, v))
        perform(source, lambda t, r=record: store(source, t, other, r, ""))
        if record != b"1":
            perform(source, lambda t, v=version: source.commitVersion(v, "", t))
    perform(source, lambda t: store(source, t, other, b"still there", "plan"))
    commit(source, {ROOT_OID: (source.getTid(ROOT_OID), b"last")}, extension={"more": 1})
    return source


def store(storage: FileStorage, txn: Any, oid: bytes, record: bytes, version: str) -> None:
    """Stage a change of what is current."""
    storage.store(oid, storage.engine.current([oid])[oid].tid, record, version, txn)


@pytest.mark.parametrize("survival", SURVIVALS)
@pytest.mark.parametrize("batch_bytes", [500, 10**6])
def test_power_lost_while_copying_a_file(
    survival: str, batch_bytes: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The same from a file, of which many transactions are written at once."""
    monkeypatch.setattr(copying, "_BATCH_BYTES", batch_bytes)
    files = FaultyFiles()
    with make_file(FaultyFiles()) as source:
        expected = contents(source)
        with FileStorage("copy.fs", files=files, checkpoint_records=50) as copy:
            assert copy.versions() == []
            seen: list[CopyProgress] = []
            assert copy.copyTransactionsFrom(source, seen.append) == len(expected)
            assert contents(copy) == expected
            assert copy.versions() == ["plan"]
            assert copy.objects_in_version("plan") == [OIDS[4]]
        revisions = sum(len(transaction[-1]) for transaction in expected)
        assert [state[0] for state in seen] == [*range(1, len(expected) + 1)]
        assert seen[-1] == (len(expected), revisions, expected[-1][0])
        first = random.randrange(4)  # any one of them is met in a few runs
        for count in range(first, len(files.operations) + 1, 4):
            disk = files.crashed(count, survival, count)
            with FileStorage("copy.fs", files=disk) as copy:
                found = contents(copy)
                assert found == expected[: len(found)], count
                assert copy.copyTransactionsFrom(source) == len(expected) - len(found), count
                assert contents(copy) == expected, count
                assert copy.self_check() == [], count


def test_syncs_are_shared(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A copy of many transactions is made durable in few steps, and is at the end."""
    source = make_source()
    with FileStorage(tmp_path / "copy.fs") as copy:
        syncs, sync = [], copy.engine.generation.file.sync
        monkeypatch.setattr(copy.engine.generation.file, "sync", lambda: (syncs.append(1), sync()))
        count = copy.copyTransactionsFrom(source)
        assert len(syncs) <= count // 20
        assert copy.engine._unpublished == ()
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
        for make in (MappingStorage, lambda: FileStorage(tmp_path / "copy.fs")):
            with make() as copy:
                with pytest.raises(CorruptedDataError, match="checksum"):
                    copy.copyTransactionsFrom(source)
                assert contents(copy) == expected[:1]


@pytest.mark.parametrize("preallocate_bytes", [0, 1024])
def test_a_full_disk_while_copying_a_file(preallocate_bytes: int) -> None:
    """Where there is no space, the copy ends with what was before, and goes on when there is."""
    files = FaultyFiles()
    with make_file(FaultyFiles()) as source, FileStorage(
        "copy.fs", files=files, preallocate_bytes=preallocate_bytes
    ) as copy:
        files.fail[len(files.operations)] = errno.ENOSPC
        with pytest.raises(StorageWriteError, match="copy again"):
            copy.copyTransactionsFrom(source)
        assert contents(copy) == []
        copy.copyTransactionsFrom(source)
        assert contents(copy) == contents(source)
        assert copy.self_check() == []


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
