"""Versions: the part of the conformance suite about
`IStorageVersions`. See `conformance`."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest

from objdb.errors import (
    StorageTransactionError,
    Unsupported,
    VersionCommitError,
    VersionError,
    VersionLockError,
)
from objdb.ids import NO_TID, Oid, Tid, next_tid
from objdb.interfaces import IStorageRestoreable, IStorageVersions
from objdb.storage.commit import TransactionMetaData
from objdb.storage.memory import MappingStorage
from objdb.testing.helpers import Make, commit, contents, require, undo

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

    def test_returned_oids(self, versioned: Any) -> None:
        """commitVersion and abortVersion return the oids of the version's objects, if any."""
        transaction = begin(versioned)
        assert versioned.commitVersion("nobody", "", transaction) == []
        assert versioned.abortVersion("nobody", transaction) == []
        end(versioned, transaction)
        for call in (lambda t: versioned.commitVersion("plan", "", t),
                     lambda t: versioned.abortVersion("plan", t)):
            oids = [self.changed_in(versioned, "plan")[0] for _ in range(3)]
            returned: list[Oid] = []
            perform(versioned, lambda t: returned.extend(call(t)))  # noqa: B023
            assert sorted(returned) == oids

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
        """Every call that takes the name of a version refuses an invalid one."""
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
        """Objects stay in their version when the storage is opened again."""
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
