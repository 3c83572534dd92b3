"""Undo: the part of the conformance suite about
`IStorageUndoable`. See `conformance`."""

from __future__ import annotations

import pickle
import threading
from typing import Any

import pytest

from objdb.errors import (
    MultipleUndoErrors,
    StorageTransactionError,
    UndoError,
)
from objdb.ids import NO_TID, Oid, Tid, next_tid
from objdb.interfaces import IStorageUndoable
from objdb.storage.commit import TransactionMetaData
from objdb.testing.helpers import Joining, commit, current, require, undo


class UndoConformance:
    """The tests; for `StorageConformance`, which has the fixtures."""

    @pytest.fixture
    def undoable(self, storage: Any) -> Any:
        """A storage with a root record that can undo."""
        require(storage, IStorageUndoable)
        assert storage.supportsUndo()
        return storage

    def three(self, storage: Any) -> tuple[Oid, list[Tid]]:
        """Make an object with three revisions; return its oid and their tids."""
        oid, tids = storage.new_oid(), [NO_TID]
        for record in (b"one", b"two", b"three"):
            tids.append(commit(storage, {oid: (tids[-1], record)}))
        return oid, tids[1:]

    # -- what is undone

    def test_undo_by_id(self, undoable: Any) -> None:
        """Ids come from undoLog, as text; as bytes they are taken too."""
        oid, _ = self.three(undoable)
        transaction_id = undoable.undoLog(0, -1)[0]["id"]
        assert isinstance(transaction_id, str)
        undo(undoable, transaction_id)
        assert current(undoable, oid) == b"two"
        undo(undoable, undoable.undoLog(0, -1)[0]["id"].encode())
        assert current(undoable, oid) == b"three"

    def test_undo_many_objects(self, undoable: Any) -> None:
        """All objects of a transaction are undone, large ones as well; undo names them."""
        oids = [undoable.new_oid() for _ in range(30)]
        first = commit(undoable, {oid: (NO_TID, b"1" * 10**i) for i, oid in enumerate(oids[:6])})
        changes = dict.fromkeys(oids[:6], (first, b"2"))
        second = commit(undoable, {**changes, **dict.fromkeys(oids[6:], (NO_TID, b"new"))})
        transaction = TransactionMetaData()
        undoable.tpc_begin(transaction)
        _, changed = undoable.undo(second, transaction)
        assert sorted(changed) == sorted(oids)
        undoable.tpc_vote(transaction)
        undoable.tpc_finish(transaction)
        found = [current(undoable, oid) for oid in oids]
        assert found == [b"1" * 10**i for i in range(6)] + [None] * 24

    # -- what has changed since

    def test_undo_cannot_merge(self, undoable: Any) -> None:
        """An object that was changed since and cannot be merged is an UndoError that names it,
        and nothing is changed."""
        undoable.registerDB(Joining())
        oid, other = undoable.new_oid(), undoable.new_oid()
        first = commit(undoable, {oid: (NO_TID, b"1"), other: (NO_TID, b"1")})
        second = commit(undoable, {oid: (first, b"2"), other: (first, b"2")})
        third = commit(undoable, {oid: (second, b"stubborn")})
        with pytest.raises(UndoError, match="stands in the way") as caught:
            undo(undoable, second)
        error = pickle.loads(pickle.dumps(caught.value))
        assert (error.oid, error.tid) == (oid, second)
        assert "Stubborn" in error.reason and str(error) == str(caught.value)
        assert undoable.load(oid) == (b"stubborn", third)
        assert undoable.load(other) == (b"2", second)

    def test_undo_names_all_obstacles(self, undoable: Any) -> None:
        """Several objects in the way are a MultipleUndoErrors that lists each with its reason."""
        changed, created, removed, again, fine = (undoable.new_oid() for _ in range(5))
        first = commit(
            undoable, dict.fromkeys((changed, removed, again, fine), (NO_TID, b"1"))
        )
        second = commit(
            undoable, {
                changed: (first, b"2"), created: (NO_TID, b"2"), removed: (first, b"2"),
                again: (first, None), fine: (first, b"2"),
            },
        )
        commit(
            undoable, {
                changed: (second, b"3"), created: (second, b"3"), removed: (second, None),
                again: (second, b"3"),
            },
        )
        before = {oid: current(undoable, oid) for oid in (changed, created, removed, again, fine)}
        with pytest.raises(MultipleUndoErrors) as caught:
            undo(undoable, second)
        error: MultipleUndoErrors = pickle.loads(pickle.dumps(caught.value))
        reasons = dict(error.reasons)
        assert set(reasons) == {changed, created, removed, again}
        for oid, words in (
            (changed, "cannot be merged"), (created, "created here"),
            (removed, "deleted"), (again, "created again"),
        ):
            assert words in reasons[oid]
            assert hex(int.from_bytes(oid, "big")) in str(error)
        assert before == {oid: current(undoable, oid) for oid in before}

    # -- others who commit between undo and vote

    def test_vote_waits_for_another_commit(self, undoable: Any) -> None:
        """An undo whose vote waits for the commit of another sees what that has changed."""
        oid, tids = self.three(undoable)
        other, mine = TransactionMetaData(), TransactionMetaData()
        undoable.tpc_begin(mine)
        undoable.undo(tids[2], mine)
        undoable.tpc_begin(other)
        undoable.store(oid, tids[2], b"four", "", other)
        undoable.tpc_vote(other)
        errors: list[BaseException] = []
        voting = threading.Event()

        def vote() -> None:
            voting.set()
            try:
                undoable.tpc_vote(mine)
            except UndoError as error:
                errors.append(error)
            undoable.tpc_abort(mine)

        thread = threading.Thread(target=vote)
        thread.start()
        voting.wait()
        undoable.tpc_finish(other)
        thread.join()
        assert len(errors) == 1
        assert current(undoable, oid) == b"four"

    # -- what cannot be undone

    @pytest.mark.parametrize("transaction_id", [
        "", "no id", "AAAA", "!" * 12, "A" * 24, b"\xff" * 12, b"1234567", None, 7, ["x"],
    ])
    def test_malformed_ids(self, undoable: Any, transaction_id: Any) -> None:
        """undo raises an UndoError for a value that is not an id."""
        with pytest.raises(UndoError, match="not the id of a transaction"):
            undo(undoable, transaction_id)

    def test_unknown_ids(self, undoable: Any) -> None:
        """undo raises an UndoError that names a tid which no transaction has."""
        _, tids = self.three(undoable)
        for tid in (NO_TID, next_tid(tids[0]), next_tid(tids[2]), b"\x7f" * 8):
            with pytest.raises(UndoError, match="no such transaction") as caught:
                undo(undoable, tid)
            assert caught.value.tid == tid

    def test_packed_transactions(self, undoable: Any) -> None:
        """A transaction that is marked as packed is not listed, nor what is before it, and cannot
        be undone."""
        oid, transaction = undoable.new_oid(), TransactionMetaData()
        tid = (int.from_bytes(undoable.lastTransaction(), "big") + 2**20).to_bytes(8, "big")
        undoable.tpc_begin(transaction, tid, "p")
        undoable.store(oid, NO_TID, b"packed", "", transaction)
        undoable.tpc_vote(transaction)
        undoable.tpc_finish(transaction)
        with pytest.raises(UndoError, match="packed"):
            undo(undoable, tid)
        assert undoable.undoLog(0, -9) == []
        commit(undoable, {oid: (tid, b"later")}, description="later")
        assert [entry["description"] for entry in undoable.undoLog(0, -9)] == ["later"]
        undo(undoable, undoable.undoLog(0, -1)[0]["id"])
        assert current(undoable, oid) == b"packed"

    def test_undo_out_of_order(self, undoable: Any) -> None:
        """undo needs a transaction that has begun and not voted."""
        _, tids = self.three(undoable)
        transaction = TransactionMetaData()
        with pytest.raises(StorageTransactionError):
            undoable.undo(tids[2], transaction)
        undoable.tpc_begin(transaction)
        undoable.tpc_vote(transaction)
        with pytest.raises(StorageTransactionError):
            undoable.undo(tids[2], transaction)
        undoable.tpc_abort(transaction)

    # -- the preview

    def test_preview(self, undoable: Any) -> None:
        """preview_undo says what undoing would do, or why it cannot, and does nothing."""
        oid, tids = self.three(undoable)
        last = undoable.lastTransaction()
        [found] = undoable.preview_undo([tids[2]])
        assert found == (oid, b"three", b"two", None)
        [found] = undoable.preview_undo([tids[2], tids[1], tids[0]])
        assert found == (oid, b"three", None, None)
        [found] = undoable.preview_undo([tids[1], tids[0]])
        assert found.oid == oid and "cannot be merged" in found.obstacle
        found, other = undoable.preview_undo(["nonsense", NO_TID])
        assert found.oid is None and "not the id" in found.obstacle
        assert other.oid is None and "no such transaction" in other.obstacle
        assert undoable.preview_undo([]) == []
        assert (undoable.load(oid)[0], undoable.lastTransaction()) == (b"three", last)
