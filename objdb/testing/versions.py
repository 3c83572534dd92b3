"""What every storage with versions must do: the part of the conformance suite about
`IStorageVersions`. See `conformance`."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest

from objdb.errors import (
    ConflictError,
    POSKeyError,
    ReadConflictError,
    StorageTransactionError,
    UndoError,
    Unsupported,
    VersionCommitError,
    VersionError,
    VersionLockError,
)
from objdb.ids import MAX_TID, NO_TID, ROOT_OID, Oid, Tid, next_tid
from objdb.interfaces import IStorageRestoreable, IStorageUndoable, IStorageVersions
from objdb.storage.commit import TransactionMetaData
from objdb.storage.memory import MappingStorage
from objdb.testing.helpers import Make, commit, contents, require, undo
from objdb.testing.undoing import Joining

Action = Callable[[Any], object]  # called with the transaction


def begin(storage: Any, *actions: Action) -> TransactionMetaData:
    """Begin a transaction and do these things in it."""
    transaction = TransactionMetaData()
    storage.tpc_begin(transaction)
    try:
        for action in actions:
            action(transaction)
    except BaseException:
        storage.tpc_abort(transaction)
        raise
    return transaction


def end(storage: Any, transaction: TransactionMetaData) -> Tid:
    """Vote and finish; abort what is refused."""
    try:
        storage.tpc_vote(transaction)
    except BaseException:
        storage.tpc_abort(transaction)
        raise
    tid: Tid = storage.tpc_finish(transaction)
    return tid


def perform(storage: Any, *actions: Action) -> Tid:
    """Do these things in one transaction, and commit it."""
    return end(storage, begin(storage, *actions))


class VersionConformance:
    """The tests; for `StorageConformance`, which has the fixtures."""

    @pytest.fixture
    def versioned(self, storage: Any) -> Any:
        """A storage with a root record that has versions."""
        require(storage, IStorageVersions)
        assert storage.supportsVersions()
        return storage

    def store(
        self, storage: Any, oid: Oid, base: Tid, record: bytes, version: str = ""
    ) -> Tid:
        """Commit one record in a version; return the tid."""
        return perform(storage, lambda t: storage.store(oid, base, record, version, t))

    def commit_version(self, storage: Any, source: str, destination: str = "") -> Tid:
        """Commit a version."""
        return perform(storage, lambda t: storage.commitVersion(source, destination, t))

    def abort_version(self, storage: Any, version: str) -> Tid:
        """Abort a version."""
        return perform(storage, lambda t: storage.abortVersion(version, t))

    def changed_in(self, storage: Any, version: str) -> tuple[Oid, Tid, Tid]:
        """Make an object, "out", and change it in a version to "in"; return oid and tids."""
        oid = storage.new_oid()
        first = commit(storage, {oid: (NO_TID, b"out")})
        return oid, first, self.store(storage, oid, first, b"in", version)

    def test_says_whether_it_has_versions(self, storage: Any) -> None:
        """A storage takes the name of a version, or refuses it, as supportsVersions says."""
        oid = storage.new_oid()
        assert storage.supportsVersions() == IStorageVersions.providedBy(storage)
        if storage.supportsVersions():
            tid = self.store(storage, oid, NO_TID, b"x", "plan")
            assert storage.load(oid, "plan") == (b"x", tid)
        else:
            with pytest.raises(Unsupported):
                self.store(storage, oid, NO_TID, b"x", "plan")

    # -- what is seen

    def test_seen_in_the_version_only(self, versioned: Any) -> None:
        """A change in a version is seen there; elsewhere, what was there before."""
        oid, first, second = self.changed_in(versioned, "plan")
        assert versioned.load(oid, "plan") == (b"in", second)
        assert versioned.load(oid) == (b"out", first)
        assert versioned.load(oid, "another") == (b"out", first)
        assert versioned.load(ROOT_OID, "plan") == versioned.load(ROOT_OID)
        assert versioned.modifiedInVersion(oid) == "plan"
        assert versioned.modifiedInVersion(ROOT_OID) == ""
        assert versioned.versions() == ["plan"]
        assert not versioned.versionEmpty("plan") and versioned.versionEmpty("another")
        assert versioned.objects_in_version("plan") == [oid]

    def test_created_in_a_version(self, versioned: Any) -> None:
        """An object created in a version does not exist outside it."""
        oid = versioned.new_oid()
        tid = self.store(versioned, oid, NO_TID, b"new", "plan")
        assert versioned.load(oid, "plan") == (b"new", tid)
        for version in ("", "another"):
            with pytest.raises(POSKeyError):
                versioned.load(oid, version)
        with pytest.raises(POSKeyError):
            versioned.modifiedInVersion(versioned.new_oid())

    def test_snapshots(self, versioned: Any) -> None:
        """loadBefore gives what was seen at any time, and when that changed next, in a version
        and outside it."""
        oid, r0, r1 = self.changed_in(versioned, "plan")
        r2 = self.store(versioned, oid, r1, b"in 2", "plan")
        r3 = self.commit_version(versioned, "plan")
        r4 = self.store(versioned, oid, r3, b"out 2")
        seen: dict[str, list[tuple[Tid, bytes, Tid, Tid | None]]] = {
            "": [(r0, b"out", r0, r3), (r1, b"out", r0, r3), (r2, b"out", r0, r3)],
            "plan": [(r0, b"out", r0, r1), (r1, b"in", r1, r2), (r2, b"in 2", r2, r3)],
        }
        for version, expected in seen.items():
            expected += [(r3, b"in 2", r3, r4), (r4, b"out 2", r4, None)]
            for at, record, tid, following in expected:
                found = versioned.loadBefore(oid, next_tid(at), version)
                assert found == (record, tid, following)
            assert versioned.loadBefore(oid, r0, version) is None

    def test_snapshot_of_a_version_that_moved(self, versioned: Any) -> None:
        """Who works in a version no longer sees what was committed to another one."""
        oid, r0, r1 = self.changed_in(versioned, "plan")
        r2 = self.commit_version(versioned, "plan", "better")
        assert versioned.loadBefore(oid, next_tid(r1), "plan") == (b"in", r1, r2)
        assert versioned.loadBefore(oid, MAX_TID, "plan") == (b"out", r0, None)
        assert versioned.loadBefore(oid, MAX_TID, "better") == (b"in", r2, None)
        assert versioned.loadBefore(oid, MAX_TID) == (b"out", r0, None)

    def test_load_serial(self, versioned: Any) -> None:
        """loadSerial gives what a transaction wrote, in whichever version."""
        oid, first, second = self.changed_in(versioned, "plan")
        assert versioned.loadSerial(oid, first) == b"out"
        assert versioned.loadSerial(oid, second) == b"in"

    # -- locks and conflicts

    def test_locked(self, versioned: Any) -> None:
        """An object changed in a version cannot be stored outside, or in another version; which
        is told before any conflict."""
        oid, first, second = self.changed_in(versioned, "plan")
        for version in ("", "another"):
            for base in (first, second):
                with pytest.raises(VersionLockError) as caught:
                    self.store(versioned, oid, base, b"late", version)
                assert (caught.value.oid, caught.value.version) == (oid, "plan")
        with pytest.raises(VersionLockError):
            commit(versioned, {oid: (first, None)})
        assert versioned.load(oid, "plan") == (b"in", second)

    def test_free_again(self, versioned: Any) -> None:
        """After the version is committed or aborted, the object can be changed everywhere."""
        oid, _, _ = self.changed_in(versioned, "plan")
        tid = self.commit_version(versioned, "plan")
        tid = self.store(versioned, oid, tid, b"x", "another")
        tid = self.abort_version(versioned, "another")
        assert self.store(versioned, oid, tid, b"y")
        assert versioned.versions() == []

    def test_conflict_in_a_version(self, versioned: Any) -> None:
        """Two who change an object in one version conflict, or are merged there."""
        oid, first, _ = self.changed_in(versioned, "plan")
        with pytest.raises(ConflictError):
            self.store(versioned, oid, first, b"late", "plan")
        versioned.registerDB(Joining())
        third = self.store(versioned, oid, first, b"late", "plan")
        assert versioned.load(oid, "plan") == (b"out|in|late", third)
        assert versioned.load(oid) == (b"out", first)

    def test_reads_are_checked_as_seen(self, versioned: Any) -> None:
        """A change in a version is none for who has read the object outside it."""
        oid, first, second = self.changed_in(versioned, "plan")
        check = versioned.checkCurrentSerialInTransaction
        perform(versioned, lambda t: check(oid, first, t), lambda t: check(oid, second, t, "plan"))
        perform(versioned, lambda t: check(oid, first, t, "another"))
        with pytest.raises(ReadConflictError):
            perform(versioned, lambda t: check(oid, first, t, "plan"))
        tid = self.abort_version(versioned, "plan")
        for version in ("", "plan"):
            with pytest.raises(ReadConflictError):
                perform(versioned, lambda t: check(oid, second, t, version))  # noqa: B023
        perform(versioned, lambda t: check(oid, tid, t, "plan"))

    def test_reads_before_a_lock(self, versioned: Any) -> None:
        """What was read before the last change outside a version is not current there."""
        oid, read, _ = self.changed_in(versioned, "plan")
        seen = self.commit_version(versioned, "plan")
        self.store(versioned, oid, seen, b"in", "plan")
        check = versioned.checkCurrentSerialInTransaction
        perform(versioned, lambda t: check(oid, seen, t))
        with pytest.raises(ReadConflictError):
            perform(versioned, lambda t: check(oid, read, t))

    # -- commit and abort

    def test_commit_version(self, versioned: Any) -> None:
        """What was changed in a version is committed outside, and keeps its data."""
        oid, _, _ = self.changed_in(versioned, "plan")
        created = versioned.new_oid()
        self.store(versioned, created, NO_TID, b"new", "plan")
        returned: list[Oid] = []
        tid = perform(
            versioned, lambda t: returned.extend(versioned.commitVersion("plan", "", t))
        )
        assert sorted(returned) == sorted([oid, created])
        assert versioned.load(oid) == versioned.load(oid, "plan") == (b"in", tid)
        assert versioned.load(created) == (b"new", tid)
        assert versioned.versions() == [] and versioned.modifiedInVersion(oid) == ""

    def test_commit_to_another_version(self, versioned: Any) -> None:
        """A version can be committed to another one, which may have objects already."""
        oid, first, _ = self.changed_in(versioned, "plan")
        other, _, _ = self.changed_in(versioned, "better")
        tid = self.commit_version(versioned, "plan", "better")
        assert versioned.load(oid, "better") == (b"in", tid)
        assert versioned.load(oid, "plan") == versioned.load(oid) == (b"out", first)
        assert sorted(versioned.objects_in_version("better")) == sorted([oid, other])
        assert versioned.versions() == ["better"]

    def test_abort_version(self, versioned: Any) -> None:
        """After an abort everybody sees what was there before; what was created is un-created."""
        oid, _, second = self.changed_in(versioned, "plan")
        self.store(versioned, oid, second, b"in 2", "plan")
        created = versioned.new_oid()
        self.store(versioned, created, NO_TID, b"new", "plan")
        tid = self.abort_version(versioned, "plan")
        assert versioned.load(oid) == versioned.load(oid, "plan") == (b"out", tid)
        for version in ("", "plan"):
            with pytest.raises(POSKeyError):
                versioned.load(created, version)
        assert versioned.versions() == []

    def test_empty_version(self, versioned: Any) -> None:
        """To commit or abort a version that nobody changed anything in does nothing."""
        transaction = begin(versioned)
        assert versioned.commitVersion("nobody", "", transaction) == []
        assert versioned.abortVersion("nobody", transaction) == []
        end(versioned, transaction)

    @pytest.mark.parametrize("name", ["a\nb\0c", "Plän 🗓 2027", "x" * 65_535, " ", "é", "e\u0301"])
    def test_any_name(self, versioned: Any, name: str) -> None:
        """Any text of up to 65,535 bytes is a name; names that look alike are different ones."""
        oid, first, second = self.changed_in(versioned, name)
        assert versioned.load(oid, name) == (b"in", second)
        assert versioned.load(oid, "é" if name != "é" else "e\u0301") == (b"out", first)
        assert versioned.versions() == [name]
        assert versioned.history(oid)[0]["version"] == name

    @pytest.mark.parametrize("name", ["x" * 70_000, "é" * 33_000, "\ud800", 7, b"plan"])
    def test_no_name(self, versioned: Any, name: Any) -> None:
        """What can be no name is refused by every call that takes one."""
        oid, first, _ = self.changed_in(versioned, "plan")
        transaction = begin(versioned)
        for call in (
            lambda: versioned.load(oid, name),
            lambda: versioned.store(oid, first, b"x", name, transaction),
            lambda: versioned.commitVersion(name, "", transaction),
            lambda: versioned.commitVersion("plan", name, transaction),
            lambda: versioned.abortVersion(name, transaction),
            lambda: versioned.versionEmpty(name),
            lambda: versioned.objects_in_version(name),
        ):
            with pytest.raises(VersionError):
                call()
        versioned.tpc_abort(transaction)

    def test_no_such_commit(self, versioned: Any) -> None:
        """Only a version can be committed, and only to something else; nobody but a transaction
        that has begun can."""
        transaction = begin(versioned)
        for source, destination in (("", ""), ("", "plan"), ("plan", "plan")):
            with pytest.raises(VersionCommitError):
                versioned.commitVersion(source, destination, transaction)
        with pytest.raises(VersionError):
            versioned.abortVersion("", transaction)
        with pytest.raises(VersionError):
            versioned.versionEmpty("")
        versioned.tpc_abort(transaction)
        with pytest.raises(StorageTransactionError):
            versioned.commitVersion("plan", "", transaction)
        with pytest.raises(StorageTransactionError):
            versioned.abortVersion("plan", transaction)

    def test_changed_before_the_vote(self, versioned: Any) -> None:
        """What others do in a version until the vote is committed, or aborted, with it."""
        oid, _, second = self.changed_in(versioned, "plan")
        transaction = begin(versioned, lambda t: versioned.commitVersion("plan", "", t))
        self.store(versioned, oid, second, b"in 2", "plan")
        joined = versioned.new_oid()
        self.store(versioned, joined, NO_TID, b"joined", "plan")
        tid = end(versioned, transaction)
        assert versioned.load(oid) == (b"in 2", tid)
        assert versioned.load(joined) == (b"joined", tid)
        assert versioned.versions() == []

    def test_gone_before_the_vote(self, versioned: Any) -> None:
        """A version that was aborted before the vote is empty when it is committed."""
        oid, _, _ = self.changed_in(versioned, "plan")
        transaction = begin(versioned, lambda t: versioned.commitVersion("plan", "", t))
        tid = self.abort_version(versioned, "plan")
        end(versioned, transaction)
        assert versioned.load(oid) == (b"out", tid)

    def test_changed_in_the_same_transaction(self, versioned: Any) -> None:
        """An object cannot be changed in the transaction that commits or aborts its version."""
        oid, _, second = self.changed_in(versioned, "plan")
        with pytest.raises(VersionError):
            begin(
                versioned, lambda t: versioned.store(oid, second, b"x", "plan", t),
                lambda t: versioned.commitVersion("plan", "", t),
            )
        with pytest.raises(UndoError):
            begin(
                versioned, lambda t: versioned.abortVersion("plan", t),
                lambda t: versioned.store(oid, second, b"x", "plan", t),
            )
        assert versioned.load(oid, "plan") == (b"in", second)

    def test_aborted_transaction(self, versioned: Any) -> None:
        """A transaction that is aborted, after the vote too, leaves the version as it was."""
        oid, first, second = self.changed_in(versioned, "plan")
        transaction = begin(versioned, lambda t: versioned.commitVersion("plan", "", t))
        versioned.tpc_vote(transaction)
        versioned.tpc_abort(transaction)
        assert versioned.load(oid, "plan") == (b"in", second)
        assert versioned.load(oid) == (b"out", first)
        assert versioned.versions() == ["plan"]

    def test_at_most_so_many(self, versioned: Any) -> None:
        """versions(max) lists at most so many."""
        for name in ("b", "a", "c"):
            self.changed_in(versioned, name)
        assert versioned.versions() == ["a", "b", "c"]
        assert versioned.versions(2) == ["a", "b"]

    # -- history

    def test_history_of_versions(self, versioned: Any) -> None:
        """The history of an object, and the iterator, say which version each revision is in."""
        oid, _, _ = self.changed_in(versioned, "plan")
        self.commit_version(versioned, "plan", "better")
        self.abort_version(versioned, "better")
        names = [entry["version"] for entry in versioned.history(oid, 9)]
        assert names == ["", "better", "plan", ""]
        found = [
            (revision.version, revision.data)
            for transaction in versioned.iterator() for revision in transaction
            if revision.oid == oid
        ]
        assert found == [("", b"out"), ("plan", b"in"), ("better", b"in"), ("", b"out")]

    def test_reopened_versions(self, make_storage: Make, storage: Any) -> None:
        """What is in a version stays in it when the storage is opened again."""
        require(storage, IStorageVersions)
        oid, first, second = self.changed_in(storage, "plan")
        storage.close()
        if not self.persistent:  # type: ignore[attr-defined]
            return
        with make_storage() as again:
            assert again.versions() == ["plan"]
            assert again.load(oid, "plan") == (b"in", second)
            assert again.load(oid) == (b"out", first)
            with pytest.raises(VersionLockError):
                self.store(again, oid, first, b"late")
            self.commit_version(again, "plan")

    def test_copied_versions(self, make_storage: Make, versioned: Any) -> None:
        """A copy has the versions: who sees what, at any time, and what is locked."""
        require(versioned, IStorageRestoreable)
        oid, _, _ = self.changed_in(versioned, "plan")
        created = versioned.new_oid()
        self.store(versioned, created, NO_TID, b"new", "plan")
        tids = [self.commit_version(versioned, "plan")]
        tids += [undo(versioned, tids[0]), self.commit_version(versioned, "plan", "better")]
        tids.append(self.abort_version(versioned, "better"))
        tids.append(undo(versioned, tids[-1]))
        copy = MappingStorage()
        copy.copyTransactionsFrom(versioned)
        assert contents(copy) == contents(versioned)
        assert copy.versions() == versioned.versions() == ["better"]
        for tid in tids:
            for version in ("", "plan", "better"):
                question = oid, next_tid(tid), version
                assert copy.loadBefore(*question) == versioned.loadBefore(*question)
        if not self.persistent:  # type: ignore[attr-defined]
            return
        versioned.close()
        with make_storage() as again:
            assert contents(again) == contents(copy)
            assert again.objects_in_version("better") == copy.objects_in_version("better")

    # -- undo

    def test_undo_in_a_version(self, versioned: Any) -> None:
        """Undoing changes in a version goes back in it; undoing the first one leaves it."""
        require(versioned, IStorageUndoable)
        oid, first, second = self.changed_in(versioned, "plan")
        third = self.store(versioned, oid, second, b"in 2", "plan")
        tid = undo(versioned, third)
        assert versioned.load(oid, "plan") == (b"in", tid)
        assert versioned.load(oid)[0] == b"out"
        tid = undo(versioned, second)
        assert versioned.versions() == []
        assert versioned.load(oid) == versioned.load(oid, "plan") == (b"out", tid)
        redone = undo(versioned, tid)
        assert versioned.load(oid, "plan") == (b"in", redone)
        assert versioned.load(oid) == (b"out", first)

    def test_undo_of_commit_and_abort(self, versioned: Any) -> None:
        """Undoing the commit, the move or the abort of a version fills it again; so does redoing
        empty it."""
        require(versioned, IStorageUndoable)
        oid, first, _ = self.changed_in(versioned, "plan")
        for empty in (
            lambda: self.commit_version(versioned, "plan"),
            lambda: self.commit_version(versioned, "plan", "better"),
            lambda: self.abort_version(versioned, "plan"),
        ):
            emptied = empty()
            assert versioned.versionEmpty("plan")
            seen = versioned.load(oid)[0], versioned.load(oid, "better")[0]
            undone = undo(versioned, emptied)
            assert versioned.versions() == ["plan"]
            assert versioned.load(oid, "plan")[0] == b"in"
            assert versioned.load(oid, "better") == versioned.load(oid) == (b"out", first)
            redone = undo(versioned, undone)
            assert (versioned.load(oid)[0], versioned.load(oid, "better")[0]) == seen
            undo(versioned, redone)

    def test_undo_of_creation_in_a_version(self, versioned: Any) -> None:
        """Undoing the transaction that created an object in a version un-creates it."""
        require(versioned, IStorageUndoable)
        oid = versioned.new_oid()
        tid = self.store(versioned, oid, NO_TID, b"new", "plan")
        undone = undo(versioned, tid)
        with pytest.raises(POSKeyError):
            versioned.load(oid, "plan")
        assert versioned.versions() == []
        undo(versioned, undone)
        assert versioned.load(oid, "plan")[0] == b"new"
        with pytest.raises(POSKeyError):
            versioned.load(oid)

    def test_undo_across_versions(self, versioned: Any) -> None:
        """What was changed outside cannot be undone while a version has the object, nor what
        left a version when it was changed since."""
        require(versioned, IStorageUndoable)
        oid, first, _ = self.changed_in(versioned, "plan")
        second = self.store(versioned, ROOT_OID, versioned.load(ROOT_OID)[1], b"other")
        with pytest.raises(UndoError, match="'plan'"):
            undo(versioned, first)
        committed = self.commit_version(versioned, "plan")
        self.store(versioned, oid, committed, b"later")
        versioned.registerDB(Joining())
        with pytest.raises(UndoError, match="'plan'"):
            undo(versioned, committed)
        undo(versioned, second)
        assert versioned.load(oid)[0] == b"later"

    def test_undo_an_earlier_change_in_a_version(self, versioned: Any) -> None:
        """Undoing a change in a version that was changed since is merged, and stays in it."""
        require(versioned, IStorageUndoable)
        oid, _, second = self.changed_in(versioned, "plan")
        third = self.store(versioned, oid, second, b"in 2", "plan")
        self.store(versioned, oid, third, b"in 3", "plan")
        with pytest.raises(UndoError):
            undo(versioned, third)
        versioned.registerDB(Joining())
        tid = undo(versioned, third)
        assert versioned.load(oid, "plan") == (b"in 2|in 3|in", tid)
        assert versioned.load(oid)[0] == b"out"
