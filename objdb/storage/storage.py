"""The storage: the two-phase protocol over any engine. It keeps no rows itself.

    tpc_vote     take the slot ─► plan stale requests again ─► check locks and reads
                 ─► resolve conflicts ─► assign the tid ─► engine.write
    tpc_finish   engine.commit ─► free the slot ─► [sync, shared] ─► callback ─► engine.publish

`engine` has the contract of engines. The layer between the protocol and the engine consists of
functions, a module for each subject: `conflicts`, `versions`, `undo`, `history`, `packing`,
`copying`.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Iterable, Iterator
from functools import partial
from itertools import count
from typing import TYPE_CHECKING, Any

from zope.interface import directlyProvides

from objdb import errors
from objdb.ids import MAX_TID, NO_TID, Oid, Tid
from objdb.interfaces import IStorageVersions
from objdb.storage import conflicts, history, packing, staging, versions
from objdb.storage import engine as contract
from objdb.storage.amending import Amender
from objdb.storage.clock import Clock
from objdb.storage.commit import Access, CommitSlot, Phase
from objdb.storage.committer import Committer, no_callback
from objdb.storage.copying import CopyProgress, copy_transactions
from objdb.storage.foreign import database_of
from objdb.storage.history import Filter
from objdb.storage.iteration import TransactionRecord
from objdb.storage.oids import OidSource
from objdb.storage.owning import Closing, drops_what_it_opened
from objdb.storage.row_packing import pack_rows
from objdb.storage.staging import Writes
from objdb.storage.times import commit_tid
from objdb.storage.undo import Undo, UndoneObject, tid_from_id

if TYPE_CHECKING:
    from typing_extensions import Self

_CLOSE_SECONDS = 5.0  # the time that closing waits for a transaction that has voted
_STATUSES = (" ", "p", "u")  # committed, packed, undone (old)
_UNCOMMITTED = (Phase.BEGUN, Phase.VOTED)
_count = count()


class Storage:
    """A storage over `engine`. *read_only*: refuse transactions. *without*: interfaces that it
    does not declare."""

    _clock: Clock | None = None
    _closing: Closing

    @drops_what_it_opened
    def __init__(
        self, engine: Any, *, read_only: bool = False, without: tuple[Any, ...] = ()
    ) -> None:
        self.engine = engine
        self._closing = Closing()
        self._name: str = engine.name
        # All processes get the same key for a path; without one, each storage has its own.
        path = engine.path
        self._sort_key = os.path.realpath(path) if path else f"{self._name}:{next(_count)}"
        self._access = Access(self._name, read_only)
        self._slot = CommitSlot(self._name)
        self._amender = Amender(engine, self._slot)
        self._oids = OidSource(engine, self._amender)
        self._committer = Committer(engine, self._slot, self._oids)
        self._is_shared = contract.IShared.providedBy(engine)
        is_fast = contract.ICurrentLoad.providedBy(engine)
        self._fast: Any = engine if is_fast else contract.NoFastLoad()
        has_own = contract.IOwnHistory.providedBy(engine)
        self._past: Any = engine if has_own else history.RowHistory(engine, self._amender.watch)
        self._db: Any = database_of(None)
        self._walk = history.RecordWalk(self, self._past.oids)
        directlyProvides(self, *contract.declared(type(self), engine, without))
        self._start_clock()

    def getName(self) -> str:
        """Return the storage's name (the path, if there is one)."""
        return self._name

    def __repr__(self) -> str:
        return f"<{type(self).__name__} {self._access}>"

    def sortKey(self) -> str:
        """See `IStorage`: for a storage with a path, the same in all processes."""
        return self._sort_key

    def isReadOnly(self) -> bool:
        """Return whether the storage is read-only."""
        return self._access.is_read_only

    def lastTransaction(self) -> Tid:
        """Return the tid of the last visible transaction."""
        return bytes(self.engine.visibility.tid)

    def getSize(self) -> int:
        """Return the size in bytes, on disk if the storage has files."""
        return int(self.engine.size())

    def __len__(self) -> int:
        """The number of objects."""
        return int(self.engine.count())

    def supportsUndo(self) -> bool:
        """See `IStorageUndoable`."""
        return bool(self.engine.keeps_history)

    def supportsVersions(self) -> bool:
        """See `IStorageVersions`."""
        return bool(IStorageVersions.providedBy(self))

    def registerDB(self, db: Any) -> None:
        """See `IStorage`; *db* also tells the oldest view."""
        self._db = database_of(db)

    def new_oid(self) -> Oid:
        """Return a new oid, never returned before and not in use."""
        if self._access.is_limited:
            self._access.require_writable()
        while (oid := self._oids.take()) is None:
            self._access.require_writable()
            self._oids.reserve()
        return oid

    # -- reading

    def load(self, oid: Oid, version: str = "") -> tuple[bytes, Tid]:
        """Return (record, tid) of the current revision of *oid*. Raises `POSKeyError`."""
        if version:
            self._require_version(version)
        found = self.loadBefore(oid, MAX_TID, version)
        if found is None:
            raise errors.POSKeyError(oid, database=self._name)
        return found[0], found[1]

    def loadBefore(
        self, oid: Oid, tid: Tid, version: str = ""
    ) -> tuple[bytes, Tid, Tid | None] | None:
        """See `IStorageVersions`."""
        found = self._fast.load_current(oid, tid, version)
        if found is not None:
            return found  # type: ignore[no-any-return]
        self._access.require_open()
        return self._past.load_before(oid, tid, version)  # type: ignore[no-any-return]

    def loadSerial(self, oid: Oid, serial: Tid) -> bytes:
        """See `IStorage`."""
        self._access.require_open()
        return bytes(self._past.load_serial(oid, serial))

    def getTid(self, oid: Oid) -> Tid:
        """Return the tid of the current revision of *oid*. Raises `POSKeyError`."""
        return self.load(oid)[1]

    def history(self, oid: Oid, size: int = 1) -> list[dict[str, Any]]:
        """See `IStorageHistory`."""
        self._access.require_open()
        return list(self._past.list_revisions(oid, size))

    def iterator(
        self, start: Tid | None = None, stop: Tid | None = None
    ) -> Iterator[TransactionRecord]:
        """See `IStorageIteration`."""
        return iter(self._past.iterate(start, stop))

    def record_iternext(self, next: Oid | None = None) -> tuple[Oid, Tid, bytes, Oid | None]:
        """See `IStorageCurrentRecordIteration`."""
        self._access.require_open()
        return self._walk.step(next)

    def lastInvalidations(self, count: int) -> list[tuple[Tid, list[Oid]]]:
        """See `IStorageCurrentRecordIteration`."""
        self._access.require_open()
        return history.last_transactions(self.engine, count)

    def self_check(self) -> list[str]:
        """See `IStorageSelfCheck`."""
        self._access.require_open()
        return list(self.engine.self_check())

    # -- staging

    def tpc_begin(self, transaction: Any, tid: Tid | None = None, status: str = " ") -> None:
        """See `IStorage`. Raises `StorageTransactionError` if the transaction has begun already."""
        self._access.require_writable()
        if status not in _STATUSES:
            raise errors.UsageError(
                f"{status!r} is not a transaction status: a space, p (packed) or u"
            )
        self._slot.begin(transaction, Writes(transaction, tid, status))

    def store(
        self, oid: Oid, serial: Tid | None, data: bytes, version: str, transaction: Any
    ) -> None:
        """Stage the record *data* as a revision of *oid*, based on the revision *serial*."""
        writes = self._slot.staged(transaction)
        if version:
            self._require_version(version)
        staging.require_size(oid, data)
        writes.write(oid, serial or NO_TID, data, version)

    def restore(
        self, oid: Oid, serial: Tid, data: bytes | None, version: str, prev_txn: Tid | None,
        transaction: Any,
    ) -> None:
        """See `IStorageRestoreable`. *data* None makes a tombstone."""
        writes = self._slot.staged(transaction)
        if version:
            self._require_version(version)
        if data is not None:
            staging.require_size(oid, data)
        writes.write(oid, None, data, version)
        if data is not None and prev_txn is not None:
            row = self.engine.row(oid, prev_txn)
            if row is not None and row.data == data:
                writes.point_back(oid, prev_txn, self._amender.count)

    def deleteObject(self, oid: Oid, serial: Tid, transaction: Any) -> None:
        """See `IStorage`."""
        self._slot.staged(transaction).write(oid, serial, None)

    def checkCurrentSerialInTransaction(
        self, oid: Oid, serial: Tid, transaction: Any, version: str = ""
    ) -> None:
        """See `IStorageVersions`."""
        self.checkReads({oid: serial}, None, transaction, version)

    def checkReads(
        self, serials: dict[Oid, Tid], unchanged_since: Tid | None, transaction: Any,
        version: str = "",
    ) -> None:
        """See `IStorageReadChecks`."""
        writes = self._slot.staged(transaction)
        writes.reads.setdefault(version, {}).update(serials)
        if unchanged_since is not None:
            writes.unchanged_since = unchanged_since

    def copyTransactionsFrom(
        self, other: Any, progress: Callable[[CopyProgress], object] | None = None
    ) -> int:
        """See `IStorageRestoreable`."""
        return copy_transactions(other, self, progress)

    def versions(self, max: int | None = None) -> list[str]:
        """See `IStorageVersions`."""
        self._access.require_open()
        return sorted({found.version for found in self.engine.in_versions().values()})[:max]

    def versionEmpty(self, version: str) -> bool:
        """See `IStorageVersions`."""
        return not self.objects_in_version(version)

    def modifiedInVersion(self, oid: Oid) -> str:
        """See `IStorageVersions`."""
        self._access.require_open()
        current = self.engine.current([oid])[oid]
        if current is None:
            raise errors.POSKeyError(oid, database=self._name)
        return str(current.version)

    def objects_in_version(self, version: str) -> list[Oid]:
        """See `IStorageVersions`."""
        self._access.require_open()
        return list(versions.modified_in(self.engine, versions.require_name(version)))

    def commitVersion(self, source: str, destination: str, transaction: Any) -> list[Oid]:
        """See `IStorageVersions`."""
        versions.require_two(source, destination)
        return self._empty(source, destination, transaction)

    def abortVersion(self, version: str, transaction: Any) -> list[Oid]:
        """See `IStorageVersions`."""
        return self._empty(versions.require_name(version), None, transaction)

    def _empty(self, version: str, destination: str | None, transaction: Any) -> list[Oid]:
        writes = self._slot.staged(transaction)
        return self._request(
            writes, partial(versions.empty, self.engine, writes, version, destination)
        )

    def _request(self, writes: Writes, make: Callable[[], list[Oid]]) -> list[Oid]:
        with self._amender.lock:
            oids = staging.request(self.engine, writes, self._amender.count, make)
        return oids

    _last_name: Any = None  # the last version name found to be valid

    def _require_version(self, version: str) -> None:
        if version is not self._last_name:
            history.require_history(self.engine, "it does not support versions")
            if not self.supportsVersions():
                raise errors.Unsupported(f"{self._name}: versions are not supported")
            self._last_name = versions.require_name(version)

    def undo(self, transaction_id: Any, transaction: Any) -> tuple[Tid | None, list[Oid]]:
        """See `IStorageUndoable`."""
        writes = self._slot.staged(transaction)
        tid = tid_from_id(transaction_id)
        self._access.require_open()
        history.require_history(self.engine, "nothing can be undone")
        return writes.tid, self._request(writes, partial(self._undo(writes).stage, tid))

    def _undo(self, writes: Writes) -> Undo:
        return Undo(self.engine, writes, partial(self._merge, writes), self._db.is_equal)

    def preview_undo(self, transaction_ids: Iterable[Any]) -> list[UndoneObject]:
        """See `IStorageUndoable`."""
        self._access.require_open()
        history.require_history(self.engine, "nothing can be undone")
        with self._amender.lock:
            return self._undo(Writes(None)).preview(transaction_ids)

    def undoLog(
        self, first: Any = 0, last: Any = -20, filter: Filter | None = None
    ) -> list[dict[str, Any]]:
        """See `IStorageUndoable`."""
        self._access.require_open()
        return history.undo_log(self._past, first, last, filter)

    def undoInfo(
        self, first: Any = 0, last: Any = -20, specification: dict[str, Any] | None = None
    ) -> list[dict[str, Any]]:
        """See `IStorageUndoable`."""
        return self.undoLog(first, last, history.having(specification))

    # -- committing

    def tpc_vote(self, transaction: Any) -> list[Oid]:
        """See `IStorage`. After a `ConflictError` or similar the slot is free: abort."""
        writes: Writes = self._slot.staged(transaction)
        try:
            self._slot.take(writes)
            self._access.require_writable()
            if self._is_shared:
                self.engine.begin_vote()
            self._check(writes)
            writes.tid = commit_tid(self._name, writes.tid, self.engine.visibility.committed_tid)
            writes.token = self.engine.write(
                staging.transaction_row(writes), staging.StagedRows(self.engine, writes)
            )
            writes.phase = Phase.VOTED
            writes.close_spool()
        except errors.ConflictError as error:
            if error.oid in writes.bases:
                error.record = writes.record(error.oid)
            self._committer.take_back_and_wait(writes)
            raise
        except BaseException as error:
            self._committer.take_back(writes)
            if isinstance(error, errors.StorageFailedError):
                self._slot.fail(str(error))
                self._slot.require_not_failed()
            raise
        finally:
            if self._is_shared:
                self.engine.end_vote()
        return writes.resolved

    def _check(self, writes: Writes) -> None:
        if writes.plan is None:
            writes.current = self.engine.current(writes.bases)
        else:
            staging.plan_again_if_moved(self.engine, writes, self._amender.count)
            writes.current = staging.current_of(self.engine, writes)
        if writes.back_pointers:
            staging.settle_back_pointers(self.engine, writes, self._amender.count)
        conflicts.check_locks(writes)
        if writes.reads or writes.unchanged_since is not None:
            conflicts.check_reads(self.engine, writes)
        conflicts.resolve_conflicts(self.engine, writes, partial(self._merge, writes))

    def _merge(
        self, writes: Writes, oid: Oid, old: bytes | None, committed: bytes, new: bytes,
        serials: tuple[Tid, Tid],
    ) -> bytes:
        """Let the application merge two changes, with or without holding the slot."""
        with self._slot.resolving_in(writes):
            return bytes(self._db.resolve(oid, old, committed, new, serials))

    def tpc_finish(
        self, transaction: Any, callback: Callable[[Tid], object] | None = None
    ) -> Tid:
        """See `IStorage`."""
        writes: Writes = self._slot.staged(transaction, Phase.VOTED)
        if self._access.is_released:
            self._access.require_open()
        try:
            self._committer.commit(writes, callback or no_callback)
            self._end(writes)
        except BaseException:
            if writes.phase is not Phase.VOTED:
                self._end(writes)  # the remaining steps
            raise
        assert writes.tid is not None
        return writes.tid

    def tpc_abort(self, transaction: Any) -> None:
        """See `IStorage`. A committed transaction stays committed."""
        writes: Writes | None = self._slot.find(transaction)
        if writes is None:
            return
        try:
            self._end(writes)
        except BaseException:
            self._end(writes)  # the remaining steps
            raise

    def _end(self, writes: Writes) -> None:
        """Roll back uncommitted writes, and forget the transaction."""
        if writes.phase in _UNCOMMITTED:
            if self._is_shared:
                self.engine.end_vote()
            self._committer.take_back(writes)
        self._slot.release(writes)
        writes.close()
        self._slot.end(writes.transaction)

    # -- packing

    @property
    def packed_tid(self) -> Tid:
        """See `IStoragePacked`."""
        return self._amender.packed_tid

    def pack(
        self, time: Any, referencesf: packing.References, gc: bool = True, *,
        progress: packing.Progress | None = None, keep_old: bool = False, dry_run: bool = False,
        roots: Callable[[], Iterable[Oid]] | None = None,
        elsewhere: packing.Elsewhere | None = None,
    ) -> packing.PackResult:
        """See `IStoragePackable`."""
        if dry_run:
            self._access.require_open()
        else:
            self._access.require_writable()
        options = packing.PackOptions(
            time, referencesf, gc, progress, keep_old, dry_run, roots or packing.no_roots,
            elsewhere or packing.nowhere_else, self._access.require_open,
        )
        with self._amender.packing():
            if contract.IOwnPack.providedBy(self.engine):
                alone = partial(self._amender.rewriting, self._ready_to_rewrite)
                result: packing.PackResult = self.engine.pack(options, alone)
            else:
                result = pack_rows(self._amender, options)
        return result

    def _ready_to_rewrite(self) -> None:
        self._committer.wait_for_all()
        self._access.require_open()

    # -- the clock, and the end

    def _start_clock(self) -> None:
        seconds = self.engine.tick_seconds if contract.IMaintained.providedBy(self.engine) else 0
        if seconds:
            self._clock = Clock(seconds, self._tick, f"{self._name} clock")
            self._clock.start()

    def _tick(self) -> None:
        self._amender.tick(self._db, may_prune=not self._access.is_read_only)

    def drop_opened(self) -> None:
        """Stop the clock, since the storage could not be opened (see `owning`)."""
        if self._clock is not None:
            self._clock.stop()
        if "_closing" in self.__dict__:
            self._closing.is_over = True

    def close(self) -> None:
        """Close the storage. A second call does nothing."""
        self._access.is_closed = True
        if self._access.is_fork:
            self.engine.close()  # a fork's copy: who held the slot is not in this process
        else:
            self._closing.run(self._close)

    def _close(self) -> None:
        if self._clock is not None:
            self._clock.stop(_CLOSE_SECONDS)
        self._amender.wait_for_pack(_CLOSE_SECONDS)
        with self._slot.quiet(_CLOSE_SECONDS):
            try:
                self._committer.wait_for_all()
            finally:
                self._access.is_released = True
                self.engine.close()
                self._slot.close_unvoted()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *exception: object) -> None:
        self.close()
