"""What every storage that can undo must do: the part of the conformance suite about
`IStorageUndoable`. See `conformance`."""

from __future__ import annotations

import pickle
import threading
from typing import Any

import pytest

from objdb.errors import (
    ConflictError,
    MultipleUndoErrors,
    StorageTransactionError,
    UndoError,
)
from objdb.ids import NO_TID, ROOT_OID, Oid, Tid, next_tid
from objdb.interfaces import IStorageIteration, IStorageUndoable
from objdb.storage.commit import TransactionMetaData
from objdb.testing.helpers import commit, contents, current, require, undo


class Joining:
    """A database whose resolver joins the three records, unless one says otherwise."""

    calls: list[tuple[bytes, bytes, bytes]]

    def __init__(self) -> None:
        self.calls = []

    def resolve(
        self, oid: Oid, old: bytes, committed: bytes, new: bytes, serials: tuple[Tid, Tid]
    ) -> bytes:
        """Return what the arguments were; refuse where one contains "stubborn"."""
        if b"stubborn" in old + committed + new:
            raise ConflictError(oid=oid, class_name="Stubborn", serials=serials)
        self.calls.append((old, committed, new))
        return b"|".join((old, committed, new))


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

    def test_undo(self, undoable: Any) -> None:
        """Undoing the last change of an object gives it the revision before, as a new one."""
        oid, tids = self.three(undoable)
        tid = undo(undoable, tids[2])
        assert tid > tids[2]
        assert undoable.load(oid) == (b"two", tid)
        assert undoable.loadSerial(oid, tids[2]) == b"three"
        assert undoable.loadBefore(oid, tid) == (b"three", tids[2], tid)
        commit(undoable, {oid: (tid, b"four")})
        assert undoable.loadBefore(oid, next_tid(tid))[0] == b"two"

    def test_undo_by_id(self, undoable: Any) -> None:
        """Ids come from undoLog, as text; as bytes they are taken too."""
        oid, _ = self.three(undoable)
        transaction_id = undoable.undoLog(0, -1)[0]["id"]
        assert isinstance(transaction_id, str)
        undo(undoable, transaction_id)
        assert current(undoable, oid) == b"two"
        undo(undoable, undoable.undoLog(0, -1)[0]["id"].encode())
        assert current(undoable, oid) == b"three"

    def test_undo_a_creation(self, undoable: Any) -> None:
        """An object whose creation is undone does not exist, and did exist before."""
        oid = undoable.new_oid()
        made = commit(undoable, {oid: (NO_TID, b"made")})
        gone = undo(undoable, made)
        assert current(undoable, oid) is None
        assert undoable.loadBefore(oid, gone) == (b"made", made, gone)
        back = undo(undoable, gone)
        assert undoable.load(oid) == (b"made", back)
        undo(undoable, back)
        assert current(undoable, oid) is None

    def test_undo_a_deletion(self, undoable: Any) -> None:
        """A deleted object is back."""
        oid = undoable.new_oid()
        made = commit(undoable, {oid: (NO_TID, b"made")})
        tid = undo(undoable, commit(undoable, {oid: (made, None)}))
        assert undoable.load(oid) == (b"made", tid)

    def test_redo(self, undoable: Any) -> None:
        """Undo is undone, any number of times."""
        oid, tids = self.three(undoable)
        tid = tids[2]
        for expected in (b"two", b"three") * 4:
            tid = undo(undoable, tid)
            assert undoable.load(oid) == (expected, tid)

    def test_undo_step_by_step(self, undoable: Any) -> None:
        """Undoing one transaction after the other, backwards, takes back all: data that an undo
        has brought back count as those of the transaction that wrote them."""
        oid, tids = self.three(undoable)
        for tid, expected in zip(reversed(tids), (b"two", b"one", None), strict=True):
            undo(undoable, tid)
            assert current(undoable, oid) == expected

    def test_undo_several_at_once(self, undoable: Any) -> None:
        """Transactions undone in one: each finds what those before it made."""
        oid, tids = self.three(undoable)
        other = undoable.new_oid()
        late = commit(undoable, {other: (NO_TID, b"other")})
        tid = undo(undoable, late, *reversed(tids[1:]))
        assert undoable.load(oid) == (b"one", tid)
        assert current(undoable, other) is None
        undo(undoable, tid)
        assert (current(undoable, oid), current(undoable, other)) == (b"three", b"other")

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

    def test_undo_nothing(self, undoable: Any) -> None:
        """A transaction that changed nothing can be undone."""
        undo(undoable, commit(undoable, {}))

    def test_undo_is_all_or_nothing(self, undoable: Any) -> None:
        """An aborted undo, before or after the vote, leaves nothing."""
        oid, tids = self.three(undoable)
        for vote in (False, True):
            transaction = TransactionMetaData()
            undoable.tpc_begin(transaction)
            undoable.undo(tids[2], transaction)
            if vote:
                undoable.tpc_vote(transaction)
            assert current(undoable, oid) == b"three"
            undoable.tpc_abort(transaction)
        assert undoable.load(oid) == (b"three", tids[2])

    def test_undone_data_is_named(self, undoable: Any) -> None:
        """The iterator names the revision whose data an undo has brought back."""
        require(undoable, IStorageIteration)
        oid, tids = self.three(undoable)
        tid = undo(undoable, tids[2])
        again = undo(undoable, undo(undoable, tid))
        _, last, _ = [t[-1] for t in contents(undoable)][-3:]
        assert last == [(oid, last[0][1], b"three", tids[2], "")]
        assert contents(undoable)[-1][-1] == [(oid, again, b"two", tids[1], "")]

    # -- what has changed since

    def test_equal_data_count_as_undone(self, undoable: Any) -> None:
        """Where the current data are what the undone transaction wrote, it is as if nothing had
        happened since."""
        oid, tids = self.three(undoable)
        back = commit(undoable, {oid: (tids[2], b"two")})
        undo(undoable, tids[1])
        assert current(undoable, oid) == b"one"
        assert back > tids[2]

    def test_undo_merges(self, undoable: Any) -> None:
        """What was changed since is merged: old is what is undone, new is what was before it."""
        database = Joining()
        undoable.registerDB(database)
        oid, tids = self.three(undoable)
        undo(undoable, tids[1])
        assert database.calls == [(b"two", b"three", b"one")]
        assert current(undoable, oid) == b"two|three|one"

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

    def test_undo_and_change(self, undoable: Any) -> None:
        """An object cannot be undone and changed in one transaction, in either order."""
        oid, tids = self.three(undoable)
        for undo_first in (True, False):
            transaction = TransactionMetaData()
            undoable.tpc_begin(transaction)
            if undo_first:
                undoable.undo(tids[2], transaction)
                with pytest.raises(UndoError):
                    undoable.store(oid, tids[2], b"four", "", transaction)
            else:
                undoable.store(oid, tids[2], b"four", "", transaction)
                with pytest.raises(UndoError):
                    undoable.undo(tids[2], transaction)
            undoable.tpc_abort(transaction)
        assert undoable.load(oid) == (b"three", tids[2])

    def test_undo_beside_changes(self, undoable: Any) -> None:
        """Other objects can be stored in the transaction that undoes."""
        oid, tids = self.three(undoable)
        other, transaction = undoable.new_oid(), TransactionMetaData()
        undoable.tpc_begin(transaction)
        undoable.store(other, NO_TID, b"other", "", transaction)
        undoable.undo(tids[2], transaction)
        undoable.tpc_vote(transaction)
        tid = undoable.tpc_finish(transaction)
        assert undoable.load(oid) == (b"two", tid)
        assert undoable.load(other) == (b"other", tid)

    def test_a_failed_undo_leaves_the_rest(self, undoable: Any) -> None:
        """After an undo that is refused, the transaction can go on with something else."""
        oid, tids = self.three(undoable)
        other, transaction = undoable.new_oid(), TransactionMetaData()
        undoable.tpc_begin(transaction)
        undoable.store(other, NO_TID, b"other", "", transaction)
        with pytest.raises(UndoError):
            undoable.undo(tids[1], transaction)
        undoable.tpc_vote(transaction)
        undoable.tpc_finish(transaction)
        assert (current(undoable, oid), current(undoable, other)) == (b"three", b"other")

    def test_the_root_stays(self, undoable: Any) -> None:
        """The creation of the root object cannot be undone."""
        with pytest.raises(UndoError, match="root object would not exist"):
            undo(undoable, undoable.getTid(ROOT_OID))

    # -- others who commit between undo and vote

    @pytest.mark.parametrize("change", ["merged", "stubborn", None])
    def test_changed_before_the_vote(self, undoable: Any, change: str | None) -> None:
        """What undoing makes of an object is found out again at the vote, if it was changed
        meanwhile: as if undo had been called then."""
        undoable.registerDB(Joining())
        oid, tids = self.three(undoable)
        transaction = TransactionMetaData()
        undoable.tpc_begin(transaction)
        undoable.undo(tids[2], transaction)
        commit(undoable, {oid: (tids[2], change.encode() if change else None)})
        if change == "merged":
            undoable.tpc_vote(transaction)
            undoable.tpc_finish(transaction)
            assert current(undoable, oid) == b"three|merged|two"
            return
        for _ in range(2):
            with pytest.raises(UndoError):
                undoable.tpc_vote(transaction)
        undoable.tpc_abort(transaction)
        assert current(undoable, oid) == (change.encode() if change else None)

    def test_changed_back_before_the_vote(self, undoable: Any) -> None:
        """An object that was changed and changed back meanwhile is undone."""
        oid, tids = self.three(undoable)
        transaction = TransactionMetaData()
        undoable.tpc_begin(transaction)
        undoable.undo(tids[2], transaction)
        undoable.undo(tids[1], transaction)
        tid = commit(undoable, {oid: (tids[2], b"four")})
        commit(undoable, {oid: (tid, b"three")})
        undoable.tpc_vote(transaction)
        tid = undoable.tpc_finish(transaction)
        assert undoable.load(oid) == (b"one", tid)

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

    def test_undo_beside_a_vote_that_is_aborted(self, undoable: Any) -> None:
        """An undo that is asked for while another transaction has voted does not see what that
        never commits."""
        oid, tids = self.three(undoable)
        other, mine = TransactionMetaData(), TransactionMetaData()
        undoable.tpc_begin(other)
        undoable.store(oid, tids[2], b"four", "", other)
        undoable.tpc_vote(other)
        undoable.tpc_begin(mine)
        try:
            undoable.undo(tids[2], mine)
        finally:
            undoable.tpc_abort(other)
        undoable.tpc_vote(mine)
        undoable.tpc_finish(mine)
        assert current(undoable, oid) == b"two"

    def test_two_undo_the_same(self, undoable: Any) -> None:
        """Of two transactions that undo the same, side by side, one wins."""
        oid, tids = self.three(undoable)
        both = TransactionMetaData(), TransactionMetaData()
        for transaction in both:
            undoable.tpc_begin(transaction)
            undoable.undo(tids[2], transaction)
        undoable.tpc_vote(both[0])
        undoable.tpc_finish(both[0])
        with pytest.raises(UndoError):
            undoable.tpc_vote(both[1])
        undoable.tpc_abort(both[1])
        assert current(undoable, oid) == b"two"

    def test_stale_change_after_an_undo(self, undoable: Any) -> None:
        """A change made from the revision that was undone is a conflict."""
        oid, tids = self.three(undoable)
        tid = undo(undoable, tids[2])
        with pytest.raises(ConflictError) as caught:
            commit(undoable, {oid: (tids[2], b"late")})
        assert caught.value.serials == (tid, tids[2])

    # -- what cannot be undone

    @pytest.mark.parametrize("transaction_id", [
        "", "no id", "AAAA", "!" * 12, "A" * 24, b"\xff" * 12, b"1234567", None, 7, ["x"],
    ])
    def test_malformed_ids(self, undoable: Any, transaction_id: Any) -> None:
        """Anything else than an id is an UndoError that says so."""
        with pytest.raises(UndoError, match="not the id of a transaction"):
            undo(undoable, transaction_id)

    def test_unknown_ids(self, undoable: Any) -> None:
        """A tid that no transaction here has is an UndoError that names it."""
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
