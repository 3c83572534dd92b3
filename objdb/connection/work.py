"""The work of a connection in one transaction: it begins with the first change, and ends with the
transaction.

    attribute set ─► Connection.register ─► Work, which joins the transaction

    JOINED ──tpc_begin──► COMMITTING ──tpc_vote──► VOTING ──tpc_finish──► over, the view moves on
      └───────────────────── abort, tpc_abort ─────────┴────────────────► over, objects as before

`commit` stores what is registered and what is new, until nothing new is found. The work is the data
manager that `transaction` knows; the connection keeps objects, reader and view from one transaction
to the next.
"""

from __future__ import annotations

import copy
import enum
import warnings
from collections.abc import Callable
from functools import partial
from typing import Any

from persistent import Persistent
from transaction.interfaces import IDataManager, ISavepointDataManager, NoTransaction
from zope.interface import implementer

from objdb.connection import partial_commit
from objdb.connection.changes import ChangeSet
from objdb.connection.isolation import kept
from objdb.connection.jar import Jar
from objdb.connection.loading import complete_error
from objdb.connection.mutations import error_for
from objdb.connection.savepoint import Mark, SavepointStore
from objdb.errors import (
    ConflictError,
    ConnectionStateError,
    ReadConflictError,
    ReadOnlyError,
    ReadOnlyHistoryError,
    SerializationError,
)
from objdb.ids import NO_TID, Oid, Tid, format_oid, format_tid
from objdb.interfaces import IStorageReadChecks
from objdb.records.attributes import delete_jar, delete_oid, set_changed, set_serial
from objdb.records.broken import class_name

LARGE_RECORD_BYTES = 16 * 1024 * 1024
MAX_ROUNDS = 100
# When savepoints have put away so much, all of it leaves memory, however few objects it is.
PUT_AWAY_BYTES = 16 * 1024 * 1024

Store = Callable[[Oid, Tid, bytes, str, Any], object]


class LargeRecordWarning(UserWarning):
    """An object's state is so large that loading and storing it whole is slow."""


class Phase(enum.Enum):
    """Where the work is in its transaction."""

    JOINED = "with uncommitted changes"
    COMMITTING = "committing"
    VOTING = "voting on a commit"


@implementer(IDataManager, ISavepointDataManager)
class Work:
    """The changes of *jar*, a connection, in the transaction *txn*, and its part in the two-phase
    commit.

    `stored` has the objects given to the storage, by oid; None for those that only a savepoint
    has. `unreadable` is why nothing can be committed.
    """

    transaction_manager = None

    def __init__(self, jar: Jar, txn: Any) -> None:
        self._jar = jar
        self._db = jar.db()
        self.transaction = txn
        self.phase = Phase.JOINED
        self.changes = ChangeSet()
        self.savepoints: SavepointStore | None = None
        self.stored: dict[Oid, Persistent | None] = {}
        self.unreadable: ReadConflictError | None = None
        self._bytes_put_away = 0  # by savepoints, since the cache was emptied
        self._commit: Any = None  # what all that take part, of this database, share

    def db(self) -> Any:
        """Return the database."""
        return self._db

    def has_put_away(self, oid: Oid) -> bool:
        """Whether a savepoint has a record of the object *oid*."""
        return self.savepoints is not None and oid in self.savepoints

    def load(self, oid: Oid, before: Tid) -> Any:
        """Return what a savepoint has put away for *oid*, else what the storage has."""
        if self.savepoints is not None and oid in self.savepoints:
            return *self.savepoints.load(oid), None
        return self._jar.load_committed(oid, before)

    # -- storing

    def _write_changes(self, store: Store) -> None:
        """Store every changed object, and every new one reachable from it."""
        changes, count = self.changes, -1
        for _ in range(MAX_ROUNDS):  # a __getstate__ may change further objects
            if count == changes.count:
                changes.clear_pending()
                return
            count = changes.count
            self._write_pending(store)
        classes = {class_name(type(obj)) for obj in changes.pending() if obj._p_changed}
        raise SerializationError(
            f"__getstate__ keeps changing objects that were stored already, of "
            f"{' and '.join(sorted(classes))}. A __getstate__ should change no object that has one"
        )

    def _write_pending(self, store: Store) -> None:
        jar, writer = self._jar, self._jar.writer
        serialize, new_objects = writer.serialize, writer.new_objects
        stored, created, cache = self.stored, self.changes.created, jar._cache
        metadata = None if self._commit is None else self._commit.metadata
        version, counts_bytes = jar.version, jar._counts_bytes
        for first in self.changes.pending():
            stack: list[Any] = [first]
            try:
                while stack:
                    obj = stack[-1]
                    oid, serial = obj._p_oid, obj._p_serial
                    # Else it is stored already, or dropped its changes.
                    if obj._p_changed or (serial == NO_TID and oid not in stored):
                        record = serialize(obj)
                        if len(record) > LARGE_RECORD_BYTES:
                            _warn_large(obj, record)
                        store(oid, serial, record, version, metadata)
                        stored[oid] = obj
                        if serial == NO_TID and oid not in created:
                            cache[oid] = obj
                            created[oid] = None
                        set_changed(obj, False)
                        if counts_bytes:
                            jar.cache.note_size(oid, obj, len(record))
                    stack.pop()
                    if new_objects:
                        stack.extend(reversed(new_objects))
                        new_objects.clear()
            except BaseException:
                # The abort takes back new objects that were met and not stored.
                for obj in stack + new_objects:
                    if obj._p_serial == NO_TID:
                        self.changes.add(obj)
                new_objects.clear()
                raise

    # -- the two-phase commit

    def sortKey(self) -> str:
        """Return where this work stands in the order of a two-phase commit."""
        return f"{self._db.storage.sortKey()}:{id(self._jar)}"

    def tpc_begin(self, txn: Any) -> None:
        """Begin to commit. Raises `ReadConflictError` (see `isolation`) and
        `UnregisteredMutationError`."""
        self._require_readable()
        mutated = self._jar.mutations.find()
        if mutated:
            raise error_for(mutated)
        self._commit = self._db.storage_commit(txn)
        self._commit.begin()
        self.phase = Phase.COMMITTING

    def _require_readable(self) -> None:
        if self.unreadable is not None:
            raise ReadConflictError(
                f"this transaction met a ReadConflictError and went on ({self.unreadable}). It "
                "may have acted on what does not belong together, and can only be aborted",
                oid=self.unreadable.oid, class_name=self.unreadable.class_name,
                serials=self.unreadable.serials,
            )

    def commit(self, txn: Any) -> None:
        """Give all changed and new objects to the storage."""
        store = self._db.storage.store
        self._write_changes(store)
        if self.savepoints is not None:
            version, metadata = self._jar.version, self._commit.metadata
            for oid in self.savepoints.oids():
                if oid not in self.stored:
                    record, base_tid = self.savepoints.load(oid)
                    store(oid, base_tid, record, version, metadata)
                    self.stored[oid] = None

    def tpc_vote(self, txn: Any) -> None:
        """Let the storage do everything that can fail. `ConflictError` when it is too late.

        Until here, the commits of other participants may have read and changed objects.
        """
        jar = self._jar
        if self.changes.registered or self.changes.added:
            self._write_changes(self._db.storage.store)
        self._check_reads()
        self.phase = Phase.VOTING
        created = self.changes.created  # new objects are in no other cache
        oids = [oid for oid in self.stored if oid not in created]
        try:
            self._commit.vote(self.stored, partial(self._tell, oids))
        except ConflictError as error:
            if error.class_name is None and (obj := jar._cache.get(error.oid)) is not None:
                complete_error(error, error.oid, type(obj))
            self._db.count_conflict(error)
            raise

    def _tell(self, oids: list[Oid], tid: Tid) -> None:
        """Tell the other connections that the transaction *tid* changed *oids*; this one, too, if
        its commit was interrupted and it has dropped what it changed."""
        jar = self._jar
        self._db.invalidate(tid, oids, jar.version, jar.token if jar.work is self else None)

    def _check_reads(self) -> None:
        """Let the vote fail unless all that was to be current, or read, is as it was."""
        jar, storage, metadata = self._jar, self._db.storage, self._commit.metadata
        check = storage.checkCurrentSerialInTransaction
        # Storages without versions take no such argument.
        in_version = {"version": jar.version} if jar.version else {}
        for oid, serial in jar.view.must_be_current.items():
            if oid not in self.stored:
                check(oid, serial, metadata, **in_version)
        reads = jar.view.reads
        if reads is None:
            return
        serials = reads.serials()
        if IStorageReadChecks.providedBy(storage):
            unchanged_since = None if reads.is_complete else jar.view.snapshot
            storage.checkReads(serials, unchanged_since, metadata, **in_version)
            return
        if not reads.is_complete:
            raise ReadConflictError(
                "the program deactivated objects it had read, and this storage cannot check "
                "that nothing else was committed. Leave deactivating to the connection"
            )
        for oid, serial in serials.items():
            check(oid, serial, metadata, **in_version)

    def tpc_finish(self, txn: Any) -> None:
        """Commit; the objects now have the tid of this transaction as serial. Raises
        `PartialCommitError` if that fails, and others have a part in the transaction."""
        commit = self._commit
        try:
            self._note_committed(txn, commit.finish())
        except BaseException as error:
            if commit.committed_tid is not None:
                commit.abort()  # of what is committed, it drops the rest
                self._note_committed(txn, commit.committed_tid)
                raise
            partial = partial_commit.failed_to_finish(txn, self)
            if partial is not None and isinstance(error, Exception):
                raise partial from error
            raise

    def _note_committed(self, txn: Any, tid: Tid) -> None:
        """Let the objects have the tid of this transaction, which may be done already."""
        partial_commit.note_committed(txn, self)
        jar, cache = self._jar, self._jar._cache
        if jar.committed_tid != tid:
            jar.committed_tid = tid
            jar.store_count += len(self.stored)
        for oid, obj in self.stored.items():
            if obj is None:  # it went from the savepoint's file to the storage
                obj = cache.get(oid)
                if obj is None:
                    continue
            set_serial(obj, tid)
        # Objects whose changes were merged hold another state.
        cache.invalidate(self._commit.resolved)
        self._end()

    # -- taking back

    def tpc_abort(self, txn: Any) -> None:
        """Take everything back, in the storage and in memory; what is committed stays."""
        partial_commit.tell_after_the_fact(txn, self)
        self.abort(txn)

    def abort(self, txn: Any) -> None:
        """Drop all changes: changed objects become ghosts, new ones are unsaved again. The
        storage drops what it has of the transaction: `transaction` calls this, and `tpc_abort`
        behind it, when a commit fails before the vote. Ignored when the work is over."""
        try:
            self._abort()
        except BaseException:
            self._abort()  # what is left of it
            raise

    def _abort(self) -> None:
        if self._jar.work is not self:
            return
        try:
            if self._commit is not None:
                self._commit.abort()
        finally:
            try:
                self._take_back()
            finally:
                self._end()

    def abort_if_forgotten(self) -> None:
        """Abort if the transaction, which was interrupted while it ended, knows this work no
        more."""
        known = getattr(self.transaction, "_resources", (self,))
        if all(each is not self for each in known):
            self.abort(self.transaction)

    def _take_back(self) -> None:
        changes, jar = self.changes, self._jar
        for oid in changes.created_since(0):
            self._unsave(oid)
        for oid, obj in changes.added.items():
            if obj._p_jar is jar:
                self._unsave(oid, obj)
        changed = set(changes.registered) | set(self.stored)
        if self.savepoints is not None:
            changed.update(self.savepoints.oids())
        jar._cache.invalidate(list(changed))
        jar.mutations.drop()

    def _unsave(self, oid: Oid, obj: Any = None) -> None:
        """Make a new object unsaved again. It keeps its state."""
        cache = self._jar._cache
        obj = obj if obj is not None else cache.get(oid)
        if obj is None:
            return
        if obj._p_changed is None:
            obj._p_activate()
        if obj._p_changed:
            set_changed(obj, False)
        if cache.get(oid) is obj:
            del cache[oid]
        delete_jar(obj)
        delete_oid(obj)

    def _end(self) -> None:
        self.close_savepoints()
        jar = self._jar
        if jar.work is self:
            if jar.is_open:
                jar._load_before = jar.load_committed
            jar.work = None
        self._commit = None  # which knows this work: nothing waits for the garbage collector

    def close_savepoints(self) -> None:
        """Let go of the savepoints' file."""
        if self.savepoints is not None:
            self.savepoints.close()

    # -- savepoints

    def savepoint(self) -> Savepoint:
        """Write all changes to a temporary file, and return the way back to here (called by
        `transaction.savepoint`)."""
        jar = self._jar
        jar.require_usable()
        self._require_readable()
        if self.savepoints is None:
            self.savepoints = SavepointStore()
            jar._load_before = self.load
        before = self.savepoints.size
        self._write_changes(self.savepoints.store)
        self.stored = {}
        self._bytes_put_away += self.savepoints.size - before
        if self._bytes_put_away > PUT_AWAY_BYTES:
            self._bytes_put_away = 0
            jar.cacheMinimize()
        jar.cacheGC()
        return Savepoint(self, self.savepoints.mark(len(self.changes.created)))

    def roll_back(self, mark: Mark) -> None:
        """Bring the objects back to what they were at *mark* (called by a savepoint)."""
        changes, savepoints, jar = self.changes, self.savepoints, self._jar
        if savepoints is None or jar.work is not self:
            raise ConnectionStateError("the transaction of this savepoint has ended")
        for oid, obj in changes.added.items():
            if obj._p_jar is jar:
                self._unsave(oid, obj)
        for oid in changes.created_since(mark.created):
            self._unsave(oid)
        changed = savepoints.roll_back(mark) | set(changes.registered)
        changes.clear_pending()
        with kept(jar.view.reads):
            jar._cache.invalidate(list(changed))


class Savepoint:
    """The way back that `transaction.savepoint()` gets from a connection."""

    def __init__(self, work: Work, mark: Mark) -> None:
        self._work = work
        self._mark = mark

    def rollback(self) -> None:
        """Bring the connection's objects back to what they were at the savepoint."""
        self._work.roll_back(self._mark)


def begin_work(jar: Jar) -> Work:
    """Return the work that *jar* begins in the current transaction of its manager."""
    txn = jar.transaction_manager.get()
    work = Work(jar, txn)
    txn.join(work)
    jar.work = work
    return work


def refuse_commit(jar: Jar, error: ReadConflictError) -> None:
    """Let the transaction of *jar* be aborted only, since it met *error*."""
    unreadable = copy.copy(error)
    try:
        work = jar.work or begin_work(jar)
    except NoTransaction:  # then there is nothing to refuse
        return
    work.unreadable = unreadable


def require_changeable(jar: Jar) -> None:
    """Raise `ReadOnlyError`, or `ReadOnlyHistoryError`, where objects cannot be changed."""
    past, name = jar.view.past, jar.db().name
    if past is not None:
        raise ReadOnlyHistoryError(
            f"this connection shows {name} before {format_tid(past)}: the past cannot be changed. "
            "Open one without `at` and `before`"
        )
    if jar.isReadOnly():
        raise ReadOnlyError(f"{name} is open for reading only: its objects cannot be changed")


def _warn_large(obj: Any, record: bytes) -> None:
    warnings.warn(
        f"the state of {class_name(type(obj))} {format_oid(obj._p_oid)} is "
        f"{len(record) / 2**20:.0f} MiB, loaded and stored whole at every change. Keep large "
        "data in many objects (a BTree), or in a file", LargeRecordWarning, stacklevel=2,
    )
