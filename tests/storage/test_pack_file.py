"""Packing a FileStorage: files, readers beside the writer, what others had begun."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

import objdb
from objdb.check import check
from objdb.errors import (
    PackError,
    POSKeyError,
    ReadConflictError,
    ReadOnlyError,
    StorageSpaceError,
    UndoError,
    UsageError,
)
from objdb.ids import MAX_TID, NO_TID, ROOT_OID, Oid, Tid, next_tid, oid_from_int
from objdb.storage.commit import TransactionMetaData
from objdb.storage.file.storage import FileStorage
from objdb.testing.faults import FaultyFiles
from objdb.testing.helpers import commit, contents, undo


def refer(record: bytes, oids: list[Oid] | None = None) -> list[Oid]:
    """The oids in a test's record: after a colon, 8 bytes each."""
    _, _, rest = record.partition(b":")
    return [rest[i : i + 8] for i in range(0, len(rest), 8)]


A, B, C = (oid_from_int(number) for number in (1, 2, 3))


def fill(storage: Any) -> list[Tid]:
    """Root → A → B in three generations; C, which nothing refers to."""
    tids = [commit(storage, {ROOT_OID: (NO_TID, b"root:" + A), A: (NO_TID, b"a0:" + B),
                             B: (NO_TID, b"b0"), C: (NO_TID, b"c0")}, user="one")]
    for number in b"1", b"2":
        last = tids[-1]
        tids.append(commit(storage, {
            A: (last, b"a" + number + b":" + B), B: (last, b"b" + number),
        }, description="generation"))
    return tids


@pytest.fixture
def storage(tmp_path: Path) -> Any:
    """A filled storage, checked at the end."""
    with FileStorage(tmp_path / "data.fs") as storage:
        fill(storage)
        yield storage
        assert storage.self_check() == []
    assert sorted(path.name for path in tmp_path.iterdir()) == [
        "data.fs", "data.fs.lock", "data.fs.oidx",
    ]


def test_what_stays(storage: FileStorage) -> None:
    """Only the last revisions of what is reached stay, in transactions that are marked."""
    before = contents(storage)
    result = storage.pack(storage.lastTransaction(), refer)
    assert result.size_after == storage.getSize() < result.size_before
    assert (result.objects_before, result.objects_after) == (4, 3) and len(storage) == 3
    after = contents(storage)
    assert [[revision[0] for revision in entry[5]] for entry in after] == [[ROOT_OID], [A, B]]
    assert [entry[:5] for entry in after] == [
        (before[i][0], "p", *before[i][2:5]) for i in (0, 2)
    ]
    assert storage.load(B)[0] == b"b2"
    with pytest.raises(POSKeyError):
        storage.load(C)
