"""The layers that only look: read-only, before a moment, logged; and what every layer does."""

from __future__ import annotations

import io
import logging
from datetime import datetime, timezone
from pathlib import Path
from typing import Any

import pytest
import transaction

import objdb
from objdb import BeforeStorage, FileStorage, LoggedStorage, MappingStorage, ReadOnlyStorage
from objdb.check import check
from objdb.errors import (
    POSKeyError,
    ReadOnlyError,
    StorageClosedError,
    StorageError,
    Unsupported,
    UsageError,
)
from objdb.ids import MAX_TID, NO_TID, ROOT_OID, datetime_from_tid, next_tid, time_from_tid
from objdb.interfaces import (
    IStorage,
    IStorageHistory,
    IStorageIteration,
    IStoragePackable,
    IStorageRestoreable,
    IStorageSelfCheck,
    IStorageUndoable,
    IStorageVersions,
)
from objdb.storage.commit import TransactionMetaData
from objdb.storage.layers.layer import Layer
from objdb.storage.sql.sqlite import SQLiteStorage
from objdb.testing.helpers import commit, contents
from objdb.testing.versions import perform
from tests.storage.layers.helpers import fill, texts


@pytest.fixture
def base() -> MappingStorage:
    return MappingStorage("base")


# -- every layer


def test_a_layer_declares_what_the_base_does(tmp_path: Path, base: MappingStorage) -> None:
    """A layer declares the base's interfaces, and has nothing of those it does not declare."""
    with Layer(FileStorage(tmp_path / "data.fs")) as over_file:
        assert IStorageSelfCheck.providedBy(over_file) and over_file.self_check() == []
    over_memory = Layer(base)
    assert IStorageUndoable.providedBy(over_memory)
    assert not IStorageSelfCheck.providedBy(over_memory)
    with pytest.raises(AttributeError, match="does not declare"):
        over_memory.self_check()
    assert repr(over_memory).startswith("<Layer over <MappingStorage base>")


def test_no_storage() -> None:
    """A layer over something else is refused."""
    for what in (None, "data.fs", object()):
        with pytest.raises(UsageError, match="not a storage"):
            Layer(what)


def test_again_that_fails(tmp_path: Path) -> None:
    """A layer that cannot be made again leaves no storage open."""
    made: list[Any] = []

    class Once(Layer):
        def __init__(self, base: Any) -> None:
            made.append(base)
            if len(made) > 1:
                raise StorageError("for now")
            super().__init__(base)

    with Once(SQLiteStorage(tmp_path / "data.sqlite")) as layer:
        with pytest.raises(StorageError, match="for now"):
            layer.again()
        with pytest.raises(StorageClosedError):
            made[1].load(ROOT_OID)


# -- read-only


def test_read_only_reads(base: MappingStorage) -> None:
    """Everything that is there is shown; a database over it reads."""
    fill(base)
    layer = ReadOnlyStorage(base)
    assert layer.isReadOnly() and len(layer) == len(base)
    assert contents(layer) == contents(base)
    assert texts(layer) == texts(base)
    assert layer.history(ROOT_OID) == base.history(ROOT_OID)
    assert check(layer).problems == []


def test_read_only_declares_nothing_that_writes(base: MappingStorage) -> None:
    """Undo, pack and copies are not declared."""
    layer = ReadOnlyStorage(base)
    for interface in (IStorageUndoable, IStoragePackable, IStorageRestoreable):
        assert not interface.providedBy(layer)


@pytest.mark.parametrize("name", sorted(
    {"copyTransactionsFrom", "undo", "pack", "commitVersion", "abortVersion"}
    | {name for name in IStorage if name.startswith("tpc_") and name != "tpc_abort"}
    | {"store", "restore", "deleteObject", "new_oid", "checkCurrentSerialInTransaction"}
))
def test_read_only_refuses(base: MappingStorage, name: str) -> None:
    """Every call that writes is refused, whatever it is given, and says what to do."""
    with pytest.raises(ReadOnlyError, match="Open the storage under it"):
        getattr(ReadOnlyStorage(base), name)()
    assert list(base.iterator()) == []


def test_read_only_database(base: MappingStorage) -> None:
    """A change through a database is refused at once."""
    fill(base)
    before = contents(base)
    with objdb.DB(ReadOnlyStorage(base)) as db:
        connection = db.open()
        with pytest.raises(ReadOnlyError):
            connection.root()["more"] = 1
    assert contents(base) == before


def test_read_only_follows_another_process(tmp_path: Path) -> None:
    """Over a file that is open for reading only, what the writer commits is seen."""
    with objdb.DB(tmp_path / "data.fs") as writer:
        reader = objdb.DB(ReadOnlyStorage(FileStorage(tmp_path / "data.fs", read_only=True)))
        with reader:
            connection = reader.open()
            assert "new" not in connection.root()
            with writer.transaction() as other:
                other.root()["new"] = 1
            transaction.begin()
            assert connection.root()["new"] == 1


# -- before a moment


def revisions(base: Any) -> list[bytes]:
    """Commit four revisions of the root, the third a deletion of another object."""
    other = base.new_oid()
    tids = [commit(base, {ROOT_OID: (NO_TID, b"0"), other: (NO_TID, b"other")})]
    tids.append(commit(base, {ROOT_OID: (tids[0], b"1")}, description="one"))
    tids.append(commit(base, {ROOT_OID: (tids[1], b"2"), other: (tids[0], None)}))
    late = base.new_oid()
    tids.append(commit(base, {ROOT_OID: (tids[2], b"3"), late: (NO_TID, b"late")}))
    return tids


@pytest.mark.parametrize("kind", ["memory", "file"])
def test_before_each_transaction(tmp_path: Path, kind: str) -> None:
    """Before each tid, everything is as it was, by whatever way it is asked for."""
    base: Any = MappingStorage() if kind == "memory" else FileStorage(tmp_path / "data.fs")
    tids = revisions(base)
    for number in range(1, 5):
        before = tids[number] if number < 4 else next_tid(tids[3])
        layer = BeforeStorage(base, before)
        assert layer.before == before
        assert layer.lastTransaction() == tids[number - 1]
        record = b"%d" % (number - 1)
        assert layer.load(ROOT_OID) == (record, tids[number - 1])
        assert layer.loadBefore(ROOT_OID, MAX_TID) == (record, tids[number - 1], None)
        assert layer.loadBefore(ROOT_OID, tids[0]) is None
        if number > 1:
            assert layer.loadBefore(ROOT_OID, tids[1]) == (b"0", tids[0], tids[1])
        assert layer.getTid(ROOT_OID) == tids[number - 1]
        assert [e["tid"] for e in layer.history(ROOT_OID, 9)] == tids[:number][::-1]
        assert len(layer.history(ROOT_OID, 1)) == 1
        assert contents(layer) == contents(base)[:number]
        assert [t.tid for t in layer.iterator(tids[1], MAX_TID)] == tids[1:number]
        assert len(layer) == [2, 2, 1, 2][number - 1]
        assert check(layer).transactions == number
        if number < 4:
            with pytest.raises(POSKeyError):
                layer.loadSerial(ROOT_OID, tids[number])
        assert layer.loadSerial(ROOT_OID, tids[0]) == b"0"
    base.close()


def test_before_hides_what_came_later(base: MappingStorage) -> None:
    """An object that was made later does not exist, and was never heard of."""
    tids = revisions(base)
    late = contents(base)[-1][-1][1][0]
    layer = BeforeStorage(base, tids[3])
    for call in (layer.load, layer.getTid, layer.history):
        with pytest.raises(POSKeyError):
            call(late)
    with pytest.raises(POSKeyError):
        layer.loadBefore(late, MAX_TID)
    seen = contents(layer)
    commit(base, {ROOT_OID: (tids[3], b"4")})
    assert contents(layer) == seen and layer.load(ROOT_OID) == (b"2", tids[2])


def test_before_everything(base: MappingStorage) -> None:
    """Before the first transaction there is nothing."""
    tids = revisions(base)
    layer = BeforeStorage(base, tids[0])
    assert layer.lastTransaction() == NO_TID and len(layer) == 0 and contents(layer) == []
    empty = BeforeStorage(MappingStorage(), 1e9)
    assert empty.lastTransaction() == NO_TID


def test_before_takes_moments(base: MappingStorage) -> None:
    """A tid, seconds, a datetime and ISO text name the same moment."""
    tid = revisions(base)[2]
    moment = datetime_from_tid(tid)
    for before in (tid, time_from_tid(tid), moment, moment.isoformat()):
        found = BeforeStorage(base, before).before
        assert abs(time_from_tid(found) - time_from_tid(tid)) < 1e-5
    later = datetime(9000, 1, 1, tzinfo=timezone.utc)
    for wrong in (None, "soon", later, b"short", datetime(2026, 1, 1)):
        with pytest.raises(UsageError):
            BeforeStorage(base, wrong)


def test_before_with_versions(base: MappingStorage) -> None:
    """Versions are what they were."""
    tids = revisions(base)
    other = base.new_oid()
    inside = perform(base, lambda t: base.store(ROOT_OID, tids[3], b"in", "plan", t))
    ended = perform(base, lambda t: base.commitVersion("plan", "", t))
    layer = BeforeStorage(base, ended)
    assert IStorageVersions.providedBy(layer) and layer.supportsVersions()
    assert layer.versions() == ["plan"] and not layer.versionEmpty("plan")
    assert layer.objects_in_version("plan") == [ROOT_OID]
    assert layer.modifiedInVersion(ROOT_OID) == "plan"
    with pytest.raises(POSKeyError):
        layer.modifiedInVersion(other)
    assert layer.load(ROOT_OID) == (b"3", tids[3])
    assert layer.load(ROOT_OID, "plan") == (b"in", inside)
    assert BeforeStorage(base, inside).versions() == base.versions() == []


def test_before_needs_a_log(base: MappingStorage) -> None:
    """A base that does not list its transactions is refused."""

    class Plain(Layer):
        honours = (IStorage,)

    with pytest.raises(Unsupported, match="does not list"):
        BeforeStorage(Plain(base), 1)


def test_database_before(base: MappingStorage) -> None:
    """A database shows its past, and cannot be changed."""
    fill(base)
    last = base.lastTransaction()
    db = objdb.DB(base)
    with db.transaction() as connection:
        connection.root().clear()
    with objdb.DB(BeforeStorage(base, next_tid(last))) as past:
        connection = past.open()
        assert len(connection.root()) == 40
        with pytest.raises(ReadOnlyError):
            connection.root()["x"] = 1


# -- logged


def test_every_call_is_a_line(base: MappingStorage) -> None:
    """Each call of the storage is one line: name, oids and tids, bytes, time, result."""
    lines: list[str] = []
    storage = LoggedStorage(base, lines.append)
    tid = commit(storage, {ROOT_OID: (NO_TID, b"x" * 150)})
    assert [line.split()[0] for line in lines] == [
        "tpc_begin", "store", "tpc_vote", "tpc_finish",
    ]
    assert "0x0" in lines[1] and "150 bytes" in lines[1]
    assert tid.hex() in lines[3] and all(" µs  " in line for line in lines)
    lines.clear()
    storage.loadBefore(ROOT_OID, MAX_TID)
    storage.loadBefore(ROOT_OID, NO_TID)
    storage.new_oid()
    storage.history(ROOT_OID, size=3)
    storage.loadSerial(ROOT_OID, tid)
    assert len(lines) == 5
    for line, result in zip(
        lines, (f"150 bytes, 0x{tid.hex()}", "nothing", "0x1", "1 entries", "150 bytes"),
        strict=True,
    ):
        assert line.partition(" µs  ")[2].startswith(result)
    assert "size 3" in lines[3]
    assert len({line.index(" µs  ") for line in lines if len(line.split(" µs ")[0]) < 70}) == 1


def test_errors_are_logged(base: MappingStorage) -> None:
    """A call that raises is a line with the error, which goes on."""
    stream = io.StringIO()
    storage = LoggedStorage(base, stream)
    with pytest.raises(POSKeyError):
        storage.load(b"\0" * 7 + b"\xbb")
    name, oid = stream.getvalue().split()[:2]
    assert (name, oid) == ("load", "0xbb") and "POSKeyError: no object 0xbb" in stream.getvalue()
    with pytest.raises(Exception, match="has not begun"):
        storage.tpc_vote(TransactionMetaData())
    assert stream.getvalue().count("\n") == 2


def test_logging(base: MappingStorage, caplog: pytest.LogCaptureFixture) -> None:
    """By default lines go to a logger of their own; another can be given."""
    caplog.set_level(logging.INFO)
    LoggedStorage(base).getName()
    LoggedStorage(base, logging.getLogger("mine")).sortKey()
    found = [(record.name, record.getMessage().split()[0]) for record in caplog.records]
    assert found == [("objdb.storage.calls", "getName"), ("mine", "sortKey")]
    with pytest.raises(UsageError, match="not a logger"):
        LoggedStorage(base, 7)


def test_logged_database(base: MappingStorage) -> None:
    """A database works over it, and the log has what it did."""
    lines: list[str] = []
    fill(LoggedStorage(base, lines.append))
    assert IStorageHistory.providedBy(base) and IStorageIteration.providedBy(base)
    stored = [line for line in lines if line.startswith("store")]
    assert len(stored) == 42  # the root twice
