"""PickledMappingStorage: what is in the file, when, and what a crash or a full disk leaves."""

from __future__ import annotations

import errno
import os
import pickle
import threading
import time
import zlib
from pathlib import Path

import pytest

import objdb
from objdb.errors import (
    CorruptedDataError,
    FileFormatError,
    ReadOnlyError,
    StorageFailedError,
    StorageLockedError,
    StorageWriteError,
    UsageError,
)
from objdb.ids import NO_TID, ROOT_OID, oid_from_int
from objdb.storage import pickled
from objdb.storage.commit import TransactionMetaData
from objdb.storage.pickled import LargePickleWarning, PickledEngine, PickledMappingStorage
from objdb.testing.faults import SURVIVALS, FaultyFiles
from objdb.testing.helpers import commit, contents
from tests.database.test_forks import in_child

PATH = "data.pickle"


def open_storage(files: FaultyFiles) -> PickledMappingStorage:
    return PickledMappingStorage(PATH, files=files)


def run(files: FaultyFiles, shown: list[tuple[int, list[object]]]) -> None:
    """Commit a few times; note what was acknowledged after how many operations."""
    with open_storage(files) as storage:
        tid = commit(storage, {ROOT_OID: (NO_TID, b"root")})
        shown.append((len(files.operations), contents(storage)))
        for number in range(3):
            tid = commit(storage, {
                ROOT_OID: (tid, b"root %d" % number), storage.new_oid(): (NO_TID, b"x" * 700),
            })
            shown.append((len(files.operations), contents(storage)))


@pytest.mark.parametrize("survival", SURVIVALS)
def test_power_is_lost(survival: str) -> None:
    """After every operation, the file has what was acknowledged last, or the one that was under
    way."""
    files, shown = FaultyFiles(), list[tuple[int, list[object]]]()
    run(files, shown)
    for number in range(len(files.operations) + 1):
        with open_storage(files.crashed(number, survival, seed=number)) as storage:
            found = contents(storage)
        acknowledged = [state for count, state in shown if count <= number]
        allowed = [acknowledged[-1] if acknowledged else []]
        allowed += [state for count, state in shown if count > number][:1]
        assert found in allowed, number


def test_every_operation_fails_once() -> None:
    """A failure is told by name; what was acknowledged is there, and nothing is half there."""
    whole, shown = FaultyFiles(), list[tuple[int, list[object]]]()
    run(whole, shown)
    for number in range(len(whole.operations)):
        files, done = FaultyFiles(), list[tuple[int, list[object]]]()
        files.fail[number] = errno.ENOSPC
        with pytest.raises((StorageWriteError, StorageFailedError, OSError)):
            run(files, done)
        files.locked.clear()
        with open_storage(files) as storage:
            found = contents(storage)
            assert len(found) >= len(done)
            commit(storage, {storage.new_oid(): (NO_TID, b"goes on")})


def test_after_a_full_disk(tmp_path: Path) -> None:
    """A commit that could not be written can be tried again."""
    files = FaultyFiles()
    with open_storage(files) as storage:
        tid = commit(storage, {ROOT_OID: (NO_TID, b"root")})
        files.fail_after = len(files.operations), errno.ENOSPC
        with pytest.raises(StorageWriteError, match="Nothing was committed"):
            commit(storage, {ROOT_OID: (tid, b"more")})
        files.fail_after = None
        assert storage.load(ROOT_OID) == (b"root", tid)
        tid = commit(storage, {ROOT_OID: (tid, b"more")})
    with open_storage(files) as storage:
        assert storage.load(ROOT_OID) == (b"more", tid)


@pytest.mark.parametrize("seconds", [1e300, float("inf")])
def test_hardly_ever(seconds: float, tmp_path: Path) -> None:
    """With an every_seconds longer than any system can wait, it is written when it is closed."""
    path = tmp_path / "data.pickle"
    with PickledMappingStorage(path, every_seconds=seconds) as storage:
        commit(storage, {ROOT_OID: (NO_TID, b"root")})
    with PickledMappingStorage(path) as storage:
        assert storage.load(ROOT_OID)[0] == b"root"


def test_every_so_often(tmp_path: Path) -> None:
    """With every_seconds a commit does not write; time does, and closing."""
    path = tmp_path / "data.pickle"
    with PickledMappingStorage(path, every_seconds=1000) as storage:
        commit(storage, {ROOT_OID: (NO_TID, b"root")})
        assert not path.exists()
    with PickledMappingStorage(path, every_seconds=0.01) as storage:
        tid = commit(storage, {ROOT_OID: (storage.getTid(ROOT_OID), b"more")})
        written = threading.Event()
        while True:
            with PickledMappingStorage(path, read_only=True) as other:
                if other.load(ROOT_OID) == (b"more", tid):
                    break
            written.wait(0.01)


def test_a_disk_that_fills_up_between_writes() -> None:
    """What the thread could not write is told at the next commit; written when there is room."""
    files = FaultyFiles()
    with PickledMappingStorage(PATH, every_seconds=0.01, files=files) as storage:
        tid = commit(storage, {ROOT_OID: (NO_TID, b"0")})
        files.fail_after = len(files.operations), errno.ENOSPC
        with pytest.raises(StorageWriteError):
            for number in range(100_000):
                tid = commit(storage, {ROOT_OID: (tid, b"%d" % number)})
        expected = storage.load(ROOT_OID)
        files.fail_after = None
    with open_storage(files) as storage:
        assert storage.load(ROOT_OID) == expected


@pytest.mark.parametrize("cut", [1, 10, 16, 20, 28, 40, -1])
def test_truncated(tmp_path: Path, cut: int) -> None:
    """A file that was cut off anywhere is damaged, and stays as it is."""
    path = tmp_path / "data.pickle"
    with PickledMappingStorage(path) as storage:
        commit(storage, {ROOT_OID: (NO_TID, b"root")})
    path.write_bytes(path.read_bytes()[:cut])
    before = path.read_bytes()
    with pytest.raises(CorruptedDataError, match=r"data\.pickle.*truncated.*Restore") as caught:
        PickledMappingStorage(path)
    assert caught.value.path == str(path)
    assert path.read_bytes() == before


def test_every_byte_counts(tmp_path: Path) -> None:
    """A changed byte anywhere is noticed."""
    path = tmp_path / "data.pickle"
    with PickledMappingStorage(path) as storage:
        commit(storage, {ROOT_OID: (NO_TID, b"root")})
    content = path.read_bytes()
    for i in range(len(content)):
        path.write_bytes(content[:i] + bytes([content[i] ^ 1]) + content[i + 1 :])
        with pytest.raises((CorruptedDataError, FileFormatError)):
            PickledMappingStorage(path)


def test_no_code_runs(tmp_path: Path) -> None:
    """A file that was made to run code is refused."""
    path = tmp_path / "data.pickle"
    body = pickle.dumps({b"x": os.getcwd})
    path.write_bytes(pickled._HEADER.pack(pickled.MAGIC, zlib.crc32(body), len(body)) + body)
    with pytest.raises(CorruptedDataError, match="getcwd"):
        PickledMappingStorage(path)


def test_other_files(tmp_path: Path) -> None:
    """What is no such file is refused by name, and not touched."""
    for name, content, told in (("empty", b"", "empty"), ("other", b"PK zip", "begins with")):
        path = tmp_path / name
        path.write_bytes(content)
        with pytest.raises(FileFormatError, match=told):
            PickledMappingStorage(path)
        assert path.read_bytes() == content
    with pytest.raises(FileFormatError, match="directory"):
        PickledMappingStorage(tmp_path)
    with pytest.raises(FileNotFoundError):
        PickledMappingStorage(tmp_path / "none", read_only=True)
    with pytest.raises(UsageError):
        PickledMappingStorage("")
    with pytest.raises(UsageError, match="every_seconds"):
        PickledMappingStorage(tmp_path / "x", every_seconds=-1)


def test_one_writer(tmp_path: Path) -> None:
    """A second one is refused with the first one's pid; reading goes beside it."""
    path = tmp_path / "data.pickle"
    with PickledMappingStorage(path) as storage:
        commit(storage, {ROOT_OID: (NO_TID, b"root")})
        with pytest.raises(StorageLockedError) as caught:
            PickledMappingStorage(path)
        assert caught.value.pid == os.getpid()
        with PickledMappingStorage(path, read_only=True) as reader:
            assert reader.load(ROOT_OID)[0] == b"root"
            with pytest.raises(ReadOnlyError):
                commit(reader, {ROOT_OID: (NO_TID, b"x")})


def test_the_thread_goes_on(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Whatever error writing now and then ends in, it is told at the next commit, and tried
    again."""
    path, write_new = tmp_path / "data.pickle", PickledEngine._write_new
    failed = threading.Event()

    def fail(storage: PickledMappingStorage, data: dict[bytes, bytes]) -> None:
        failed.set()
        raise MemoryError("for now")

    monkeypatch.setattr(PickledEngine, "_write_new", fail)
    with PickledMappingStorage(path, every_seconds=0.001) as storage:
        tid = commit(storage, {ROOT_OID: (NO_TID, b"root")})
        assert failed.wait(30)
        with pytest.raises(MemoryError, match="for now"):
            for _ in range(100_000):
                tid = commit(storage, {ROOT_OID: (tid, b"root")})
        monkeypatch.setattr(PickledEngine, "_write_new", write_new)
        deadline = time.monotonic() + 30
        while not path.exists() and time.monotonic() < deadline:
            threading.Event().wait(0.001)
        assert path.exists()


def test_committed_while_the_file_is_written(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What is committed while the file is being written is written the next time."""
    path = tmp_path / "data.pickle"
    with PickledMappingStorage(path, every_seconds=1000) as storage:
        tid = commit(storage, {ROOT_OID: (NO_TID, b"root")})
        write_new = storage.engine._write_new

        def commit_meanwhile(data: dict[bytes, bytes]) -> None:
            write_new(data)
            commit(storage, {ROOT_OID: (tid, b"meanwhile")})

        with monkeypatch.context() as patch:
            patch.setattr(storage.engine, "_write_new", commit_meanwhile)
            storage.engine.save()
    with PickledMappingStorage(path) as again:
        assert again.load(ROOT_OID)[0] == b"meanwhile"


def test_closing_beside_a_vote(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Closing does not wait for ever for a transaction that has voted; what was committed is
    written, and nothing later."""
    monkeypatch.setattr("objdb.storage.storage._CLOSE_SECONDS", 0.05)
    path = tmp_path / "data.pickle"
    storage = PickledMappingStorage(path, every_seconds=0.001)
    transaction = TransactionMetaData()
    commit(storage, {ROOT_OID: (NO_TID, b"root")})
    storage.tpc_begin(transaction)
    storage.store(oid_from_int(1), NO_TID, b"never", "", transaction)
    storage.tpc_vote(transaction)
    storage.close()
    written = path.read_bytes()
    storage.tpc_abort(transaction)
    assert path.read_bytes() == written
    with PickledMappingStorage(path) as again:
        assert again.load(ROOT_OID)[0] == b"root" and len(again) == 1


def test_a_fork(tmp_path: Path) -> None:
    """Closing the copy in a forked child writes nothing, and leaves the lock to the parent."""
    path = tmp_path / "data.pickle"
    with PickledMappingStorage(path, every_seconds=1000) as storage:
        commit(storage, {ROOT_OID: (NO_TID, b"root")})
        assert in_child(storage.close) == "None"
        assert not path.exists()
        with pytest.raises(StorageLockedError):
            PickledMappingStorage(path)


def test_a_large_file_warns(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Above the limit it says, once, to move to a FileStorage."""
    monkeypatch.setattr(pickled, "LARGE_BYTES", 5000)
    with PickledMappingStorage(tmp_path / "data.pickle") as storage:
        commit(storage, {ROOT_OID: (NO_TID, b"x" * 1000)})
        with pytest.warns(LargePickleWarning, match="FileStorage"):
            commit(storage, {oid_from_int(1): (NO_TID, b"x" * 5000)})
        commit(storage, {oid_from_int(2): (NO_TID, b"x")})


def test_a_database(tmp_path: Path) -> None:
    """Objects, undo and packing, and all of it after reopening."""
    path = tmp_path / "data.pickle"
    with objdb.DB(PickledMappingStorage(path)) as db:
        for number in range(5):
            with db.transaction(note=str(number)) as connection:
                connection.root()["number"] = number
        db.undo(db.undoLog()[0]["id"])
        objdb.get_transaction().commit()
    with objdb.DB(PickledMappingStorage(path)) as db:
        with db.transaction() as connection:
            assert connection.root()["number"] == 3
        size = path.stat().st_size
        db.pack()
        assert path.stat().st_size < size
    with objdb.DB(PickledMappingStorage(path)) as db, db.transaction() as connection:
        assert connection.root()["number"] == 3
