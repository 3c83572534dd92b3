"""Packing a FileStorage: the files, power cuts and full disks, readers in other processes."""

from __future__ import annotations

import errno
import os
import threading
from contextlib import suppress
from pathlib import Path
from typing import Any

import pytest

from objdb.errors import (
    CorruptedDataError,
    ObjdbError,
    POSKeyError,
    ReadOnlyError,
    StorageClosedError,
    StorageFailedError,
    StorageSpaceError,
    StorageTransactionError,
)
from objdb.ids import NO_TID, ROOT_OID, Oid, Tid, next_tid, oid_from_int
from objdb.storage.commit import TransactionMetaData
from objdb.storage.file import opening
from objdb.storage.file.storage import FileStorage
from objdb.testing.faults import SURVIVALS, FaultyFiles
from objdb.testing.helpers import commit, contents, undo
from objdb.testing.packing_model import record, refer

A, B, C = (oid_from_int(number) for number in (1, 2, 3))
PATH = "data.fs"


def fill(storage: Any) -> list[Tid]:
    """Root → A → B in three generations and an undo; C, which nothing refers to."""
    tids = [commit(storage, {
        ROOT_OID: (NO_TID, record("root", A)), A: (NO_TID, record("a0", B)),
        B: (NO_TID, record("b0")), C: (NO_TID, record("c0")),
    }, user="me")]
    for number in "12":
        tids.append(commit(storage, {
            A: (tids[-1], record("a" + number, B)), B: (tids[-1], record("b" + number)),
        }, description="generation"))
    tids.append(undo(storage, tids[-1]))
    return tids


@pytest.fixture
def path(tmp_path: Path) -> Path:
    """The path of a filled storage."""
    with FileStorage(tmp_path / PATH) as storage:
        fill(storage)
    return tmp_path / PATH


def files_at(path: Path) -> set[str]:
    return {name.name for name in path.parent.iterdir()} - {"data.fs.lock"}


# -- the files


def test_the_files(path: Path) -> None:
    """A pack leaves the file and its index, and nothing else."""
    with FileStorage(path) as storage:
        before = contents(storage)
        result = storage.pack(storage.lastTransaction(), refer)
        assert storage.self_check() == []
        after = contents(storage)
    assert files_at(path) == {"data.fs", "data.fs.oidx"}
    assert path.stat().st_size == result.size_after < result.size_before
    assert len(after) == 2 and [entry[0] for entry in after] == [before[0][0], before[3][0]]


def test_the_index_is_used(path: Path, caplog: pytest.LogCaptureFixture) -> None:
    """The packed file's index is right, with and without commits after it, and when it is
    missing."""
    for commits_after in (False, True):
        with FileStorage(path) as storage:
            storage.pack(storage.lastTransaction(), refer)
            if commits_after:
                commit(storage, {A: (storage.getTid(A), record("later", B))})
            before = contents(storage)
        with FileStorage(path) as storage:
            assert contents(storage) == before and storage.self_check() == []
        os.remove(str(path) + ".oidx")
        with FileStorage(path) as storage:
            assert contents(storage) == before and storage.self_check() == []
    assert caplog.text == ""


def test_an_object_in_two_pieces(path: Path) -> None:
    """An object of which a pack has left two pieces, with a gap between, is counted once when the
    index is built again."""
    with FileStorage(path) as storage:
        oid, transaction = storage.new_oid(), TransactionMetaData()
        storage.tpc_begin(transaction)
        storage.store(oid, NO_TID, record("in a version"), "plan", transaction)
        storage.tpc_vote(transaction)
        tids = [storage.tpc_finish(transaction)]
        for _ in range(3):  # un-created, made again, un-created
            tids.append(undo(storage, tids[-1]))
        storage.pack(tids[1], refer, False)
        assert storage.self_check() == []
        assert storage.loadBefore(oid, next_tid(tids[2]), "plan")
    os.remove(path.with_name("data.fs.oidx"))
    with FileStorage(path) as storage:
        assert storage.self_check() == []


def test_the_old_file(path: Path) -> None:
    """With keep_old, the old file is there as .old, whole; the next one takes its place."""
    for _ in range(2):
        with FileStorage(path) as storage:
            before = contents(storage)
            storage.pack(storage.lastTransaction(), refer, keep_old=True)
            commit(storage, {A: (storage.getTid(A), record("later", B))})
        assert files_at(path) == {"data.fs", "data.fs.oidx", "data.fs.old"}
        with FileStorage(str(path) + ".old", read_only=True) as old:
            assert contents(old) == before


def test_leftovers(path: Path) -> None:
    """What a pack left that was cut short is removed when the file is opened for writing."""
    for ending in (".pack", ".oidx.pack"):
        Path(str(path) + ending).write_bytes(b"something")
    with FileStorage(path, read_only=True):
        assert len(files_at(path)) == 4
    with FileStorage(path):
        assert files_at(path) == {"data.fs", "data.fs.oidx"}


def test_checksums(path: Path) -> None:
    """Packed transactions have checksums of their own, of which damage is found."""
    with FileStorage(path) as storage:
        storage.pack(storage.lastTransaction(), refer)
        generation = storage.engine.generation
        position = generation.log.record(generation.index.get(B)[0]).data_at
    data = bytearray(path.read_bytes())
    data[position] ^= 1
    path.write_bytes(data)
    with FileStorage(path) as storage, pytest.raises(CorruptedDataError, match="checksum"):
        list(storage.iterator())


def test_damage_is_not_packed(path: Path) -> None:
    """A damaged record ends the pack, and everything is as it was: else the damage would get a
    checksum of its own."""
    with FileStorage(path) as storage:
        generation = storage.engine.generation
        position = generation.log.record(generation.index.get(ROOT_OID)[0]).data_at
        with open(path, "r+b") as file:
            file.seek(position)
            file.write(b"X")
        with pytest.raises(CorruptedDataError, match="checksum"):
            storage.pack(storage.lastTransaction(), refer)
        assert storage.load(B)[0] == record("b1")
    assert files_at(path) == {"data.fs", "data.fs.oidx"}


def test_read_only(path: Path) -> None:
    """A storage that is open for reading only cannot be packed."""
    with FileStorage(path, read_only=True) as storage, pytest.raises(ReadOnlyError):
        storage.pack(storage.lastTransaction(), refer)


def test_closed_meanwhile(path: Path) -> None:
    """Closing the storage ends a pack, and leaves nothing of it."""
    storage = FileStorage(path)

    def close(phase: str, done: int, total: int) -> None:
        storage.close()

    with pytest.raises(StorageClosedError):
        storage.pack(storage.lastTransaction(), refer, progress=close)
    with pytest.raises(StorageClosedError):
        storage.pack(storage.lastTransaction(), refer)
    assert files_at(path) == {"data.fs", "data.fs.oidx"}


def test_closed_by_another_thread(path: Path) -> None:
    """Closing waits for a pack in another thread to end, and to clean up."""
    for _ in range(5):
        storage, begun = FileStorage(path), threading.Event()

        def pack(storage: FileStorage = storage, begun: threading.Event = begun) -> None:
            with suppress(StorageClosedError):
                while True:
                    storage.pack(
                        storage.lastTransaction(), refer, progress=lambda *done: begun.set()
                    )

        thread = threading.Thread(target=pack)
        thread.start()
        begun.wait(30)
        storage.close()
        assert files_at(path) == {"data.fs", "data.fs.oidx"}
        thread.join()
    with FileStorage(path) as storage:
        assert storage.self_check() == [] and storage.load(B)[0] == record("b1")


def test_packing_while_merging(path: Path) -> None:
    """A pack from inside _p_resolveConflict, where it would wait for ever, is refused."""
    with FileStorage(path) as storage:

        class Packing:
            def resolve(self, *arguments: Any) -> bytes:
                with pytest.raises(StorageTransactionError, match="packed"):
                    storage.pack(storage.lastTransaction(), refer)
                return record("merged")

        storage.registerDB(Packing())
        old = storage.getTid(B)
        commit(storage, {B: (old, record("b4"))})
        commit(storage, {B: (old, record("b5"))})
        assert storage.load(B)[0] == record("merged")
        storage.pack(storage.lastTransaction(), refer)


def test_large_transactions(path: Path) -> None:
    """Transactions and records larger than what is read and written at once are packed."""
    with FileStorage(path) as storage:
        large = {oid_from_int(number): (NO_TID, record("x" * 300)) for number in range(10, 6000)}
        huge = oid_from_int(9)
        data = record("y" * 3_000_000, *large)
        commit(storage, {**large, huge: (NO_TID, data)})
        commit(storage, {ROOT_OID: (storage.getTid(ROOT_OID), record("root", huge))})
        last = commit(storage, {oid: (storage.getTid(oid), b"z" * 1000) for oid in large})
        before = contents(storage)
        storage.pack(before[-2][0], refer)
        storage.pack(before[-2][0], refer)
        assert storage.self_check() == [] and storage.load(huge)[0] == data
        assert contents(storage)[-1] == before[-1]
        storage.pack(last, refer)
        assert len(storage) == len(large) + 2 and list(storage.iterator())
        assert storage.self_check() == []


def test_oids_far_apart(path: Path) -> None:
    """Oids need not be numbers in a row."""
    far = [oid_from_int(1 << 20), oid_from_int((1 << 62) + 3), b"\xff" * 8]
    with FileStorage(path) as storage:
        commit(storage, {oid: (NO_TID, record("far")) for oid in far})
        commit(storage, {ROOT_OID: (storage.getTid(ROOT_OID), record("root", *far[1:]))})
        storage.pack(storage.lastTransaction(), refer)
        assert len(storage) == 3 and storage.load(far[2])[0] == record("far")


# -- readers in other processes


def test_a_reader_follows(path: Path) -> None:
    """A reader beside the writer goes on in the old file until it looks; then in the new one."""
    with FileStorage(path) as writer, FileStorage(path, read_only=True) as reader:
        tids = [entry[0] for entry in contents(writer)]
        before = contents(reader)
        commit(writer, {B: (writer.getTid(B), record("b3"))})
        writer.pack(writer.lastTransaction(), refer)
        last = commit(writer, {A: (writer.getTid(A), record("a4", B))})
        assert contents(reader) == before
        assert reader.loadBefore(B, next_tid(tids[3]))[0] == record("b1")
        assert reader.loadSerial(C, tids[0]) == record("c0")
        reader.poll()
        assert reader.lastTransaction() == last and contents(reader) == contents(writer)
        assert reader.load(B)[0] == record("b3") and len(reader) == 3
        with pytest.raises(POSKeyError):
            reader.load(C)
        commit(writer, {B: (writer.getTid(B), record("b5"))})
        reader.poll()
        assert reader.load(B)[0] == record("b5")


def test_a_reader_is_opened_between(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A reader that opens the log before it is replaced, and the index after, notices."""
    with FileStorage(path) as writer:
        open_index = opening.open_index

        def packed_first(*arguments: Any, **options: Any) -> Any:
            monkeypatch.undo()
            writer.pack(writer.lastTransaction(), refer)
            return open_index(*arguments, **options)

        monkeypatch.setattr(opening, "open_index", packed_first)
        with FileStorage(path, read_only=True) as reader:
            assert contents(reader) == contents(writer) and reader.self_check() == []


# -- power cuts and full disks


class Packed:
    """A storage on a faulty disk, filled, packed and used on; `before` and `after` are what it
    has before and after the pack, `began` and `ended` the numbers of operations."""

    def __init__(self, *, keep_old: bool = False) -> None:
        self.files = FaultyFiles()
        with FileStorage(PATH, files=self.files, preallocate_bytes=500) as storage:
            fill(storage)
            self.before = contents(storage)
            self.began = len(self.files.operations)
            storage.pack(self.before[1][0], refer, keep_old=keep_old)
            self.ended = len(self.files.operations)
            self.after = contents(storage)
            commit(storage, {B: (storage.getTid(B), record("b4"))})
            self.committed = len(self.files.operations)


@pytest.mark.parametrize("survival", SURVIVALS)
@pytest.mark.parametrize("keep_old", [False, True])
def test_power_lost(survival: str, keep_old: bool) -> None:
    """Power lost after any operation of a pack leaves the old file or the new one, complete; and
    a commit after it is never lost."""
    packed = Packed(keep_old=keep_old)
    seen = set()
    for count in range(packed.began, len(packed.files.operations) + 1):
        disk = packed.files.crashed(count, survival, count)
        with FileStorage(PATH, files=disk) as storage:
            found = contents(storage)
            assert found[: len(packed.after)] == packed.after or found == packed.before, count
            assert storage.self_check() == []
            seen.add(found == packed.before)
            if count >= packed.ended:
                assert found != packed.before
            if count >= packed.committed:
                assert storage.load(B)[0] == record("b4")
            commit(storage, {C: (storage.getTid(C) if found == packed.before else NO_TID, b"c")})
            storage.pack(storage.lastTransaction(), refer)
            assert storage.self_check() == [] and storage.load(A)[0] == record("a1", B)
        assert set(disk.contents) <= {PATH, PATH + ".oidx", PATH + ".old"}
    assert seen == {True, False}


@pytest.mark.parametrize("code", [errno.ENOSPC, errno.EIO])
@pytest.mark.parametrize("is_lasting", [False, True])
def test_errors_of_the_disk(code: int, is_lasting: bool) -> None:
    """Any operation of a pack may fail: the storage goes on, with the old file or the new, or
    says that it cannot; nothing is lost."""
    packed = Packed()
    for number in range(packed.began, packed.ended):
        files = FaultyFiles()
        storage = FileStorage(PATH, files=files, preallocate_bytes=500)
        fill(storage)
        if is_lasting:
            files.fail_after = (number, code)
        else:
            files.fail[number] = code
        before = contents(storage)
        try:
            storage.pack(before[1][0], refer)
        except (OSError, ObjdbError):
            assert contents(storage) == before
        files.fail_after = None
        files.fail.clear()
        try:
            tid = commit(storage, {B: (storage.getTid(B), record("b4"))})
        except StorageFailedError:
            tid = None
        storage.close()
        with FileStorage(PATH, files=files) as storage:
            assert storage.self_check() == []
            assert tid is None or storage.load(B) == (record("b4"), tid)
            assert storage.load(A)[0] == record("a1", B)
        assert set(files.contents) == {PATH, PATH + ".oidx"}


def test_the_rename_is_not_confirmed(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Where it is not known whether the new file stays in place, nothing more is committed."""
    with FileStorage(path) as storage:
        rename = storage.engine.files.rename

        def unconfirmed(old: str, new: str) -> None:
            rename(old, new)
            raise OSError(errno.EIO, "the directory")

        monkeypatch.setattr(storage.engine.files, "rename", unconfirmed)
        with pytest.raises(StorageFailedError, match="Close the storage"):
            storage.pack(storage.lastTransaction(), refer)
        monkeypatch.undo()
        with pytest.raises(StorageFailedError):
            commit(storage, {B: (storage.getTid(B), record("b4"))})
    with FileStorage(path) as storage:
        assert storage.load(A)[0] == record("a1", B) and storage.self_check() == []


def test_too_little_space() -> None:
    """That the new file does not fit is noticed before anything is written."""
    files = FaultyFiles()
    with FileStorage(PATH, files=files) as storage:
        fill(storage)
        files.free_bytes = 1000
        count = len(files.operations)
        with pytest.raises(StorageSpaceError, match="free") as caught:
            storage.pack(storage.lastTransaction(), refer)
        assert caught.value.free == 1000 < caught.value.needed
        assert len(files.operations) == count
        files.free_bytes = caught.value.needed
        storage.pack(storage.lastTransaction(), refer)


# -- what others have begun


def test_voted_before(path: Path) -> None:
    """A transaction that voted when a pack wanted to swap the files is finished first."""
    with FileStorage(path) as storage:
        transaction = TransactionMetaData()
        finished: list[Tid] = []

        def work(phase: str, done: int, total: int) -> None:
            if not finished and phase == "copy":
                storage.tpc_begin(transaction)
                storage.store(B, storage.getTid(B), record("b4"), "", transaction)
                storage.tpc_vote(transaction)
                finished.append(storage.tpc_finish(transaction))

        storage.pack(storage.lastTransaction(), refer, progress=work)
        assert storage.load(B) == (record("b4"), finished[0])
        assert storage.loadBefore(B, finished[0])[0] == record("b1")
        assert storage.loadBefore(B, next_tid(finished[0]))[0] == record("b4")


@pytest.mark.parametrize("linked", [[], [C]])
def test_committed_at_the_last_moment(path: Path, linked: list[Oid]) -> None:
    """What is committed behind the last round of copying is in the packed file; so is what that
    links again."""
    with FileStorage(path) as storage:
        tids: list[Tid] = []

        def work(phase: str, done: int, total: int) -> None:
            if phase == "follow" and not tids:
                tids.append(commit(storage, {A: (storage.getTid(A), record("late", B, *linked))}))

        storage.pack(storage.lastTransaction(), refer, progress=work)
    with FileStorage(path) as storage:
        assert storage.load(A) == (record("late", B, *linked), tids[0])
        assert all(storage.load(oid)[0] == record("c0") for oid in linked)
        assert len(storage) == 3 + len(linked)


def test_oids_survive(path: Path) -> None:
    """Oids of objects that went are not handed out again, also not after opening again."""
    largest: Oid = oid_from_int(1000)
    with FileStorage(path) as storage:
        commit(storage, {largest: (NO_TID, record("large"))})
        storage.pack(storage.lastTransaction(), refer)
        assert storage.new_oid() > largest
    with FileStorage(path) as storage:
        assert storage.new_oid() > largest
