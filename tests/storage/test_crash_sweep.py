"""Power lost after every single operation of a workload, in every way: nothing acknowledged is
gone, nothing unacknowledged is half there."""

from __future__ import annotations

import errno

import pytest

from objdb.check import check
from objdb.errors import ConflictError, ObjdbError
from objdb.ids import NO_TID
from objdb.storage.commit import TransactionMetaData
from objdb.storage.file.format import START, STATUS_AT
from objdb.storage.file.storage import FileStorage
from objdb.testing.faults import SECTOR, SURVIVALS, FaultyFiles
from objdb.testing.helpers import current

PATH = "data.fs"
ROOT_RECORD = b"\x80\x03cpersistent.mapping\nPersistentMapping\n.\x80\x03}X\x04\x00\x00\x00data}s."


def open_storage(files: FaultyFiles) -> FileStorage:
    return FileStorage(PATH, files=files, preallocate_bytes=700, checkpoint_records=6)


class Workload:
    """Commits, undos, aborts at each stage, conflicts and checkpoints; keeps a model of what should
    be.

    `states` holds (number of operations when it was acknowledged, {oid: record}), one for each
    commit.
    """

    def __init__(self) -> None:
        self.files = FaultyFiles()
        self.states: list[tuple[int, dict[bytes, bytes | None]]] = []
        self.started: list[dict[bytes, bytes | None]] = []

    def run(self) -> None:
        self.storage = open_storage(self.files)
        self.tids: dict[bytes, bytes] = {}
        self.order: list[bytes] = []
        oids = [bytes(8), *(self.storage.new_oid() for _ in range(4))]
        self.commit({oids[0]: ROOT_RECORD, oids[1]: b"one"})
        self.commit({oids[2]: b"two" * 100, oids[3]: b"three"})
        self.abort({oids[1]: b"never" * 60}, vote=True)
        self.commit({oids[1]: b"one again"})
        self.abort({oids[2]: b"nor this"}, vote=False)
        self.conflict(oids[1])
        for i in range(4):
            self.commit({oids[4]: b"four %d" % i, oids[2]: b"two %d" % i})
        self.commit({b"\0\0\1\0\0\0\0\7": b"far away"})
        self.undo([1], {oids[4]: b"four 2", oids[2]: b"two 2"})
        self.undo([0], {oids[4]: b"four 3", oids[2]: b"two 3"})
        self.undo([2], {b"\0\0\1\0\0\0\0\7": None})
        self.storage.close()
        self.storage = open_storage(self.files)
        self.commit({oids[1]: b"after reopening", oids[3]: b"x" * 900})
        self.commit({oids[1]: b"last"})
        self.undo([0, 1], {oids[1]: b"one again", oids[3]: b"three"})
        self.commit({oids[1]: b"last of all"})

    def begin(self, changes: dict[bytes, bytes]) -> TransactionMetaData:
        transaction = TransactionMetaData("user", "a change")
        self.storage.tpc_begin(transaction)
        for oid, record in changes.items():
            self.storage.store(oid, self.tids.get(oid, NO_TID), record, "", transaction)
        return transaction

    def commit(self, changes: dict[bytes, bytes]) -> None:
        before = self.states[-1][1] if self.states else {}
        self.started.append({**before, **changes})
        transaction = self.begin(changes)
        self.storage.tpc_vote(transaction)
        self.finish(transaction, changes)

    def finish(
        self, transaction: TransactionMetaData, changes: dict[bytes, bytes | None]
    ) -> None:
        tid = self.storage.tpc_finish(transaction)
        self.order.append(tid)
        self.tids.update(dict.fromkeys(changes, tid))
        self.states.append((len(self.files.operations), self.started[-1]))

    def undo(self, ages: list[int], result: dict[bytes, bytes | None]) -> None:
        """Undo transactions of these ages, which gives these records."""
        self.started.append({**self.states[-1][1], **result})
        transaction = TransactionMetaData("user", "an undo")
        self.storage.tpc_begin(transaction)
        for age in ages:
            self.storage.undo(self.order[-1 - age], transaction)
        self.storage.tpc_vote(transaction)
        self.finish(transaction, result)

    def abort(self, changes: dict[bytes, bytes], *, vote: bool) -> None:
        transaction = self.begin(changes)
        if vote:
            self.storage.tpc_vote(transaction)
        self.storage.tpc_abort(transaction)

    def conflict(self, oid: bytes) -> None:
        transaction = TransactionMetaData()
        self.storage.tpc_begin(transaction)
        self.storage.store(oid, NO_TID, b"stale", "", transaction)
        with pytest.raises(ConflictError):
            self.storage.tpc_vote(transaction)
        self.storage.tpc_abort(transaction)


def contents(storage: FileStorage) -> dict[bytes, bytes | None]:
    """Everything in the storage, by its iterator."""
    found: dict[bytes, bytes | None] = {}
    for transaction in storage.iterator():
        for revision in transaction:
            found[revision.oid] = revision.data
    return found


@pytest.fixture(scope="module")
def workload() -> Workload:
    done = Workload()
    done.run()
    return done


@pytest.mark.parametrize("survival", SURVIVALS)
def test_power_lost_at_every_operation(workload: Workload, survival: str) -> None:
    """After a crash anywhere the storage opens with a whole number of transactions, no fewer
    than were acknowledged, checks clean, and takes the next commit."""
    total = len(workload.files.operations)
    for count in range(total + 1):
        for seed in range(1 if survival in ("lost", "kept") else 3):
            disk = workload.files.crashed(count, survival, seed)
            _check_reopened(workload, disk, count, f"after operation {count}, seed {seed}")


def _check_reopened(workload: Workload, disk: FaultyFiles, count: int, when: str) -> None:
    acknowledged = [state for at, state in workload.states if at <= count]
    storage = open_storage(disk)
    found = contents(storage)
    possible = [{}, *workload.started][len(acknowledged) :]
    assert found in possible, when
    loaded = {oid: current(storage, oid) for oid in found}
    assert loaded == found, when
    problems = [p for p in storage.self_check() if p]
    assert not problems, (when, problems)
    if bytes(8) in found:
        transaction = TransactionMetaData()
        storage.tpc_begin(transaction)
        storage.store(bytes(8), storage.getTid(bytes(8)), ROOT_RECORD + b"", "", transaction)
        storage.tpc_vote(transaction)
        storage.tpc_finish(transaction)
    storage.close()
    again = open_storage(FaultyFiles({p: bytes(c) for p, c in disk.contents.items()}))
    expected = dict(found)
    assert contents(again) == expected, when
    again.close()


@pytest.mark.parametrize("preallocate_bytes", [0, 4000])
def test_an_aborted_transaction_stays_aborted(preallocate_bytes: int) -> None:
    """Power lost in a commit that is written where an aborted one, of the same shape, was: the
    aborted one does not come back, whatever the disk kept."""
    files = FaultyFiles()
    storage = FileStorage(PATH, files=files, preallocate_bytes=preallocate_bytes)

    def write(data: bytes) -> TransactionMetaData:
        # The status byte, and the checksum, lie in other sectors than what comes before them.
        transaction = TransactionMetaData("", "d" * 600)
        storage.tpc_begin(transaction)
        storage.store(bytes(8), storage.lastTransaction(), data, "", transaction)
        storage.tpc_vote(transaction)
        return transaction

    storage.tpc_finish(write(b"before"))
    overhead = storage.getSize() - START - len(b"before")
    padding = SECTOR - (storage.getSize() + overhead + STATUS_AT) % SECTOR + SECTOR
    storage.tpc_finish(write(b"before".ljust(padding)))
    assert (storage.getSize() + STATUS_AT) % SECTOR == 0
    aborted = write(b"aborted" * 20)
    files.open("another file", "c")  # what was changed through a map may be written by now
    storage.tpc_abort(aborted)
    storage.tpc_finish(write(b"decided" * 20))
    assert files.operations[-1].kind == "sync"
    for survival in SURVIVALS:
        for seed in range(400):
            disk = files.crashed(len(files.operations) - 1, survival, seed)
            with FileStorage(PATH, files=disk) as found:
                data = found.load(bytes(8))[0]
                assert data.startswith((b"before", b"decided")), (survival, seed)


@pytest.mark.parametrize("code", [errno.ENOSPC, errno.EIO])
@pytest.mark.parametrize("lasting", [False, True], ids=["once", "from then on"])
def test_errors_at_every_operation(workload: Workload, code: int, lasting: bool) -> None:
    """A disk that is full, or fails, at any operation gives an error with a name; reopening
    shows all that was acknowledged and nothing by halves."""
    for number in range(len(workload.files.operations)):
        failing = Workload()
        if lasting:
            failing.files.fail_after = number, code
        else:
            failing.files.fail[number] = code
        error = None
        try:
            failing.run()
        except (ObjdbError, OSError) as caught:
            error = caught
        assert error is not None or not lasting, number
        failing.files.fail_after = None
        failing.files.fail.clear()
        disk = FaultyFiles({p: bytes(c) for p, c in failing.files.contents.items()})
        count = len(failing.files.operations)
        if PATH in disk.contents:
            _check_reopened(failing, disk, count, f"error at operation {number}")


def test_a_clean_close_checks_clean(workload: Workload) -> None:
    """The workload itself leaves a database that the whole check finds nothing wrong with."""
    disk = FaultyFiles({p: bytes(c) for p, c in workload.files.contents.items()})
    storage = open_storage(disk)
    assert check(storage).problems == []
    storage.close()
