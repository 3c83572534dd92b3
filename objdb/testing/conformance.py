"""The test suite that every storage must pass: subclass `StorageConformance` in a test module
and give it the fixture `make_storage`.

    class TestMyStorage(StorageConformance):
        @pytest.fixture
        def make_storage(self, tmp_path):
            return lambda: MyStorage(tmp_path / "data")

`make_storage()` opens the storage; if called again after `close()`, it must open the same one
(`persistent = False` says that this one forgets). What a storage does not declare by interface
is skipped, with the reason. `pytest --objdb-storage=MODULE:FUNCTION` does all this without a test
module: see `plugin`.
"""

from __future__ import annotations

import threading
from typing import Any

import pytest
from zope.interface.verify import verifyObject

from objdb.errors import (
    ConflictError,
    POSKeyError,
    ReadConflictError,
    StorageClosedError,
    StorageTransactionError,
    UsageError,
)
from objdb.ids import MAX_TID, NO_TID, ROOT_OID, Oid, Tid, next_tid
from objdb.interfaces import (
    IStorage,
    IStorageHistory,
    IStorageIteration,
    IStorageRestoreable,
    IStorageUndoable,
)
from objdb.storage.commit import TransactionMetaData
from objdb.testing.copying import CopyConformance
from objdb.testing.helpers import Make, commit, undo
from objdb.testing.history import HistoryConformance
from objdb.testing.packing import PackConformance
from objdb.testing.script import Run, Script, scripts
from objdb.testing.threads import ThreadConformance
from objdb.testing.undoing import UndoConformance
from objdb.testing.undolog import UndoLogConformance
from objdb.testing.versions import VersionConformance

SCRIPTS = [
    pytest.param(script, id=f"{about}: {script.name}")
    for about in ("undo", "versions", "packing") for script in scripts(about)
]


class Merging:
    """A database that merges all changes."""

    def resolve(
        self, oid: Oid, old: bytes, committed: bytes, new: bytes, serials: tuple[Tid, Tid]
    ) -> bytes:
        """Join the three records."""
        return b"|".join((old, committed, new))


class CoreConformance(ThreadConformance):
    """The part of the suite for every storage, with history or without. Each test gets a fresh,
    empty storage."""

    persistent = True

    @pytest.fixture
    def make_storage(self) -> Make:
        """Return a function that opens the storage under test."""
        raise NotImplementedError("give the suite a fixture make_storage")

    @pytest.fixture
    def storage(self, make_storage: Make) -> Any:
        """An open storage with a root record, closed afterwards."""
        storage = make_storage()
        commit(storage, {ROOT_OID: (NO_TID, b"root")})
        yield storage
        storage.close()

    # -- the interface

    def test_interface(self, storage: Any) -> None:
        """The storage has every method it declares, with the signature it declares."""
        assert IStorage.providedBy(storage)
        for interface in (
            IStorage, IStorageHistory, IStorageIteration, IStorageRestoreable, IStorageUndoable,
        ):
            if interface.providedBy(storage):
                verifyObject(interface, storage)

    def test_facts(self, storage: Any) -> None:
        """Name, sort key, size and length say something of the right type."""
        assert isinstance(storage.getName(), str)
        assert isinstance(storage.sortKey(), str)
        assert storage.getSize() > 0
        assert len(storage) == 1
        assert not storage.isReadOnly()

    def test_new_oids_are_unique(self, storage: Any) -> None:
        """New oids given to several threads are 8 bytes, never the root's, never the same."""
        oids: list[Oid] = []
        threads = [
            threading.Thread(target=lambda: oids.extend(storage.new_oid() for _ in range(200)))
            for _ in range(4)
        ]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        assert len(set(oids)) == 800
        assert all(len(oid) == 8 and oid != ROOT_OID for oid in oids)

    def test_oids_stored_by_others_are_not_handed_out(self, storage: Any) -> None:
        """new_oid never returns an oid that was stored."""
        oid = (int.from_bytes(storage.new_oid(), "big") + 3).to_bytes(8, "big")
        commit(storage, {oid: (NO_TID, b"data")})
        assert all(storage.new_oid() != oid for _ in range(10))

    # -- reading

    def test_load(self, storage: Any) -> None:
        """A committed record loads, with its tid."""
        oid = storage.new_oid()
        tid = commit(storage, {oid: (NO_TID, b"one")})
        assert storage.load(oid) == (b"one", tid)
        assert storage.getTid(oid) == tid
        assert storage.loadSerial(oid, tid) == b"one"

    @pytest.mark.parametrize("size", [1, 2, 469, 470, 471, 4096, 1_000_000])
    def test_record_sizes(self, storage: Any, size: int) -> None:
        """Records of any size load as they were stored."""
        oid, record = storage.new_oid(), (bytes(range(251)) * (size // 251 + 1))[:size]
        commit(storage, {oid: (NO_TID, record)})
        assert storage.load(oid)[0] == record

    def test_load_before(self, storage: Any) -> None:
        """loadBefore finds the revision before a tid, and the tid that ended it."""
        oid = storage.new_oid()
        tids = [commit(storage, {oid: (NO_TID, b"0")})]
        for i in range(1, 5):
            tids.append(commit(storage, {oid: (tids[-1], b"%d" % i)}))
        for i, tid in enumerate(tids):
            following = tids[i + 1] if i < 4 else None
            assert storage.loadBefore(oid, next_tid(tid)) == (b"%d" % i, tid, following)
            if following:
                assert storage.loadBefore(oid, following) == (b"%d" % i, tid, following)
        assert storage.loadBefore(oid, tids[0]) is None
        assert storage.loadBefore(oid, MAX_TID) == (b"4", tids[4], None)

    def test_load_serial(self, storage: Any) -> None:
        """loadSerial gives exactly the revision asked for."""
        oid = storage.new_oid()
        first = commit(storage, {oid: (NO_TID, b"first")})
        second = commit(storage, {oid: (first, b"second")})
        assert storage.loadSerial(oid, first) == b"first"
        assert storage.loadSerial(oid, second) == b"second"
        with pytest.raises(POSKeyError):
            storage.loadSerial(oid, next_tid(first))

    def test_unknown_oid(self, storage: Any) -> None:
        """An unknown oid is a POSKeyError that carries it, in every call."""
        oid = b"\0\0\0\0\0\xbb\xbb\xbb"
        for call in (
            lambda: storage.load(oid),
            lambda: storage.loadBefore(oid, MAX_TID),
            lambda: storage.loadSerial(oid, b"\1" * 8),
            lambda: storage.getTid(oid),
        ):
            with pytest.raises(POSKeyError) as caught:
                call()
            assert caught.value.oid == oid

    # -- committing

    def test_nothing_is_seen_before_finish(self, storage: Any) -> None:
        """Staged and voted data cannot be loaded, and lastTransaction stays, until finish."""
        oid, before = storage.new_oid(), storage.lastTransaction()
        transaction = TransactionMetaData()
        storage.tpc_begin(transaction)
        storage.store(oid, NO_TID, b"data", "", transaction)
        for _ in range(2):
            with pytest.raises(POSKeyError):
                storage.load(oid)
            assert storage.lastTransaction() == before
            if _ == 0:
                storage.tpc_vote(transaction)
        storage.tpc_finish(transaction)
        assert storage.load(oid)[0] == b"data"

    def test_finish_calls_back_first(self, storage: Any) -> None:
        """The callback gets the tid before lastTransaction moves and before data is visible."""
        oid, before = storage.new_oid(), storage.lastTransaction()
        transaction = TransactionMetaData()
        storage.tpc_begin(transaction)
        storage.store(oid, NO_TID, b"data", "", transaction)
        storage.tpc_vote(transaction)
        seen = []

        def callback(tid: Tid) -> None:
            with pytest.raises(POSKeyError):
                storage.load(oid)
            seen.append((tid, storage.lastTransaction()))

        tid = storage.tpc_finish(transaction, callback)
        assert seen == [(tid, before)]
        assert storage.lastTransaction() == tid > before

    def test_callback_raises(self, storage: Any) -> None:
        """tpc_finish raises what the callback raises; the transaction is committed."""
        oid = storage.new_oid()
        transaction = TransactionMetaData()
        storage.tpc_begin(transaction)
        storage.store(oid, NO_TID, b"data", "", transaction)
        storage.tpc_vote(transaction)

        def callback(tid: Tid) -> None:
            raise ZeroDivisionError

        with pytest.raises(ZeroDivisionError):
            storage.tpc_finish(transaction, callback)
        data, tid = storage.load(oid)
        assert data == b"data" and tid == storage.lastTransaction()
        assert commit(storage, {oid: (tid, b"more")}) > tid

    def test_tids_grow(self, storage: Any) -> None:
        """Each transaction's tid is greater than the one before."""
        tids = [commit(storage, {storage.new_oid(): (NO_TID, b"x")}) for _ in range(50)]
        assert tids == sorted(set(tids))

    def test_abort(self, storage: Any) -> None:
        """An aborted transaction leaves nothing, before and after the vote."""
        oid = storage.new_oid()
        for vote in (False, True):
            transaction = TransactionMetaData()
            storage.tpc_begin(transaction)
            storage.store(oid, NO_TID, b"never", "", transaction)
            if vote:
                storage.tpc_vote(transaction)
            storage.tpc_abort(transaction)
        with pytest.raises(POSKeyError):
            storage.load(oid)
        assert commit(storage, {oid: (NO_TID, b"now")}) == storage.getTid(oid)

    def test_wrong_transaction(self, storage: Any) -> None:
        """Calls with a transaction that did not begin, began twice or ended, are refused by
        name; tpc_abort ignores them."""
        stranger = TransactionMetaData()
        storage.tpc_abort(stranger)
        for call in (
            lambda: storage.store(ROOT_OID, NO_TID, b"x", "", stranger),
            lambda: storage.store(ROOT_OID, NO_TID, b"", "", stranger),  # before it is looked at
            lambda: storage.restore(ROOT_OID, NO_TID, b"", "", None, stranger),
            lambda: storage.restore(ROOT_OID, NO_TID, b"x", "", None, stranger),
            lambda: storage.deleteObject(ROOT_OID, NO_TID, stranger),
            lambda: storage.checkCurrentSerialInTransaction(ROOT_OID, NO_TID, stranger),
            lambda: storage.tpc_vote(stranger),
            lambda: storage.tpc_finish(stranger),
        ):
            with pytest.raises(StorageTransactionError):
                call()
        transaction = TransactionMetaData()
        storage.tpc_begin(transaction)
        with pytest.raises(StorageTransactionError):
            storage.tpc_begin(transaction)
        with pytest.raises(StorageTransactionError):
            storage.tpc_finish(transaction)  # not voted
        storage.tpc_vote(transaction)
        with pytest.raises(StorageTransactionError):
            storage.store(ROOT_OID, NO_TID, b"late", "", transaction)
        storage.tpc_abort(transaction)

    def test_empty_records_are_refused(self, storage: Any) -> None:
        """An empty record is refused; it is not taken for a deletion."""
        transaction = TransactionMetaData()
        storage.tpc_begin(transaction)
        with pytest.raises(UsageError, match="deleteObject"):
            storage.store(ROOT_OID, storage.getTid(ROOT_OID), b"", "", transaction)
        with pytest.raises(UsageError, match="deleteObject"):
            storage.restore(ROOT_OID, NO_TID, b"", "", None, transaction)
        storage.tpc_abort(transaction)

    def test_storing_what_was_deleted(self, storage: Any) -> None:
        """A deleted object is stored again based on its tombstone; any other base is a conflict."""
        oid = storage.new_oid()
        first = commit(storage, {oid: (NO_TID, b"one")})
        gone = commit(storage, {oid: (first, None)})
        for base in (NO_TID, first):
            with pytest.raises(ConflictError):
                commit(storage, {oid: (base, b"again")})
        again = commit(storage, {oid: (gone, b"again")})
        assert storage.load(oid) == (b"again", again)

    def test_store_twice(self, storage: Any) -> None:
        """The second record of an oid in one transaction replaces the first."""
        oid = storage.new_oid()
        transaction = TransactionMetaData()
        storage.tpc_begin(transaction)
        storage.store(oid, NO_TID, b"first", "", transaction)
        storage.store(oid, NO_TID, b"second, longer", "", transaction)
        storage.tpc_vote(transaction)
        tid = storage.tpc_finish(transaction)
        assert storage.load(oid) == (b"second, longer", tid)

    def test_empty_transaction(self, storage: Any) -> None:
        """A transaction without records commits and moves lastTransaction."""
        before = storage.lastTransaction()
        assert commit(storage, {}) == storage.lastTransaction() > before

    # -- conflicts

    def test_conflict(self, storage: Any) -> None:
        """A record made from an old revision is refused with oid and serials, and nothing is
        stored; the storage goes on."""
        oid = storage.new_oid()
        first = commit(storage, {oid: (NO_TID, b"1")})
        second = commit(storage, {oid: (first, b"2")})
        with pytest.raises(ConflictError) as caught:
            commit(storage, {oid: (first, b"late"), storage.new_oid(): (NO_TID, b"with it")})
        assert caught.value.oid == oid
        assert caught.value.serials == (second, first)
        assert storage.load(oid) == (b"2", second)
        assert len(storage) == 2
        commit(storage, {oid: (second, b"3")})

    def test_conflict_between_staged(self, storage: Any) -> None:
        """Of two transactions staged side by side, the one that votes second conflicts."""
        oid = storage.new_oid()
        base = commit(storage, {oid: (NO_TID, b"1")})
        one, two = TransactionMetaData(), TransactionMetaData()
        for transaction in (one, two):
            storage.tpc_begin(transaction)
            storage.store(oid, base, b"mine", "", transaction)
        storage.tpc_vote(one)
        storage.tpc_finish(one)
        with pytest.raises(ConflictError):
            storage.tpc_vote(two)
        storage.tpc_abort(two)

    def test_new_object_conflict(self, storage: Any) -> None:
        """Creating an object that exists is a conflict."""
        with pytest.raises(ConflictError):
            commit(storage, {ROOT_OID: (NO_TID, b"another root")})

    def test_deletion_conflict(self, storage: Any) -> None:
        """Deleting an object that another transaction has changed, or the reverse, is a conflict,
        which is not merged."""
        storage.registerDB(Merging())
        oid = storage.new_oid()
        first = commit(storage, {oid: (NO_TID, b"1")})
        second = commit(storage, {oid: (first, b"2")})
        with pytest.raises(ConflictError):
            commit(storage, {oid: (first, None)})
        assert storage.load(oid) == (b"2", second)
        commit(storage, {oid: (second, None)})
        with pytest.raises(ConflictError):
            commit(storage, {oid: (second, b"3")})

    def test_resolution(self, storage: Any) -> None:
        """The database's resolver merges old, committed and new; the vote lists the oid."""
        storage.registerDB(Merging())
        oid = storage.new_oid()
        first = commit(storage, {oid: (NO_TID, b"old")})
        commit(storage, {oid: (first, b"committed")})
        transaction = TransactionMetaData()
        storage.tpc_begin(transaction)
        storage.store(oid, first, b"new", "", transaction)
        assert list(storage.tpc_vote(transaction)) == [oid]
        tid = storage.tpc_finish(transaction)
        assert storage.load(oid) == (b"old|committed|new", tid)

    def test_check_current(self, storage: Any) -> None:
        """A checked read passes while current, and is a ReadConflictError afterwards."""
        oid = storage.new_oid()
        first = commit(storage, {oid: (NO_TID, b"1")})
        for expected in (True, False):
            transaction = TransactionMetaData()
            storage.tpc_begin(transaction)
            storage.store(storage.new_oid(), NO_TID, b"x", "", transaction)
            storage.checkCurrentSerialInTransaction(oid, first, transaction)
            if expected:
                storage.tpc_vote(transaction)
                storage.tpc_finish(transaction)
                commit(storage, {oid: (first, b"2")})
            else:
                with pytest.raises(ReadConflictError):
                    storage.tpc_vote(transaction)
                storage.tpc_abort(transaction)

    # -- deleting and restoring

    def test_delete(self, storage: Any) -> None:
        """A deleted object is a POSKeyError now, and loads as of before."""
        oid = storage.new_oid()
        tid = commit(storage, {oid: (NO_TID, b"data")})
        gone = commit(storage, {oid: (tid, None)})
        with pytest.raises(POSKeyError):
            storage.load(oid)
        assert storage.loadBefore(oid, gone) == (b"data", tid, gone)

    def test_restore(self, storage: Any) -> None:
        """restore keeps the tid it is given and checks no conflict."""
        oid = storage.new_oid()
        commit(storage, {oid: (NO_TID, b"data")})
        tid = (int.from_bytes(storage.lastTransaction(), "big") + 2**40).to_bytes(8, "big")
        transaction = TransactionMetaData()
        storage.tpc_begin(transaction, tid, " ")
        storage.restore(oid, tid, b"restored", "", None, transaction)
        storage.tpc_vote(transaction)
        assert storage.tpc_finish(transaction) == tid
        assert storage.load(oid) == (b"restored", tid)
        late = TransactionMetaData()
        storage.tpc_begin(late, tid, " ")
        with pytest.raises(StorageTransactionError):
            storage.tpc_vote(late)  # not after the last one
        storage.tpc_abort(late)

    # -- closing

    def test_close(self, make_storage: Make) -> None:
        """A closed storage takes no transaction; closing twice does nothing."""
        storage = make_storage()
        commit(storage, {ROOT_OID: (NO_TID, b"root")})
        storage.close()
        storage.close()
        with pytest.raises(StorageClosedError):
            storage.tpc_begin(TransactionMetaData())
        with pytest.raises(StorageClosedError):
            storage.load(ROOT_OID)

    def test_reopen(self, make_storage: Make) -> None:
        """Committed transactions are there when the storage is opened again."""
        if not self.persistent:
            pytest.skip("this storage keeps nothing after it was closed")
        storage = make_storage()
        oid = storage.new_oid()
        tid = commit(storage, {ROOT_OID: (NO_TID, b"root"), oid: (NO_TID, b"data")})
        tid = commit(storage, {oid: (tid, b"more")}, description="note")
        if IStorageUndoable.providedBy(storage):
            undone = undo(storage, tid)
            storage.close()
            storage = make_storage()
            assert storage.load(oid) == (b"data", undone)
            tid = undo(storage, undone)
        storage.close()
        storage = make_storage()
        assert storage.load(oid) == (b"more", tid)
        assert len(storage) == 2
        assert storage.lastTransaction() == tid
        assert storage.new_oid() > oid
        storage.close()


class StorageConformance(
    CoreConformance, HistoryConformance, UndoConformance, UndoLogConformance, CopyConformance,
    VersionConformance, PackConformance,
):
    """The whole suite."""

    @pytest.mark.parametrize("script", SCRIPTS)
    def test_script(self, storage: Any, make_storage: Make, script: Script) -> None:
        """The storage does what the script says: see `script`."""
        script.require(storage)
        Run(script, storage).all(make_storage if self.persistent else None)
