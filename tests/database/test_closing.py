"""Closing a database on a file while threads are in the middle of reading and committing."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import pytest
import transaction

import objdb
from objdb.check import check
from objdb.errors import ObjdbError
from objdb.storage import storage as storage_module
from objdb.storage.commit import TransactionMetaData
from objdb.storage.files import OSFile, OSFiles
from tests.database.staging import Gate, Worker
from tests.models import Person
from tests.records.handmade import oid, put, record

# How long a close may be seen to wait for the thread that is in the middle of something.
LOOK_SECONDS = 1


class GatedFiles(OSFiles):
    """The operating system's files, whose data file stops before one kind of call."""

    def __init__(self) -> None:
        super().__init__()
        self.gates: dict[str, Gate] = {}

    def open(self, path: str, mode: str) -> OSFile:
        file = super().open(path, mode)
        if path.endswith(".fs"):
            read_at, gates = file.read_at, self.gates

            def gated_read(size: int, position: int) -> bytes:
                stop(gates, "read")
                return read_at(size, position)

            file.read_at = gated_read
            for kind in ("write_at", "sync"):
                setattr(file, kind, gated(gates, kind, getattr(file, kind)))
        return file


def stop(gates: dict[str, Gate], kind: str) -> None:
    gate = gates.pop(kind, None)
    if gate is not None:
        gate.pass_through()


def gated(gates: dict[str, Gate], kind: str, call: Any) -> Any:
    def call_behind_gate(*arguments: Any) -> Any:
        stop(gates, kind)
        return call(*arguments)

    return call_behind_gate


@pytest.mark.parametrize("kind", ["write_at", "sync", "read"])
@pytest.mark.parametrize("others", [0, 8], ids=["nothing opened since", "files opened since"])
def test_closing_in_the_middle(tmp_path: Path, kind: str, others: int) -> None:
    """Closing while a thread is about to read, write or sync lets that end well, or fail with an
    error that has a name; it never reads from, or writes to, a file opened since."""
    files, path = GatedFiles(), tmp_path / "data.fs"
    db = objdb.DB(objdb.FileStorage(path, files=files, preallocate_bytes=0))
    with db.transaction() as connection:
        connection.root()["p"] = Person("before", data=b"x" * 100_000)
        connection.root()["q"] = Person("last")
    manager = transaction.TransactionManager()
    connection = db.open(temporary=True, transaction_manager=manager)
    person = connection.root()["p"]

    def read() -> str:
        return person.name

    def commit() -> str:
        person.name = "after"
        manager.commit()
        return "after"

    if kind != "read":
        assert read() == "before"
    gate = files.gates[kind] = Gate()
    worker = Worker(read if kind == "read" else commit)
    gate.wait_until_reached()
    closer = Worker(db.close)
    closer.join(LOOK_SECONDS)
    flags = os.O_RDWR | os.O_CREAT
    innocent = [os.open(tmp_path / f"innocent{i}", flags) for i in range(others)]
    for descriptor in innocent:
        os.write(descriptor, b"i" * 10_000)
    gate.open()
    acknowledged = "before"
    try:
        acknowledged = worker.finish()
    except ObjdbError:
        manager.abort()
    closer.finish()
    for descriptor in innocent:
        assert os.pread(descriptor, 20_000, 0) == b"i" * 10_000
        os.close(descriptor)
    with objdb.DB(path) as again, again.transaction() as fresh:
        if acknowledged == "after":
            assert fresh.root()["p"].name == "after"
        assert fresh.root()["p"].name in ("before", "after")
        check(again.storage).raise_if_damaged()


@pytest.mark.parametrize("preallocate_bytes", [0, 2**20])
@pytest.mark.parametrize("is_patient", [True, False], ids=["in time", "too late"])
def test_closing_between_vote_and_finish(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, preallocate_bytes: int, is_patient: bool
) -> None:
    """A commit that is acknowledged while the storage is being closed is in the file; one that is
    not leaves the file whole, also when closing has waited long enough for it."""
    if not is_patient:
        monkeypatch.setattr(storage_module, "_CLOSE_SECONDS", 0)
    files, path = GatedFiles(), tmp_path / "data.fs"
    storage = objdb.FileStorage(path, files=files, preallocate_bytes=preallocate_bytes)
    put(storage, 0, record(Person, {"name": "before"}))
    txn = TransactionMetaData()
    content = record(Person, {"name": "after", "data": "x" * 3000})
    storage.tpc_begin(txn)
    storage.store(oid(0), storage.getTid(oid(0)), content, "", txn)
    storage.tpc_vote(txn)
    gate = files.gates["sync"] = Gate()
    closer = Worker(storage.close)
    gate.look(LOOK_SECONDS)  # unless closing waits for the transaction
    finisher = Worker(lambda: storage.tpc_finish(txn))
    finisher.join(LOOK_SECONDS)
    gate.open()
    acknowledged = None
    try:
        acknowledged = finisher.finish()
    except ObjdbError:
        storage.tpc_abort(txn)
    closer.finish()
    with objdb.FileStorage(path) as again:
        found, tid = again.load(oid(0))
        if acknowledged is not None:
            assert (found, tid) == (content, acknowledged)
        check(again).raise_if_damaged()


def test_a_sync_behind_the_close(tmp_path: Path) -> None:
    """A sync that comes when the file is closed says so, in an error with a name."""
    file = OSFiles().open(str(tmp_path / "data"), "c")
    file.close()
    with pytest.raises(objdb.StorageClosedError, match="closed during a sync"):
        file.sync()


def test_closing_in_a_thread_that_closing_waits_for(tmp_path: Path) -> None:
    """Whoever closes what is being closed goes on at once, also if the first waits for that."""
    db = objdb.DB(tmp_path / "data.fs")
    closed_in_time: list[bool] = []

    def close_beside() -> None:
        beside = Worker(db.close)
        beside.join(30)
        closed_in_time.append(not beside.is_alive())

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(db.workers, "close", close_beside)
        db.close()
    assert closed_in_time == [True]
    objdb.DB(tmp_path / "data.fs").close()
