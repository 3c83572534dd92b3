"""A random workload on a FileStorage whose disk fails, with an exact model of what must be there.

The model is a *history*: what each committed transaction changed, in order. From which operation
of the disk on which histories it may show:

    tpc_vote ─────── tpc_finish ─── callback ─── … ─── any error in tpc_finish ─── reopened
    [before]         [before,       [after]            [before, after]             [what is shown]
                      after]
"""

from __future__ import annotations

import contextlib
import errno
import random
from collections.abc import Callable
from typing import Any

from objdb.errors import (
    ConflictError,
    ObjdbError,
    POSKeyError,
    StorageClosedError,
    StorageFailedError,
    StorageWriteError,
    UndoError,
)
from objdb.ids import NO_TID
from objdb.storage.commit import TransactionMetaData
from objdb.storage.file.storage import FileStorage
from objdb.testing.faults import FaultyFiles, Operation
from tests.storage.version_model import Blocked, State, VersionModel

PATH = "data.fs"
OIDS = [number.to_bytes(8, "big") for number in (0, 1, 2, 3, 300, 5000, 2**40)]
SIZES = [1, 6, 101, 701, 3001]
KINDS = {
    "commit": 8, "abort": 1, "vote and abort": 2, "conflict": 1, "stale read": 1, "reopen": 1,
    "close before the vote": 1, "close after the vote": 1, "trouble": 2, "undo": 4,
    "in a version": 4, "commit version": 2, "abort version": 1,
}

Changes = dict[bytes, State]
History = tuple[tuple[str, Changes], ...]  # of each transaction, its description and changes
Shown = tuple[tuple[str, dict[bytes, tuple[Any, str]]], ...]  # the same, with records and versions
VERSIONS = ["plan", "Plän B"]


class Workload:
    """Random steps on *files*, which may show one of the histories *possible*.

    *options* are FileStorage's; *when* begins the message of every failure. `expected` has
    (number of operations, the histories that the disk may show from there on).
    """

    def __init__(
        self, files: FaultyFiles, chance: random.Random, options: dict[str, Any],
        possible: list[History], when: str,
    ) -> None:
        self.files = files
        self.chance = chance
        self.options = options
        self.when = when
        self.expected: list[tuple[int, list[History]]] = []
        self.expect(*possible)
        self.open()

    # -- the model

    def expect(self, *possible: History) -> None:
        """From now on, the disk may show these."""
        self.expected.append((len(self.files.operations), list(possible)))

    def possible(self, count: int) -> list[History]:
        """The histories that may be shown after *count* operations."""
        return [histories for at, histories in self.expected if at <= count][-1]

    @property
    def history(self) -> History:
        """What is certainly committed."""
        return self.expected[-1][1][0]

    def look(self) -> History:
        """Return what the storage shows; AssertionError unless it may, and shows the same by
        every way of looking."""
        found = tuple(
            (transaction.description.decode(), {r.oid: (r.data, r.version) for r in transaction})
            for transaction in self.storage.iterator()
        )
        possible = self.expected[-1][1]
        matching = [history for history in possible if shown(history) == found]
        assert matching, (self.when, names(found), [names(h) for h in possible])
        model = VersionModel(changes for _, changes in matching[0])
        for oid in OIDS:
            for version in ("", *VERSIONS):
                expected = model.state(oid).seen(version)
                assert self.load(oid, version) == expected, (self.when, oid, version)
        in_use = {model.state(oid).version for oid in OIDS} - {""}
        assert self.storage.versions() == sorted(in_use), self.when
        problems = self.storage.self_check()
        assert not problems, (self.when, problems)
        return matching[0]

    def load(self, oid: bytes, version: str) -> bytes | None:
        """The current record, None if there is no object."""
        try:
            return self.storage.load(oid, version)[0]
        except POSKeyError:
            return None

    # -- the storage

    def open(self) -> None:
        """Open the storage, and look: what it shows is from now on what was committed."""
        try:
            self.storage = self.open_storage()
            self.expect(self.look())
        except ObjdbError as error:
            raise AssertionError(f"{self.when}: {error!r}") from error
        self.tids = {r.oid: t.tid for t in self.storage.iterator() for r in t}

    def open_storage(self) -> FileStorage:
        """Return the storage; a disk that does not let it open is repaired."""
        while True:
            self.opened_at = len(self.files.operations)
            try:
                return FileStorage(PATH, files=self.files, **self.options)
            except OSError:
                self.require_trouble()
                self.repair()

    def close(self) -> None:
        """Close the storage; a disk that fails then takes nothing back."""
        try:
            self.storage.close()
        except OSError:
            self.require_trouble()

    def reopen(self) -> None:
        """Close and open it."""
        self.close()
        self.open()

    def require_trouble(self) -> None:
        """Raise AssertionError unless an operation has failed since the storage was opened."""
        since = self.files.operations[self.opened_at :]
        assert any(operation.kind == "failed" for operation in since), self.when

    def require_error(
        self, error: type[Exception], call: Callable[[Any], object], argument: Any
    ) -> None:
        """Raise AssertionError unless the call raises *error*."""
        try:
            call(argument)
        except error:
            return
        raise AssertionError(f"{self.when}: {call.__name__} raised no {error.__name__}")

    def trouble(self) -> None:
        """Let an operation to come fail, or all from there on; or repair the disk."""
        number = len(self.files.operations) + self.chance.randrange(10)
        code = self.chance.choice([errno.ENOSPC, errno.EIO])
        if self.files.fail_after is not None:
            self.repair()
        elif self.chance.random() < 0.6:
            self.files.fail[number] = code
        else:
            self.files.fail_after = number, code

    def repair(self) -> None:
        """Let nothing fail any more."""
        self.files.fail.clear()
        self.files.fail_after = None

    def write_back(self) -> None:
        """Let the system write changed pages by itself, as it may at any time."""
        if self.chance.random() < 0.5:
            with contextlib.suppress(OSError):
                self.files.do(Operation("sync", "another file"))

    # -- steps

    def run(self, steps: int) -> None:
        """Do so many random things."""
        for _ in range(steps):
            kind = self.chance.choices(list(KINDS), list(KINDS.values()))[0]
            if kind == "reopen":
                self.reopen()
            elif kind == "trouble":
                self.trouble()
            else:
                self.transact(kind)

    def transact(self, kind: str) -> None:
        """Begin a transaction, and end it in the way *kind* says."""
        transaction = TransactionMetaData("somebody", f"{kind} {self.chance.randrange(10**9)}")
        try:
            self.storage.tpc_begin(transaction)
        except StorageFailedError:
            self.require_trouble()
            self.reopen()
            return
        stage = {
            "undo": self.undo, "in a version": self.stage_in_a_version,
            "commit version": self.end_version, "abort version": self.abort_version,
        }
        changes = stage.get(kind, self.stage)(transaction)
        if kind == "close before the vote":
            self.close()
            self.require_error(StorageClosedError, self.storage.tpc_vote, transaction)
            self.storage.tpc_abort(transaction)
            self.open()
        elif kind in ("conflict", "stale read"):
            self.make_conflict(kind, transaction)
            self.require_error(ConflictError, self.storage.tpc_vote, transaction)
            self.storage.tpc_abort(transaction)
        elif kind == "abort" or not self.vote(transaction):
            self.storage.tpc_abort(transaction)
        elif kind == "vote and abort":
            self.storage.tpc_abort(transaction)
            self.write_back()
            self.transact("commit")  # to the same place
        elif kind == "close after the vote":
            self.close()
            self.require_error(StorageClosedError, self.storage.tpc_finish, transaction)
            self.open()
        else:
            self.finish(transaction, changes)

    def stage(self, transaction: TransactionMetaData) -> Changes:
        """Stage a few random changes, and return them."""
        changes: Changes = {}
        for oid in self.free_for(""):
            base = self.tids.get(oid, NO_TID)
            record: bytes | None = self.chance.randbytes(self.chance.choice(SIZES))
            if self.chance.random() < 0.2:
                record = None
                self.storage.deleteObject(oid, base, transaction)
            elif self.chance.random() < 0.1:
                record = self.chance.choice([record, None])
                self.storage.restore(oid, base, record, "", None, transaction)
            else:
                assert record is not None
                self.storage.store(oid, base, record, "", transaction)
            changes[oid] = State(record, "", record)
        return changes

    def free_for(self, version: str) -> list[bytes]:
        """A few random objects that are not changed in another version."""
        oids = self.chance.sample(OIDS, self.chance.randrange(1, 5))
        return [oid for oid in oids if self.model.state(oid).version in ("", version)]

    @property
    def model(self) -> VersionModel:
        """What is certainly committed."""
        return VersionModel(changes for _, changes in self.history)

    def stage_in_a_version(self, transaction: TransactionMetaData) -> Changes:
        """Stage a few random changes in a version."""
        version, model, changes = self.chance.choice(VERSIONS), self.model, {}
        for oid in self.free_for(version):
            record = self.chance.randbytes(self.chance.choice(SIZES))
            base = self.tids.get(oid, NO_TID)
            self.storage.store(oid, base, record, version, transaction)
            changes[oid] = model.stored(oid, record, version)
        return changes

    def end_version(self, transaction: TransactionMetaData) -> Changes:
        """Stage the commit of a version, to none or to the other."""
        source, other = self.chance.sample(VERSIONS, 2)
        destination = self.chance.choice(["", other])
        self.storage.commitVersion(source, destination, transaction)
        return self.model.committed(source, destination)

    def abort_version(self, transaction: TransactionMetaData) -> Changes:
        """Stage the abort of a version."""
        version = self.chance.choice(VERSIONS)
        self.storage.abortVersion(version, transaction)
        return self.model.aborted(version)

    def undo(self, transaction: TransactionMetaData) -> Changes:
        """Stage the undo of one of the last transactions, if that is possible, and return what it
        changes."""
        model, age = self.model, self.chance.randrange(4)
        if age >= len(model.transactions):
            return {}
        number = len(model.transactions) - 1 - age
        expected = undone(model, number)
        tid = [t.tid for t in self.storage.iterator()][number]
        try:
            self.storage.undo(tid, transaction)
        except UndoError:
            assert expected is None, self.when
            return {}
        assert expected is not None, self.when
        return expected

    def make_conflict(self, kind: str, transaction: TransactionMetaData) -> None:
        """Stage a change made from, or note a read of, a revision that never was."""
        oid, never = self.chance.choice(OIDS), b"\1" * 8
        if kind == "conflict" and not self.model.state(oid).version:
            self.storage.store(oid, never, b"stale", "", transaction)
        else:
            self.storage.checkCurrentSerialInTransaction(oid, never, transaction)

    def vote(self, transaction: TransactionMetaData) -> bool:
        """Vote; False if the disk did not let it."""
        try:
            self.storage.tpc_vote(transaction)
        except StorageWriteError:
            self.require_trouble()
            return False
        self.write_back()
        return True

    def finish(self, transaction: TransactionMetaData, changes: Changes) -> None:
        """Commit. Where the disk fails in it, either outcome is right, and the storage must
        commit no more."""
        before = self.history
        after = (*before, (transaction.description.decode(), changes))
        self.expect(before, after)
        try:
            tid = self.storage.tpc_finish(transaction, lambda tid: self.expect(after))
        except StorageFailedError:
            self.require_trouble()
            self.require_error(
                StorageFailedError, self.storage.tpc_begin, TransactionMetaData()
            )
            self.look()
            self.reopen()
        else:
            self.tids.update(dict.fromkeys(changes, tid))


def undone(model: VersionModel, number: int) -> Changes | None:
    """What undoing a transaction changes; None if it cannot be done."""
    try:
        results = model.undone([number])
    except Blocked:
        return None
    root = results.get(OIDS[0])
    return None if root is not None and root.value is None else results  # the root has to stay


def shown(history: History) -> Shown:
    """A history as the storage's iterator shows it."""
    return tuple(
        (name, {oid: (state.value, state.version) for oid, state in changes.items()})
        for name, changes in history
    )


def names(history: Any) -> list[str]:
    """The descriptions of a history's transactions."""
    return [description for description, _ in history]
