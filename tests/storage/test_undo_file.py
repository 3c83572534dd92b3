"""How a file keeps what was undone, and how its transactions are found without an index."""

from __future__ import annotations

import random
import struct
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from objdb.errors import CorruptedDataError, UndoError
from objdb.ids import NO_TID, ROOT_OID, Oid, next_tid, time_from_tid
from objdb.storage.commit import TransactionMetaData
from objdb.storage.file.find_tid import position_behind
from objdb.storage.file.format import START
from objdb.storage.file.storage import FileStorage
from objdb.testing.helpers import commit, current, undo

ROOT_RECORD = b"\x80\x03cpersistent.mapping\nPersistentMapping\n.\x80\x03}X\x04\x00\x00\x00data}s."


@pytest.fixture
def storage(tmp_path: Path) -> Any:
    with FileStorage(tmp_path / "data.fs") as storage:
        commit(storage, {ROOT_OID: (NO_TID, ROOT_RECORD)})
        yield storage
        assert storage.self_check() == []


def test_an_undo_takes_no_room_for_data(storage: FileStorage) -> None:
    """Large data that are brought back are pointed to; so are those that an undo brought back."""
    oid = storage.new_oid()
    tid = commit(storage, {oid: (NO_TID, b"a" * 10**6)})
    tid = commit(storage, {oid: (tid, b"b" * 10**6)})
    size = storage.getSize()
    for _ in range(5):
        tid = undo(storage, tid)
    assert storage.getSize() - size < 1000
    assert storage.load(oid) == (b"a" * 10**6, tid)


def test_back_pointers_lead_to_data(storage: FileStorage) -> None:
    """A back pointer leads to the record that has the data, not to another back pointer."""
    oid = storage.new_oid()
    first = commit(storage, {oid: (NO_TID, b"one")})
    second = commit(storage, {oid: (first, b"two")})
    for _ in range(4):
        second = undo(storage, second)
    for transaction in list(storage.iterator())[3:]:
        for revision in transaction:
            assert revision.data_txn in (first, next_tid(first), list(storage.iterator())[2].tid)
    record = storage.engine.generation.log.record(storage.engine.generation.index.get(oid)[0])
    target = storage.engine.generation.log.target(record)
    assert target is not None and target.size


def test_damage_is_not_brought_back(storage: FileStorage, tmp_path: Path) -> None:
    """A transaction whose checksum does not fit cannot be undone."""
    oid = storage.new_oid()
    first = commit(storage, {oid: (NO_TID, b"one")})
    second = commit(storage, {oid: (first, b"two two two")})
    data = bytearray((tmp_path / "data.fs").read_bytes())
    at = data.index(b"two two two")
    with open(tmp_path / "data.fs", "r+b") as file:
        file.seek(at)
        file.write(b"XXX")
    with pytest.raises(CorruptedDataError, match="checksum"):
        undo(storage, second)
    with open(tmp_path / "data.fs", "r+b") as file:
        file.seek(at)
        file.write(b"two")
    undo(storage, second)


# -- finding transactions


def fill(storage: FileStorage, count: int, sizes: Callable[[], int]) -> None:
    """Commit *count* transactions: of new objects, of the same, of several, of none."""
    chance, known = random.Random(1), {ROOT_OID: storage.getTid(ROOT_OID)}
    for _ in range(count):
        changes: dict[Oid, tuple[bytes, bytes | None]] = {}
        for _ in range(chance.choice([0, 1, 1, 1, 2, 9])):
            oid = chance.choice([*known, storage.new_oid(), storage.new_oid()])
            if oid != ROOT_OID:
                changes[oid] = known.get(oid, NO_TID), chance.randbytes(sizes()) or None
        tid = commit(storage, changes, description="x" * chance.choice([0, 3, 300]))
        known.update(dict.fromkeys(changes, tid))


@pytest.mark.parametrize("largest", [3, 200, 60_000])
def test_every_transaction_is_found(storage: FileStorage, largest: int) -> None:
    """From any tid, or one before or behind it, the place in the log is found."""
    chance = random.Random(2)
    fill(storage, 300, lambda: chance.randrange(largest))
    end, last = storage.engine.generation.published[:2]
    places, position = {}, START
    while position < end:
        header = storage.engine.generation.log.header(position, end)
        places[header.tid] = position, header.end
        position = header.end
    for tid, (before, behind) in places.items():
        earlier = (int.from_bytes(tid, "big") - 1).to_bytes(8, "big")
        assert position_behind(storage.engine.generation.log, end, last, tid) == behind
        assert position_behind(storage.engine.generation.log, end, last, next_tid(tid)) == behind
        assert position_behind(storage.engine.generation.log, end, last, earlier) == before
    assert position_behind(storage.engine.generation.log, end, last, NO_TID) == START
    assert position_behind(storage.engine.generation.log, end, last, b"\xff" * 8) == end


def test_few_reads(storage: FileStorage, monkeypatch: pytest.MonkeyPatch) -> None:
    """The newest entries, and those of a time long ago, take few reads of a long log."""
    fill(storage, 2000, lambda: 100)
    tids = [transaction.tid for transaction in storage.iterator()]
    reads = 0
    read_at = storage.engine.generation.file.read_at

    def counted(*arguments: Any) -> bytes:
        nonlocal reads
        reads += 1
        return read_at(*arguments)

    monkeypatch.setattr(storage.engine.generation.file, "read_at", counted)
    assert len(storage.undoLog(0, -20)) == 20
    assert reads < 100
    reads = 0
    found = storage.undoLog(time_from_tid(tids[700]), time_from_tid(tids[709]))
    assert len(found) == 10
    assert reads < 300


def test_tids_of_any_kind(tmp_path: Path) -> None:
    """Small numbers as tids, and tids that have nothing in common, are found too."""
    with FileStorage(tmp_path / "odd.fs") as storage:
        tids = [n.to_bytes(8, "big") for n in [*range(1, 300), *(n << 54 for n in range(1, 120))]]
        for tid in tids:
            transaction = TransactionMetaData()
            storage.tpc_begin(transaction, tid)
            storage.restore(ROOT_OID, tid, bytes(200), "", None, transaction)
            storage.tpc_vote(transaction)
            storage.tpc_finish(transaction)
        end, last = storage.engine.generation.published[:2]
        for tid in tids:
            place = position_behind(storage.engine.generation.log, end, last, tid)
            assert storage.engine.generation.log.header_before(place).tid == tid
        assert len(storage.undoLog(0, -10_000)) == len(tids)


def test_objects_that_hold_logs(storage: FileStorage, tmp_path: Path) -> None:
    """A database file kept in an object is not taken for the log."""
    oid = storage.new_oid()
    tid = commit(storage, {oid: (NO_TID, b"0")})
    for _ in range(50):
        tid = commit(storage, {oid: (tid, b"x" * 1000)})
    inner = (tmp_path / "data.fs").read_bytes()[: storage.getSize()]
    other = storage.new_oid()
    outer = commit(storage, {other: (NO_TID, inner)})
    for _ in range(50):
        tid = commit(storage, {oid: (tid, b"y" * 100)})
    end, last = storage.engine.generation.published[:2]
    for transaction in list(storage.iterator()):
        place = position_behind(storage.engine.generation.log, end, last, transaction.tid)
        assert storage.engine.generation.log.header_before(place).tid == transaction.tid
    undo(storage, outer)
    assert current(storage, other) is None


def test_a_forged_transaction_is_not_undone(storage: FileStorage) -> None:
    """Data made to look like transactions, at the very place where they are, are found out."""
    victim = storage.new_oid()
    base = commit(storage, {victim: (NO_TID, b"good")})
    holder = storage.new_oid()
    tid = (int.from_bytes(base, "big") + 2**40).to_bytes(8, "big")
    forged_tid = (int.from_bytes(tid, "big") - 10).to_bytes(8, "big")
    before_tid = (int.from_bytes(tid, "big") - 20).to_bytes(8, "big")

    def forged(position: int) -> bytes:
        first = struct.pack(">8sQcHHH", before_tid, 23, b" ", 0, 0, 0) + struct.pack(">Q", 23)
        at = position + len(first)
        record = struct.pack(">8s8sQQHQ", victim, forged_tid, 0, at, 0, 4) + b"evil"
        length = 23 + len(record)
        head = struct.pack(">8sQcHHH", forged_tid, length, b" ", 0, 0, 0)
        return first + head + record + struct.pack(">Q", length)

    def store(data: bytes) -> None:
        transaction = TransactionMetaData()
        storage.tpc_begin(transaction, tid)
        storage.store(holder, NO_TID, data, "", transaction)
        storage.tpc_vote(transaction)
        storage.tpc_finish(transaction)

    prefix = bytes(20_000)
    position = storage.getSize() + 23 + 63 + 42 + len(prefix)
    store(prefix + forged(position) + bytes(20_000))
    commit(storage, {storage.new_oid(): (NO_TID, b"later")})
    with pytest.raises(UndoError, match="no such transaction"):
        undo(storage, forged_tid)
    assert current(storage, victim) == b"good"
    genuine = undo(storage, tid)
    assert storage.loadBefore(holder, genuine) is not None
    assert current(storage, holder) is None
