"""The second story of a connection: how changes are noticed and stored.

    attribute set ─► register ─► join ─► tpc_begin ─► commit: writer, store, until nothing new is
    found ─► tpc_vote ─► tpc_finish ─► the view moves on
"""

from __future__ import annotations

import copy
import warnings
from collections.abc import Callable
from threading import get_ident
from typing import Any

from persistent import Persistent
from transaction.interfaces import NoTransaction

from objdb.connection import outcome
from objdb.connection.changes import ChangeSet
from objdb.connection.isolation import kept
from objdb.connection.loading import ObjectLoader, Phase, complete_error
from objdb.connection.mutations import MutationDetector, error_for
from objdb.connection.savepoint import Mark, Savepoint, SavepointStore
from objdb.errors import (
    ConflictError,
    ConnectionStateError,
    InvalidObjectReference,
    ReadConflictError,
    ReadOnlyError,
    ReadOnlyHistoryError,
    SerializationError,
    UsageError,
)
from objdb.ids import MAX_TID, NO_TID, ROOT_OID, Oid, Tid, format_oid, format_tid
from objdb.interfaces import IStorageReadChecks
from objdb.records.attributes import (
    delete_jar,
    delete_oid,
    set_changed,
    set_jar,
    set_oid,
    set_serial,
)
from objdb.records.broken import class_name
from objdb.records.showing import shown
from objdb.records.writer import ObjectWriter

LARGE_RECORD_BYTES = 16 * 1024 * 1024
MAX_ROUNDS = 100
# When savepoints have put away so much, all of it leaves memory, however few objects it is.
PUT_AWAY_BYTES = 16 * 1024 * 1024


class LargeRecordWarning(UserWarning):
    """An object's state is so large that loading and storing it whole is slow."""


class ObjectCommitter(ObjectLoader):
    """The part of a connection that stores: its change set, its writer, its savepoints, and its
    part in a two-phase commit."""

    def __init__(
        self, db: Any, cache_size: int, cache_size_bytes: int, version: str = ""
    ) -> None:
        super().__init__(db, cache_size, cache_size_bytes, version)
        # What checks of reads are told besides: nothing, to storages without versions.
        self._in_version = {"version": version} if version else {}
        self._writer = ObjectWriter(self, db.storage.new_oid)
        self._owner: int | None = None  # the thread whose transactions we join, if bound to one
        self._must_be_current: dict[Oid, Tid] = {}  # until the view moves on
        self._detector = MutationDetector(self) if db.options.detect_mutations else None
        self._mutated: list[tuple[Any, str]] = []  # objects that are to be dropped, with paths
        self._reset_transaction()
        self.transaction_manager: Any = None
        self.store_count = 0
        self.committed_tid: Tid | None = None  # of the last transaction, since it was opened

    def _reset_transaction(self) -> None:
        self._changes = ChangeSet()
        self._savepoints = None
        self._metadata: Any = None
        self._stored: dict[Oid, Persistent | None] = {}
        self._bytes_put_away = 0  # by savepoints, since the cache was emptied
        self._unreadable: ReadConflictError | None = None  # why nothing can be committed
        self._commit: Any = None  # what all that take part, of this database, share
        self._transaction: Any = None  # the one this connection has joined; the last to go

    def isReadOnly(self) -> bool:
        """Whether objects cannot be changed through this connection."""
        return self._past is not None or bool(self._storage.isReadOnly())

    def register(self, obj: Any) -> None:
        """Note that *obj* is being changed (called by the object, before its first change). Raises
        `ReadOnlyError`, `ConnectionStateError`, or `ConcurrentUseError` in another thread."""
        if self._refused:
            self._drop_refused(obj)
        try:
            self._require_usable()
            self._join()
        except BaseException:
            self._refuse(obj)
            raise
        self._changes.register(obj)

    def _require_usable(self) -> None:
        if self._phase is Phase.CLOSED:
            raise self._closed()
        if self._owner is not None and self._owner != get_ident():
            raise self._concurrent_use()

    def readCurrent(self, obj: Any) -> None:
        """Let the commit of this transaction, if it writes anything, fail with
        `ReadConflictError` unless *obj* is then still as it is now. BTrees call this for the
        nodes whose shape a change relies on."""
        if obj._p_jar is not self:
            return
        obj._p_activate()
        if obj._p_serial != NO_TID:
            self._must_be_current[obj._p_oid] = obj._p_serial

    def committed_record(self, oid: Oid) -> bytes:
        """Return the record of *oid* that this transaction sees; it counts as read. `UsageError`
        for an object with changes that are not committed."""
        self._require_usable()
        obj = self._cache.get(oid)
        is_put_away = self._savepoints is not None and oid in self._savepoints
        if is_put_away or oid in self._changes.added or (obj is not None and obj._p_changed):
            raise UsageError(
                f"object {format_oid(oid)} has changes that are not committed. Commit them first"
            )
        record, tid = self._load_revision(oid)
        if self._reads is not None:
            self._must_be_current[oid] = tid
        return record

    def adopt(self, obj: Any) -> Oid:
        """Make *obj*, of no connection, one of this one; return its oid: a new one, or what the
        program gave it. `InvalidObjectReference` unless that is an oid, and nobody else's."""
        oid: Oid | None = obj._p_oid
        if oid is None:
            oid = bytes(self._storage.new_oid())
        else:
            self._require_free(oid, obj)
            self._changes.given[oid] = obj
        set_jar(obj, self)
        set_oid(obj, oid)
        return oid

    def _require_free(self, oid: Any, obj: Any) -> None:
        facts: dict[str, Any] = {"oid": oid, "class_name": class_name(type(obj))}
        advice = "Let the database make oids: do not set _p_oid"
        if type(oid) is not bytes or len(oid) != 8:
            raise InvalidObjectReference(
                f"a new {facts['class_name']} has the oid {shown(oid)}, but oids are 8 bytes. "
                f"{advice}", **facts,
            )
        if oid == ROOT_OID or self._is_taken(oid, obj):
            whose = "the root object's" if oid == ROOT_OID else "another object's"
            raise InvalidObjectReference(
                f"a new {facts['class_name']} has the oid {format_oid(oid)}, which is {whose}. "
                f"{advice}", **facts,
            )

    def _is_taken(self, oid: Oid, obj: Any) -> bool:
        changes = self._changes
        for known in (self._cache.get(oid), changes.added.get(oid), changes.given.get(oid)):
            if known is not None and known is not obj and known._p_oid == oid:
                return True
        if oid in changes.created:
            return True
        try:
            return self._load_committed(oid, MAX_TID) is not None
        except KeyError:
            return False

    def _join(self) -> None:
        if self._phase is Phase.IDLE:
            if self._past is not None:
                raise ReadOnlyHistoryError(
                    f"this connection shows {self._db.name} before {format_tid(self._past)}: the "
                    "past cannot be changed. Open one without `at` and `before`"
                )
            if self.isReadOnly():
                raise ReadOnlyError(
                    f"{self._db.name} is open for reading only: its objects cannot be changed"
                )
            self._enter_transaction()
            self._join_companions()
        elif self._phase is Phase.VOTING:
            raise ConnectionStateError(
                f"{self!r}: its objects cannot be changed now. What a commit calls, such as "
                "_p_resolveConflict, must not touch objects; it gets states, and returns one"
            )

    def _enter_transaction(self) -> None:
        self._transaction = self.transaction_manager.get()
        self._transaction.join(self)
        self._phase = Phase.JOINED

    def _refuse_commit(self, error: ReadConflictError) -> None:
        self._unreadable = copy.copy(error)
        if self._phase is Phase.IDLE:
            try:
                self._enter_transaction()
            except NoTransaction:  # then there is nothing to refuse
                return

    def _require_readable(self) -> None:
        if self._unreadable is not None:
            raise ReadConflictError(
                f"this transaction met a ReadConflictError and went on ({self._unreadable}). It "
                "may have acted on what does not belong together, and can only be aborted",
                oid=self._unreadable.oid, class_name=self._unreadable.class_name,
                serials=self._unreadable.serials,
            )

    def _join_companions(self) -> None:
        """Let what is read from other databases be checked with what is written to this one."""
        if self._reads is not None:
            for companion in self._companions.values():
                if not companion.isReadOnly():
                    companion._join()

    def _write_changes(self, store: Callable[[Oid, Tid, bytes, str, Any], object]) -> None:
        """Store every changed object, and every new one reachable from it."""
        changes, count = self._changes, -1
        for _ in range(MAX_ROUNDS):  # a __getstate__ may change further objects
            if count == changes.count:
                changes.clear_pending()
                return
            count = changes.count
            self._write_pending(store)
        classes = {class_name(type(obj)) for obj in changes.pending() if obj._p_changed}
        raise SerializationError(
            f"storing goes round in circles: each time, a __getstate__ changes an object that "
            f"was stored before, of {' and '.join(sorted(classes))}. A __getstate__ should "
            "change nothing that has one"
        )

    def _write_pending(self, store: Callable[[Oid, Tid, bytes, str, Any], object]) -> None:
        serialize, new_objects = self._writer.serialize, self._writer.new_objects
        stored, created, cache = self._stored, self._changes.created, self._cache
        metadata, version, counts_bytes = self._metadata, self._version, self._counts_bytes
        for first in self._changes.pending():
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
                            self._note_size(oid, obj, record)
                    stack.pop()
                    if new_objects:
                        stack.extend(reversed(new_objects))
                        new_objects.clear()
            except BaseException:
                # What was met and not stored is taken back by the abort.
                for obj in stack + new_objects:
                    if obj._p_serial == NO_TID:
                        self._changes.add(obj)
                new_objects.clear()
                raise

    # -- commit: the connection as a resource of its transaction

    def sortKey(self) -> str:
        """Return where this connection stands in the order of a two-phase commit."""
        return f"{self._storage.sortKey()}:{id(self)}"

    def tpc_begin(self, txn: Any) -> None:
        """Begin to commit. Raises `ReadConflictError` (see `isolation`) and
        `UnregisteredMutationError`."""
        self._require_readable()
        if self._has_mutated():
            raise error_for(self._mutated)
        self._commit = self._db.storage_commit(txn)
        self._metadata = self._commit.begin()
        self._phase = Phase.COMMITTING

    def _has_mutated(self) -> bool:
        """Whether objects were changed without notice, if the database looks for such."""
        if self._detector is not None:
            with kept(self._reads):  # looking is not reading
                self._mutated = self._detector.find(self._cache.lru_items())
        return bool(self._mutated)

    def _drop_mutated(self) -> None:
        for obj, _ in self._mutated:
            obj._p_invalidate()
        self._mutated = []

    def commit(self, txn: Any) -> None:
        """Give all changed and new objects to the storage."""
        store, metadata = self._storage.store, self._metadata
        self._write_changes(store)
        if self._savepoints is not None:
            for oid in self._savepoints.oids():
                if oid not in self._stored:
                    record, base_tid = self._savepoints.load(oid)
                    store(oid, base_tid, record, self._version, metadata)
                    self._stored[oid] = None

    def _check_reads(self) -> None:
        """Let the vote fail unless all that was to be current, or read, is as it was."""
        for oid, serial in self._must_be_current.items():
            if oid not in self._stored:
                self._storage.checkCurrentSerialInTransaction(
                    oid, serial, self._metadata, **self._in_version
                )
        reads = self._reads
        if reads is None:
            return
        serials = reads.serials()
        if IStorageReadChecks.providedBy(self._storage):
            unchanged_since = None if reads.is_complete else self._snapshot
            self._storage.checkReads(
                serials, unchanged_since, self._metadata, **self._in_version
            )
            return
        if not reads.is_complete:
            raise ReadConflictError(
                "the program deactivated objects it had read, and this storage cannot check "
                "that nothing else was committed. Leave deactivating to the connection"
            )
        for oid, serial in serials.items():
            self._storage.checkCurrentSerialInTransaction(
                oid, serial, self._metadata, **self._in_version
            )

    def tpc_vote(self, txn: Any) -> None:
        """Let the storage do everything that can fail. `ConflictError` when it is too late.

        Until here, the commits of other participants may have read and changed objects.
        """
        if self._changes.registered or self._changes.added:
            self._write_changes(self._storage.store)
        self._check_reads()
        self._phase = Phase.VOTING
        created = self._changes.created  # what is new is in nobody's cache
        oids = [oid for oid in self._stored if oid not in created]

        def committed(tid: Tid) -> None:
            self._db.invalidate(tid, oids, self._version, self.token)

        try:
            self._commit.vote(self._stored, committed)
        except ConflictError as error:
            if error.class_name is None and (obj := self._cache.get(error.oid)) is not None:
                complete_error(error, error.oid, type(obj))
            self._db.count_conflict(error)
            raise

    def tpc_finish(self, txn: Any) -> None:
        """Commit; the objects now have the tid of this transaction as serial. Raises
        `PartialCommitError` if that fails, and others have a part in the transaction."""
        try:
            tid = self._commit.finish()
            self._note_committed(txn, tid)
        except BaseException as error:
            commit = self._commit
            if commit is not None and commit.committed_tid is not None:
                commit.abort()  # of what is committed, it drops the rest
                self._note_committed(txn, commit.committed_tid)
                raise
            partial = outcome.failed_to_finish(txn, self)
            if partial is not None and isinstance(error, Exception):
                raise partial from error
            raise

    def _note_committed(self, txn: Any, tid: Tid) -> None:
        """Let the objects have the tid of this transaction, which may be done already."""
        outcome.note_committed(txn, self)
        if self.committed_tid != tid:
            self.committed_tid = tid
            self.store_count += len(self._stored)
        cache = self._cache
        for oid, obj in self._stored.items():
            if obj is None:  # it went from the savepoint's file to the storage
                obj = cache.get(oid)
                if obj is None:
                    continue
            set_serial(obj, tid)
        # What was merged is not what these objects hold.
        cache.invalidate(self._commit.resolved)
        self._end_transaction()

    def tpc_abort(self, txn: Any) -> None:
        """Take everything back, in the storage and in memory. What is committed stays so."""
        outcome.tell_after_the_fact(txn, self)
        self.abort(txn)

    def abort(self, txn: Any) -> None:
        """Drop all changes: changed objects become ghosts, new ones are unsaved again. The
        storage drops what it has of the transaction: `transaction` calls this, and `tpc_abort`
        behind it, when a commit fails before the vote. Ignored for another transaction."""
        if txn is not self._transaction:
            return
        try:
            self._abort()
        except BaseException:
            self._abort()  # what is left of it
            raise

    def _abort(self) -> None:
        if self._transaction is None:
            return
        try:
            if self._commit is not None:
                self._commit.abort()
        finally:
            try:
                self._take_back()
            finally:
                self._end_transaction()

    def _take_back(self) -> None:
        changes = self._changes
        for oid in changes.created_since(0):
            self._uncreate(oid)
        for oid, obj in changes.added.items():
            if obj._p_jar is self:
                self._uncreate(oid, obj)
        changed = set(changes.registered) | set(self._stored)
        if self._savepoints is not None:
            changed.update(self._savepoints.oids())
        self._cache.invalidate(list(changed))
        self._drop_mutated()

    def _uncreate(self, oid: Oid, obj: Any = None) -> None:
        """Make a new object unsaved again. It keeps its state."""
        obj = obj if obj is not None else self._cache.get(oid)
        if obj is None:
            return
        if obj._p_changed is None:
            obj._p_activate()
        if obj._p_changed:
            set_changed(obj, False)
        if self._cache.get(oid) is obj:
            del self._cache[oid]
        delete_jar(obj)
        delete_oid(obj)

    def _end_transaction(self) -> None:
        if self._savepoints is not None:
            self._savepoints.close()
        if self._phase is not Phase.CLOSED:
            self._load_before = self._load_committed
            self._phase = Phase.IDLE
        self._reset_transaction()

    def savepoint(self) -> Savepoint:
        """Write all changes to a temporary file, and return the way back to here (called by
        `transaction.savepoint`)."""
        self._require_usable()
        self._require_readable()
        if self._savepoints is None:
            self._savepoints = SavepointStore()
            self._load_before = self._load_with_savepoints
        before = self._savepoints.size
        self._write_changes(self._savepoints.store)
        self._stored = {}
        self._bytes_put_away += self._savepoints.size - before
        if self._bytes_put_away > PUT_AWAY_BYTES:
            self._bytes_put_away = 0
            self.cacheMinimize()
        self.cacheGC()
        return Savepoint(self, self._savepoints.mark(len(self._changes.created)))

    def _roll_back(self, mark: Mark) -> None:
        changes, savepoints = self._changes, self._savepoints
        if savepoints is None:
            raise ConnectionStateError("the transaction of this savepoint has ended")
        for oid, obj in changes.added.items():
            if obj._p_jar is self:
                self._uncreate(oid, obj)
        for oid in changes.created_since(mark.created):
            self._uncreate(oid)
        changed = savepoints.roll_back(mark) | set(changes.registered)
        changes.clear_pending()
        with kept(self._reads):
            self._cache.invalidate(list(changed))


def _warn_large(obj: Any, record: bytes) -> None:
    warnings.warn(
        f"the state of {class_name(type(obj))} {format_oid(obj._p_oid)} is "
        f"{len(record) / 2**20:.0f} MiB, loaded and stored whole at every change. Keep large "
        "data in many objects (a BTree), or in a file", LargeRecordWarning, stacklevel=2,
    )
